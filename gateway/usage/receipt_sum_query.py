"""Add up the rows of tags and labels in the usage database. All calls block: use threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, case, func, literal, select

from gateway.policy.labels import NONE
from gateway.usage.receipt_sums import COLUMNS, LABEL, SUMS, TAG, ReceiptSum, label_in
from gateway.usage.sums import OTHER, SECONDS
from gateway.usage.tables import DAY_S, LABELS, TAGS
from gateway.usage.threads import with_pauses
from gateway.usage.usage import MAX_ROWS, MAX_TAG_ROWS, too_large

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

    from gateway.usage.span import UsageSpan
    from gateway.usage.sums import Granularity


def receipt_sums(
    connection: Connection,
    when: UsageSpan,
    by: Sequence[str],
    only: Mapping[str, str],
    granularity: Granularity | None = None,
) -> list[ReceiptSum]:
    """Return the sums by dimensions, the highest cost first, or by period. `only` has required values by dimension.

    One of the dimensions is a tag or a label. A receipt without another label of the query has the value `(none)`.
    Without periods, sums beyond MAX_ROWS are one sum, called OTHER: a tenant with many values does not prevent reports
    of all tenants. Raises InvalidRequest if there are too many rows to add up, or too many periods.
    """
    selected = _selected(when, by, only, granularity)
    added = selected.limit(MAX_TAG_ROWS + 1).subquery().c
    groups = [added[f"d{index}"] for index in range(len(by))]
    starts = [] if granularity is None else [added["start"]]
    sums = [func.sum(added[name]).label(name) for name in SUMS]
    if granularity is not None or not by:
        query = select(*starts, *groups, *sums, func.count()).group_by(*starts, *groups)
        query = query.order_by(*starts, func.sum(added.cost_pico).desc(), *groups).limit(MAX_ROWS + 1)
    else:
        rank = func.row_number().over(order_by=(func.sum(added.cost_pico).desc(), *groups)).label("rank")
        ranked = select(*groups, *sums, func.count().label("added"), rank).group_by(*groups).subquery().c
        shown = [case((ranked.rank <= MAX_ROWS, ranked[one.name]), else_=OTHER).label(one.name) for one in groups]
        folded = select(*shown, *(ranked[name] for name in (*SUMS, "added", "rank"))).subquery().c
        names = [folded[one.name] for one in groups]
        totals = [func.sum(folded[name]) for name in (*SUMS, "added")]
        query = select(*names, *totals).group_by(*names).order_by(func.min(folded.rank))
    rows = [*with_pauses(connection.execute(query))]
    if sum(row[-1] for row in rows) > MAX_TAG_ROWS:
        raise too_large(f"it would have to add up more than {MAX_TAG_ROWS:,} tags or labels of requests")
    if granularity is not None and len(rows) > MAX_ROWS:
        raise too_large(f"the result would have more than {MAX_ROWS:,} rows")
    return [_sum_of(row, len(by), len(starts)) for row in with_pauses(rows) if row[-1]]


def _sum_of(row: Any, names: int, starts: int) -> ReceiptSum:
    *fields, _ = row
    start = int(fields[0]) if starts else None
    return ReceiptSum(tuple(fields[starts : starts + names]), tuple(map(int, fields[starts + names :])), start)


def _selected(when: UsageSpan, by: Sequence[str], only: Mapping[str, str], granularity: Granularity | None) -> Any:
    """Return the rows to add up, with columns `d0`, `d1` and so on for the dimensions, `start`, and the sums."""
    labels = list(dict.fromkeys(name for dimension in (*only, *by) if (name := label_in(dimension)) is not None))
    base: Any
    values: dict[str, Any]
    if TAG in by or not labels:
        base, values, conditions = TAGS, {TAG: TAGS.c.tag}, []
    else:
        base, (first, *labels) = LABELS.alias("l0"), labels
        values, conditions = {f"{LABEL}{first}": base.c.value}, [base.c.label == first]
    # `day` may differ by one from the day of `created`.
    first_day, last_day = when.since // DAY_S - 1, when.until // DAY_S + 1
    joined: Any = base
    for index, name in enumerate(labels, 1):
        other = LABELS.alias(f"l{index}")
        same = and_(*(other.c[column] == base.c[column] for column in ("day", "id", "tenant")), other.c.label == name)
        # The equal days of both tables do not select the partitions of the other one.
        joined = joined.outerjoin(other, and_(same, other.c.day.between(first_day, last_day)))
        values[f"{LABEL}{name}"] = func.coalesce(other.c.value, literal(NONE))
    values |= {name: base.c[name] for name in COLUMNS}
    columns = [values[dimension].label(f"d{index}") for index, dimension in enumerate(by)]
    if granularity is not None:
        seconds = SECONDS[granularity]
        columns.append((base.c.created - base.c.created % seconds).label("start"))
    query = select(*columns, *(base.c[name] for name in SUMS)).select_from(joined)
    days = base.c.day.between(first_day, last_day)
    required = [values[dimension] == value for dimension, value in only.items()]
    return query.where(days, base.c.created >= when.since, base.c.created < when.until, *conditions, *required)
