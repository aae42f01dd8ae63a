"""Requests and spend by hour of each series, from the sums of receipts. All calls block: use threads.

The sums of hours are kept for two weeks by default, and have many rows for each tenant. This table has one row for each
hour and series, and five weeks. An hour without any row is a gap: no worker ran. Otherwise a missing row means zero.
label_hours.py adds the rows of labels.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import bindparam, delete, func, or_, select

from gateway.usage.anomalies import ENGINE, LABEL, TENANT, LabelValue
from gateway.usage.rollup import SumRow
from gateway.usage.sql import sql_of
from gateway.usage.sums import Period
from gateway.usage.tables import DAY_S, HOURS
from gateway.usage.threads import with_pauses

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection

    from gateway.usage.queries import UsageQueries

KEEP_S = 36 * 86_400
"""Retention of hours: four weeks, and a week in which an alert may be examined."""


class Series(NamedTuple):
    """The values of one dimension, such as tenants, and the name of one of them."""

    dimension: str
    name: str


EVERYTHING = Series("", "")
"""The series of all requests. It has a row for each hour in which a worker ran."""
READ_FROM = "labels"
"""Dimension of the tenants' sums for which the rows of labels were read."""
LABELS_READ = Series(READ_FROM, "")
"""The series of hours whose rows of labels are complete. Other hours are gaps for labels."""
OMITTED = "omitted"
"""Dimension of tenants with too many values in an hour. The sums are those of the largest value without a row."""
_OF_LABELS = LABEL, READ_FROM, OMITTED
_READ_KEPT_S = 3 * 86_400


