"""Requests and spend by hour of the values of labels, from the rows of labels. All calls block: use threads.

The rows of a tenant's hour are added up again only if the tenant's sums of that hour have changed. They are the values
with the highest spend. Each tenant has its own bound, so that its callers cannot affect other tenants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from gateway.usage.anomalies import LABEL, TENANT, LabelValue
from gateway.usage.hours import LABELS_READ, OMITTED, READ_FROM, HourSums, Series, read_from
from gateway.usage.partitions import is_partitioned
from gateway.usage.spend_limits import HOUR_S
from gateway.usage.tables import DAY_S, LABELS, SUMS
from gateway.usage.threads import with_pauses

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import ColumnElement

    from gateway.usage.hours import HourRows
    from gateway.usage.queries import UsageQueries

MAX_VALUES = 100
"""Most values of a tenant and hour that have a row."""
_C = LABELS.c


def changed_tenants(queries: UsageQueries, start: int, rows: HourRows, least_pico: int, is_whole: bool) -> HourRows:
    """Return the sums of tenants of an hour whose rows of labels have to be added up, as rows of `READ_FROM`.

    Args:
        start: the start of the hour in Unix seconds.
        rows: the sums of the hour.
        least_pico: tenants that spent less have no rows of labels.
        is_whole: whether the hour has ended, so that `LABELS_READ` has to be there.
    """
    present = read_from(queries, start)
    spent = {
        Series(READ_FROM, one.name): sums
        for one, sums in rows.items()
        if one.dimension == TENANT and sums.cost_pico >= least_pico
    }
    if is_whole:
        spent[LABELS_READ] = HourSums()  # the last one: the rows of all tenants are written before
    return {series: sums for series, sums in spent.items() if present.get(series) != sums}


def read_labels(queries: UsageQueries, start: int, changed: HourRows, negligible_pico: int) -> HourRows:
    """Return the rows of an hour for these tenants that have changed, with those of `READ_FROM`.

    An omitted value that spent at most `negligible_pico` counts as zero.
    """
    result = dict(changed)
    for one, sums, rank in _add_up(queries, start, [series.name for series in changed]):
        if rank <= MAX_VALUES:
            result[Series(LABEL, one.name)] = sums
        elif sums.cost_pico > negligible_pico:
            result[Series(OMITTED, one.tenant)] = HourSums(0, 0, sums.cost_pico)
    return result


def _add_up(queries: UsageQueries, start: int, tenants: Sequence[str]) -> list[tuple[LabelValue, HourSums, int]]:
    """Return each tenant's values with the highest spend, their sums and rank, and the first one beyond the maximum."""
    # `day` may differ by one from the day of `created`.
    first_day, last_day = start // DAY_S - 1, (start + HOUR_S) // DAY_S + 1
    days = _C.day.between(first_day, last_day)
    labels = _labels_of(queries, start, tenants, [days] if is_partitioned(queries.connection, LABELS) else [])
    if not labels:
        return []
    names, cost = (_C.tenant, _C.label, _C.value), func.sum(_C.cost_pico)
    rank = func.row_number().over(partition_by=_C.tenant, order_by=[cost.desc(), _C.label, _C.value])
    # Tenant, label and time select a range of the index.
    sums = select(*names, func.sum(_C.requests).label("requests"), cost.label("cost"), rank.label("rank")).where(
        days, _C.tenant.in_(tenants), _C.label.in_(labels), _C.created >= start, _C.created < start + HOUR_S
    )
    ranked = sums.group_by(*names).subquery()
    found = with_pauses(queries.connection.execute(select(ranked).where(ranked.c.rank <= MAX_VALUES + 1)))
    return [(LabelValue(*name), HourSums(int(requests), 0, int(cost)), rank) for *name, requests, cost, rank in found]


def _labels_of(
    queries: UsageQueries, start: int, tenants: Sequence[str], days: Iterable[ColumnElement[bool]]
) -> list[str]:
    """Return the labels of tenants. Each label is one search of the index, instead of one for each receipt.

    With partitions, `days` selects those to search. Otherwise the condition would read each row of other days.
    """

    def first(tenant: Any, *after: ColumnElement[bool]) -> Any:
        return select(func.min(_C.label)).where(_C.tenant == tenant, *days, *after).scalar_subquery()

    hour = SUMS.c.seconds == HOUR_S, SUMS.c.start == start, SUMS.c.tenant.in_(tenants)
    active = select(SUMS.c.tenant).distinct().where(*hour).subquery().c
    found = select(active.tenant, first(active.tenant).label("label")).cte("found", recursive=True)
    following = first(found.c.tenant, _C.label > found.c.label)
    found = found.union_all(select(found.c.tenant, following).where(found.c.label.is_not(None)))
    query = select(found.c.label).distinct().where(found.c.label.is_not(None)).order_by(found.c.label)
    return list(queries.connection.execute(query).scalars())
