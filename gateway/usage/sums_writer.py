"""Add sums to the sums in the database, within the caller's transaction."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from typing import TYPE_CHECKING, Any

from gateway.usage.rollup import SumDimensions, SumRow, merge_in
from gateway.usage.sql import SumKey, TenantPeriod, sql_of
from gateway.usage.sums import ALL_TENANTS, OTHER, SECONDS, Period

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from gateway.usage.sql import UsageSql
    from gateway.usage.sums import Sums


TOTAL = SumDimensions(ALL_TENANTS, "", "", "", "", "")
"""The dimensions of the sums over all tenants."""


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