class HourSums(NamedTuple):
    """Sums of one hour and series.

    Attributes:
        requests: receipts. Of an engine: those with the status `ok`.
        estimated: receipts whose tokens the gateway counted, since the engine reported none. Only of engines.
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
        served = row.answers + row.shadows - row.failed_shadows
        estimates = row.estimates
        for engine in {dims.teacher, dims.student} - {""}:
            series = Series(ENGINE, engine)
            hour[series] = hour[series].plus(HourSums(served, estimates.get(engine, 0)))
    return {start: dict(rows) for start, rows in found.items()}


def changed(queries: UsageQueries, hours: Mapping[int, HourRows]) -> dict[int, HourRows]:
    """Return the hours whose rows differ from the stored ones. Rows of labels do not count."""
    return {start: rows for start, rows in hours.items() if _stored(queries.connection, start) != rows}


def write(connection: Connection, hours: Mapping[int, HourRows]) -> None:
    """Replace the rows of these hours except those of labels, and delete some expired ones. Raises SQLAlchemyError.

    Only rows that differ are written. Readers see each hour before or after the change: pass few hours in one
    transaction, because no worker writes receipts meanwhile.
    """
    for start, rows in hours.items():
        _replace(connection, start, _stored(connection, start), rows)
    if hours:
        _delete_expired(connection, max(hours) - KEEP_S)


def write_labels(connection: Connection, start: int, rows: HourRows) -> None:
    """Replace the rows of labels of an hour, for the tenants with a row of `READ_FROM`; see `write`.

    Raises SQLAlchemyError.
    """
    tenants = {series.name for series in rows if series.dimension == READ_FROM}
    c = HOURS.c
    names = or_(c.name.in_(tenants), *(c.name.startswith(f"{tenant}/", autoescape=True) for tenant in tenants))
    found = _rows(connection, c.start == start, names)
    # SQLite ignores case in LIKE.
    stored = {one: sums for one, sums in found.items() if one.dimension in _OF_LABELS and _tenant_of(one) in tenants}
    _replace(connection, start, stored, rows)
    connection.execute(delete(HOURS).where(c.dimension == READ_FROM, c.name != "", c.start < start - _READ_KEPT_S))


def _stored(connection: Connection, start: int) -> HourRows:
    return _rows(connection, HOURS.c.start == start, HOURS.c.dimension.not_in(_OF_LABELS))


def _tenant_of(series: Series) -> str:
    return LabelValue.of(series.name).tenant if series.dimension == LABEL else series.name


def _replace(connection: Connection, start: int, stored: HourRows, rows: HourRows) -> None:
    new = [(*series, start, *sums) for series, sums in rows.items() if stored.get(series) != sums]
    sql_of(connection).put_hours(new)
    if gone := [{"_dimension": one.dimension, "_name": one.name} for one in stored.keys() - rows.keys()]:
        c = HOURS.c
        where = c.start == start, c.dimension == bindparam("_dimension"), c.name == bindparam("_name")
        connection.execute(delete(HOURS).where(*where), gone)


def _delete_expired(connection: Connection, before: int) -> None:
    """Delete the oldest hours before `before`, at most a day of them: after a pause, the next calls continue."""
    oldest = connection.execute(select(func.min(HOURS.c.start))).scalar()
    if oldest is not None and oldest < before:
        connection.execute(delete(HOURS).where(HOURS.c.start < min(before, oldest + DAY_S)))


def newest(queries: UsageQueries) -> int | None:
    """Return the start of the last hour that has rows."""
    query = select(func.max(HOURS.c.start)).where(*_of(EVERYTHING))
    return queries.connection.execute(query).scalar()


def first_of(queries: UsageQueries, series: Series) -> int | None:
    """Return the first hour of a series."""
    return queries.connection.execute(select(func.min(HOURS.c.start)).where(*_of(series))).scalar()


def rows_of(queries: UsageQueries, start: int) -> HourRows:
    """Return the rows of an hour."""
    return _rows(queries.connection, HOURS.c.start == start)


def read_from(queries: UsageQueries, start: int) -> HourRows:
    """Return the rows of `READ_FROM` of an hour. There are few in the database."""
    return _rows(queries.connection, HOURS.c.dimension == READ_FROM, HOURS.c.start == start)


def _rows(connection: Connection, *where: ColumnElement[bool]) -> HourRows:
    c = HOURS.c
    query = select(c.dimension, c.name, c.requests, c.estimated, c.cost_pico).where(*where)
    found = with_pauses(connection.execute(query))
    return {Series(dimension, name): HourSums(*sums) for dimension, name, *sums in found}


def spend_at(queries: UsageQueries, starts: Sequence[int], dimensions: Sequence[str]) -> dict[Series, dict[int, int]]:
    """Return the spend in picodollars of these hours, by series and hour. Rows that are missing are no zeros."""
    found: dict[Series, dict[int, int]] = defaultdict(dict)
    c = HOURS.c
    # With a condition on dimensions, SQLite would read all hours of them.
    query = select(c.dimension, c.name, c.start, c.cost_pico).where(c.start.in_(starts), c.cost_pico > 0)
    for dimension, name, start, cost_pico in with_pauses(queries.connection.execute(query)):
        if dimension in dimensions:
            found[Series(dimension, name)][start] = cost_pico
    return dict(found)


def history(queries: UsageQueries, series: Series, before: int) -> dict[int, HourSums]:
    """Return the sums of a series by hour, from its first hour to the one before `before`, in Unix seconds.

    Hours without requests of the series have zeros. Gaps are missing. For labels, gaps are hours whose rows of labels
    are incomplete, and hours that omitted values of the tenant.
    """
    since = before - KEEP_S
    rows = dict(_hours(queries, series, since, before))
    if not rows:
        return {}
    first, omitted = min(rows), dict[int, HourSums]()
    if series.dimension == LABEL:
        omitted = dict(_hours(queries, Series(OMITTED, LabelValue.of(series.name).tenant), first, before))
    observed = _hours(queries, LABELS_READ if series.dimension == LABEL else EVERYTHING, first, before)
    return {start: rows.get(start, HourSums()) for start, _ in observed if start not in omitted} | rows


def _hours(queries: UsageQueries, series: Series, since: int, before: int) -> Iterable[tuple[int, HourSums]]:
    c = HOURS.c
    query = select(c.start, c.requests, c.estimated, c.cost_pico)
    found = queries.connection.execute(query.where(*_of(series), c.start >= since, c.start < before))
    return [(row.start, HourSums(*row[1:])) for row in found]


def _of(series: Series) -> tuple[Any, ...]:
    return HOURS.c.dimension == series.dimension, HOURS.c.name == series.name
