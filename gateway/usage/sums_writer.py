"""Add sums to those in the database, within the transaction of the caller."""

from __future__ import annotations

from collections import defaultdict
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from gateway.usage.rollup import Dims, Row, merge_in
from gateway.usage.sql import Place, SumKey, sql_of
from gateway.usage.sums import ALL_TENANTS, OTHER, SECONDS

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from gateway.usage.sql import Sql
    from gateway.usage.sums import Period, Sums


TOTAL = Dims(ALL_TENANTS, "", "", "", "", "")
"""The dimensions of the sums over all tenants."""


def add_sums(connection: Connection, sums: Sums, max_rows: int) -> None:
    """Add sums that have been spread.

    Args:
        max_rows: sums of one tenant and period that are kept apart by key and route; others count together.
    """
    rows: dict[SumKey, Row] = {}
    for period, by_dims in sums.rows.items():
        for dims, row in by_dims.items():
            rows[key_of(period, dims)] = row
        rows[key_of(period, TOTAL)] = sums.totals[period]
    if not rows:
        return
    sql = sql_of(connection)
    held = sql.held_sums([key for key in rows if key[2] == ALL_TENANTS])
    known = {key[:2] for key in held}  # periods without a total have no other sums
    held |= sql.held_sums(sorted(key for key in rows if key[:2] in known and key[2] != ALL_TENANTS))
    held |= _fold(sql, rows, held, known, max_rows)
    for key, raw in held.items():
        row = Row.from_bytes(raw)
        row.merge(rows[key])
        rows[key] = row
    # A true receipt that replaces an abandoned one may leave nothing of a sum.
    gone = [key for key, row in rows.items() if not row.counts]
    for key in gone:
        del rows[key]
    sql.put_sums([(*key, row.to_bytes()) for key, row in sorted(rows.items(), key=itemgetter(0))])
    sql.delete_sums([key for key in gone if key in held])


def _fold(
    sql: Sql, rows: dict[SumKey, Row], held: dict[SumKey, bytes], known: set[tuple[int, int]], max_rows: int
) -> dict[SumKey, bytes]:
    """Merge new sums beyond `max_rows` with those of other keys and routes. Return the latter that are there."""
    new: dict[Place, list[SumKey]] = defaultdict(list)
    for key in rows:
        if key not in held and key[2] != ALL_TENANTS and key[3] != OTHER:
            new[key[:3]].append(key)
    counts = sql.count_sums([place for place in new if place[:2] in known], OTHER, max_rows)
    others: dict[SumKey, None] = {}
    for place, keys in new.items():
        for key in keys[max(0, max_rows - counts.get(place, 0)) :]:
            other: Any = (*place, OTHER, OTHER, *key[5:])
            merge_in(rows, other, rows.pop(key))
            others[other] = None
    return sql.held_sums([key for key in others if key not in held])


def key_of(period: Period, dims: Dims) -> SumKey:
    """Return the primary key of a sum."""
    return (SECONDS[period.granularity], period.start, *dims)
