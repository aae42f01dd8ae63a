"""Add sums to the sums in the database, and write those that it lacks, within the caller's transaction."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import delete

from gateway.usage.rollup import SumDimensions, SumRow, merge_in
from gateway.usage.sql import SumKey, TenantPeriod, sql_of
from gateway.usage.sums import ALL_TENANTS, OTHER, SECONDS, Period
from gateway.usage.tables import SUMS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

    from gateway.usage.sql import UsageSql
    from gateway.usage.sums import Sums


TOTAL = SumDimensions(ALL_TENANTS, "", "", "", "", "")
"""The dimensions of the sums over all tenants."""

PeriodSums: TypeAlias = "Mapping[SumDimensions, bytes]"
"""All encoded sums of a period, including `TOTAL`."""


def add_sums(connection: Connection, sums: Sums, max_rows: int) -> None:
    """Add `sums`, after `Sums.spread`, to the database.

    If a tenant and period has more than `max_rows` sums, those of further keys and routes are added to the key `OTHER`.
    """
    rows = _by_key(sums)
    if not rows:
        return
    sql = sql_of(connection)
    held = sql.held_sums([key for key in rows if key[2] == ALL_TENANTS])
    known = {key[:2] for key in held}  # a period without a total has no other sums
    held |= sql.held_sums([key for key in rows if key[2] != ALL_TENANTS and key[:2] in known])
    held |= _fold(sql, rows, held, known, max_rows)
    changed, emptied = [], []
    for key, row in rows.items():
        if (raw := held.get(key)) is not None:
            new, row = row, SumRow.from_bytes(raw)  # noqa: PLW2901
            row.merge(new)
        if row:
            changed.append((*key, row.to_bytes()))
        elif raw is not None:  # replacing an abandoned receipt may empty a sum
            emptied.append(key)
    sql.put_sums(changed)
    sql.delete_sums(emptied)


def _by_key(sums: Sums) -> dict[SumKey, SumRow]:
    """Return the sums in key order, the fastest order to write."""
    rows: dict[SumKey, SumRow] = {}
    # Many periods have the same dimensions: compare their strings only once.
    ranks = {dims: rank for rank, dims in enumerate(sorted({*chain.from_iterable(sums.rows.values())}))}
    for start, period in sorted((_start_of(period), period) for period in sums.rows):
        rows[start + TOTAL] = sums.totals[period]
        of_period = sums.rows[period]
        rows |= {start + dims: of_period[dims] for dims in sorted(of_period, key=ranks.__getitem__)}
    return rows


def _fold(
    sql: UsageSql, rows: dict[SumKey, SumRow], held: dict[SumKey, bytes], known: set[tuple[int, int]], max_rows: int
) -> dict[SumKey, bytes]:
    """Merge new sums beyond `max_rows` into sums with the key `OTHER`. Return the stored sums with that key."""
    new: dict[TenantPeriod, list[SumKey]] = defaultdict(list)
    for key in rows:
        if key not in held and key[2] != ALL_TENANTS and key[3] != OTHER:
            new[key[:3]].append(key)
    counts = sql.count_sums([period for period in new if period[:2] in known], OTHER, max_rows)
    others: dict[SumKey, None] = {}
    for period, keys in new.items():
        for key in keys[max(0, max_rows - counts.get(period, 0)) :]:
            other: Any = (*period, OTHER, OTHER, *key[5:])
            merge_in(rows, other, rows.pop(key))
            others[other] = None
    return sql.held_sums([key for key in others if key not in held])


def key_of(period: Period, dims: SumDimensions) -> SumKey:
    """Return the primary key of a sum."""
    return _start_of(period) + dims


def _start_of(period: Period) -> tuple[int, int]:
    return (SECONDS[period.granularity], period.start)


def fill_sums(
    connection: Connection, sums: Mapping[Period, PeriodSums], closed: float = math.inf, first: float = math.inf
) -> int:
    """Write sums of periods whose receipts the database lacks.

    In a closed period, the larger sums are the complete ones, and replace the smaller. An open period has receipts on
    both sides: only parts before the first receipt in the database are written, and added to longer periods.

    Args:
        sums: periods of all lengths, or of one length. A call with a day includes its hours and minutes.
        closed: Unix seconds. A period that ended before this time gets no new receipts.
        first: time of the request of the first receipt in the database, in Unix seconds.

    Returns the number of periods that were written. Raises SQLAlchemyError.
    """
    sql = sql_of(connection)
    held = sql.held_sums([key_of(period, TOTAL) for period in sums])
    missing = {period for period in sums if key_of(period, TOTAL) not in held and end_of(period) <= max(closed, first)}
    larger = {
        period
        for period in sums
        if (total := held.get(key_of(period, TOTAL)))
        and end_of(period) <= closed
        and _size(sums[period][TOTAL]) > _size(total)
    }
    added: dict[SumKey, SumRow] = {}
    for period in missing | larger:
        of_period = (SUMS.c.seconds == SECONDS[period.granularity], SUMS.c.start == period.start)
        connection.execute(delete(SUMS).where(*of_period))
        sql.put_sums([(*key_of(period, dims), raw) for dims, raw in sums[period].items()])
    for period in (candidate for candidate in missing if end_of(candidate) <= first):
        longer = [name for name, seconds in SECONDS.items() if seconds > SECONDS[period.granularity]]
        for wider in (Period.of(name, period.start) for name in longer):
            if wider not in sums or wider in missing or end_of(wider) <= closed:
                break
            for dims, raw in sums[period].items():
                added.setdefault(key_of(wider, dims), SumRow()).merge(SumRow.from_bytes(raw))
    for key, raw in sql.held_sums(list(added)).items():
        added[key].merge(SumRow.from_bytes(raw))
    sql.put_sums([(*key, row.to_bytes()) for key, row in added.items()])
    return len(missing | larger)


def end_of(period: Period) -> int:
    """Return the end of a period in Unix seconds."""
    return period.start + SECONDS[period.granularity]


def _size(raw: bytes) -> tuple[int, int, int]:
    row = SumRow.from_bytes(raw)
    tokens = (row.teacher, row.student, row.failed)
    return row.requests, row.cost_pico, sum(of_role.read + of_role.output for of_role in tokens)
