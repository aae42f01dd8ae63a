"""Requests and spend by hour of each tenant and engine, from the sums of receipts. All calls block: use threads.

The sums of hours are kept for two weeks by default, and have many rows for each tenant. This table has one row for each
hour and series, and five weeks. An hour without any row is a gap: no worker ran. Otherwise a missing row means zero.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import bindparam, delete, func, select

from gateway.usage.anomalies import ENGINE, TENANT
from gateway.usage.rollup import SumRow
from gateway.usage.sql import sql_of
from gateway.usage.sums import Period
from gateway.usage.tables import DAY_S, HOURS
from gateway.usage.threads import with_pauses

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection

    from gateway.usage.queries import UsageQueries

KEEP_S = 36 * 86_400
"""Retention of hours: four weeks, and a week in which an alert may be examined."""


class Series(NamedTuple):
    """The values of one dimension, such as tenants, and the name of one of them."""

    dimension: str
    name: str


EVERYTHING = Series("", "")
"""The series of all requests. It has a row for each hour in which a worker ran."""


class HourSums(NamedTuple):
    """Sums of one hour and series.

    Attributes:
        requests: receipts. Of an engine: those with the status `ok`.
        estimated: receipts whose tokens the gateway counted, since the engine reported none. 0 for tenants.
        cost_pico: the whole cost in picodollars. 0 for engines.
    """

    requests: int = 0
    estimated: int = 0
    cost_pico: int = 0

    def plus(self, other: HourSums) -> HourSums:
        """Return the sum."""
        return HourSums(*(one + more for one, more in zip(self, other, strict=True)))


HourRows = dict[Series, HourSums]


def read_sums(queries: UsageQueries, starts: Sequence[int]) -> dict[int, HourRows]:
    """Return the sums of the hours that start at these Unix seconds, without hours that have no receipts."""
    found: dict[int, HourRows] = defaultdict(lambda: defaultdict(HourSums))
    for (_, start), dims, raw in with_pauses(queries.rows([Period("hour", start) for start in starts], None)):
        row, hour = SumRow.from_bytes(raw), found[start]
        of_all = HourSums(row.requests, 0, row.cost_pico)
        for series in (EVERYTHING, Series(TENANT, dims.tenant)):
            hour[series] = hour[series].plus(of_all)
        served = row.requests - sum(row.errors.values())
        estimates = row.estimates
        for engine in {dims.teacher, dims.student} - {""}:
            series = Series(ENGINE, engine)
            hour[series] = hour[series].plus(HourSums(served, estimates.get(engine, 0)))
    return {start: dict(rows) for start, rows in found.items()}


def changed(queries: UsageQueries, hours: Mapping[int, HourRows]) -> dict[int, HourRows]:
    """Return the hours whose rows differ from the stored ones."""
    return {start: rows for start, rows in hours.items() if rows_of(queries, start) != rows}


def write(connection: Connection, hours: Mapping[int, HourRows]) -> None:
    """Replace the rows of these hours, and delete some expired ones. Raises SQLAlchemyError.

    Only rows that differ are written. Readers see each hour before or after the change: pass few hours in one
    transaction, because no worker writes receipts meanwhile.
    """
    for start, rows in hours.items():
        stored = _rows_of(connection, start)
        new = [(*series, start, *sums) for series, sums in rows.items() if stored.get(series) != sums]
        sql_of(connection).put_hours(new)
        if gone := [{"_dimension": one.dimension, "_name": one.name} for one in stored.keys() - rows.keys()]:
            c = HOURS.c
            where = c.start == start, c.dimension == bindparam("_dimension"), c.name == bindparam("_name")
            connection.execute(delete(HOURS).where(*where), gone)
    if hours:
        _delete_expired(connection, max(hours) - KEEP_S)


def _delete_expired(connection: Connection, before: int) -> None:
    """Delete the oldest hours before `before`, at most a day of them: after a pause, the next calls continue."""
    oldest = connection.execute(select(func.min(HOURS.c.start))).scalar()
    if oldest is not None and oldest < before:
        connection.execute(delete(HOURS).where(HOURS.c.start < min(before, oldest + DAY_S)))


def newest(queries: UsageQueries) -> int | None:
    """Return the start of the last hour that has rows."""
    query = select(func.max(HOURS.c.start)).where(*_of(EVERYTHING))
    return queries.connection.execute(query).scalar()


def rows_of(queries: UsageQueries, start: int) -> HourRows:
    """Return the rows of an hour."""
    return _rows_of(queries.connection, start)


def _rows_of(connection: Connection, start: int) -> HourRows:
    found = connection.execute(select(HOURS).where(HOURS.c.start == start))
    return {Series(row.dimension, row.name): HourSums(row.requests, row.estimated, row.cost_pico) for row in found}


def history(queries: UsageQueries, series: Series, before: int) -> dict[int, HourSums]:
    """Return the sums of a series by hour, from its first hour to the one before `before`, in Unix seconds.

    Hours without requests of the series have zeros. Gaps are missing.
    """
    since = before - KEEP_S
    rows = dict(_hours(queries, series, since, before))
    if not rows:
        return {}
    observed = _hours(queries, EVERYTHING, min(rows), before)
    return {start: rows.get(start, HourSums()) for start, _ in observed} | rows


def _hours(queries: UsageQueries, series: Series, since: int, before: int) -> Iterable[tuple[int, HourSums]]:
    c = HOURS.c
    query = select(c.start, c.requests, c.estimated, c.cost_pico)
    found = queries.connection.execute(query.where(*_of(series), c.start >= since, c.start < before))
    return [(row.start, HourSums(*row[1:])) for row in found]


def _of(series: Series) -> tuple[Any, ...]:
    return HOURS.c.dimension == series.dimension, HOURS.c.name == series.name
