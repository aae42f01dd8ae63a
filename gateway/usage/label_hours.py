"""Requests and spend by hour of the values of labels, from the rows of labels. All calls block: use threads.

The rows of a tenant's hour are added up again only if the tenant's sums of that hour have changed. An hour keeps the
values with the highest spend, of all tenants and labels together.
"""

from __future__ import annotations

from heapq import nlargest
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from gateway.usage.anomalies import LABEL, TENANT, LabelValue
from gateway.usage.entries import batched
from gateway.usage.hours import OF_LABELS, OMITTED, READ_FROM, HourSums, Series, read_from, rows_of
from gateway.usage.partitions import is_partitioned
from gateway.usage.spend_limits import HOUR_S
from gateway.usage.tables import DAY_S, LABELS, SUMS
from gateway.usage.threads import with_pauses

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import ColumnElement

    from gateway.usage.hours import HourRows
    from gateway.usage.queries import UsageQueries

MAX_VALUES = 1_000
"""Most values of an hour that have a row."""
_TENANTS_AT_ONCE = 100
_C = LABELS.c


def changed_tenants(queries: UsageQueries, start: int, rows: HourRows, least_pico: int) -> HourRows:
    """Return the sums of tenants of an hour whose rows of labels have to be added up, as rows of `READ_FROM`.

    Args:
        start: the start of the hour in Unix seconds.
        rows: the sums of the hour.
        least_pico: tenants that spent less have no rows of labels.
    """
    present = read_from(queries, start)
    spent = {
        Series(READ_FROM, one.name): sums
        for one, sums in rows.items()
        if one.dimension == TENANT and sums.cost_pico >= least_pico
    }
    return {series: sums for series, sums in spent.items() if present.get(series) != sums}


def read_labels(queries: UsageQueries, start: int, changed: HourRows, negligible_pico: int) -> HourRows:
    """Return all rows of labels of an hour: those in the database, and new ones of tenants that have changed.

    An omitted value that spent at most `negligible_pico` counts as zero.
    """
    present = {one: sums for one, sums in rows_of(queries, start).items() if one.dimension in OF_LABELS}
    if not changed:
        return present
    tenants = {series.name for series in changed}
    kept = {series: sums for series, sums in present.items() if _tenant_of(series) not in tenants}
    values = {series: sums for series, sums in kept.items() if series.dimension == LABEL and series != OMITTED}
    omitted = [sums.cost_pico for series, sums in kept.items() if series == OMITTED]
    for some in batched(sorted(tenants), _TENANTS_AT_ONCE):
        found = _add_up(queries, start, some)
        omitted += [found[-1][1].cost_pico] if len(found) > MAX_VALUES else []
        values |= dict(found[:MAX_VALUES])
    largest = nlargest(MAX_VALUES + 1, values.items(), key=lambda item: (item[1].cost_pico, item[0].name))
    omitted += [sums.cost_pico for _, sums in largest[MAX_VALUES:]]
    markers = {series: sums for series, sums in kept.items() if series.dimension == READ_FROM} | changed
    result = dict(largest[:MAX_VALUES]) | markers
    if (most_pico := max(omitted, default=0)) > negligible_pico:
        result[OMITTED] = HourSums(0, 0, most_pico)
    return result


def _tenant_of(series: Series) -> str:
    return series.name if series.dimension == READ_FROM else LabelValue.of(series.name).tenant


def _add_up(queries: UsageQueries, start: int, tenants: Sequence[str]) -> list[tuple[Series, HourSums]]:
    """Return the sums of the values with the highest spend, and the first value beyond their maximum."""
    # `day` may differ by one from the day of `created`.
    first_day, last_day = start // DAY_S - 1, (start + HOUR_S) // DAY_S + 1
    days = _C.day.between(first_day, last_day)
    labels = _labels_of(queries, start, tenants, [days] if is_partitioned(queries.connection, LABELS) else [])
    if not labels:
        return []
    cost = func.sum(_C.cost_pico)
    # Tenant, label and time select a range of the index.
    query = select(_C.tenant, _C.label, _C.value, func.sum(_C.requests), cost).where(
        days, _C.tenant.in_(tenants), _C.label.in_(labels), _C.created >= start, _C.created < start + HOUR_S
    )
    names = _C.tenant, _C.label, _C.value
    query = query.group_by(*names).order_by(cost.desc(), *names).limit(MAX_VALUES + 1)
    found = with_pauses(queries.connection.execute(query))
    return [
        (Series(LABEL, LabelValue(tenant, label, value).name), HourSums(int(requests), 0, int(cost_pico)))
        for tenant, label, value, requests, cost_pico in found
    ]


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
