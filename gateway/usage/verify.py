"""Compare the sums in the database with sums recomputed from its receipts."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from sqlalchemy import select

from gateway.accounting.receipt import Receipt
from gateway.usage.packing import unpack
from gateway.usage.rollup import SumDimensions, SumRow, merge_in
from gateway.usage.sums import OTHER, SECONDS, Sums
from gateway.usage.sums_writer import TOTAL
from gateway.usage.tables import DAY_S, RECEIPTS, SUMS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

SumPlace: TypeAlias = tuple[int, int, SumDimensions]
"""Length and start of a period, and the dimensions of a sum."""

_ROWS_AT_ONCE = 1_000


def differences(connection: Connection, day: int) -> Iterator[tuple[SumPlace, SumRow, SumRow]]:
    """Yield the sums of a day (since the Unix epoch) that differ from its receipts: key, stored and recomputed sum.

    If some keys and routes of a tenant are summed as `OTHER`, all of them are compared together. Periods with expired
    sums are skipped: those before the first sum of the same length. All receipts of the day must be present. The
    transaction must not see concurrent changes (REPEATABLE READ).
    """
    begin, end = day * DAY_S, (day + 1) * DAY_S
    held: dict[SumPlace, SumRow] = {}
    in_day = (SUMS.c.start >= begin, SUMS.c.start < end)
    for seconds, start, *dims, row in connection.execute(select(SUMS).where(*in_day)):
        held[seconds, start, SumDimensions(*dims)] = SumRow.from_bytes(row)
    first: dict[int, int] = {}
    for seconds, start, _ in held:
        first[seconds] = min(start, first.get(seconds, start))
    expected = {key: row for key, row in _recomputed(connection, day) if key[1] >= first.get(key[0], end)}
    folded = {(seconds, start, dims.tenant) for seconds, start, dims in held if dims.key == OTHER}
    held, expected = _merged(held, folded), _merged(expected, folded)
    for key in sorted({*held, *expected}):
        stored, recomputed = held.get(key, SumRow()), expected.get(key, SumRow())
        if stored != recomputed:
            yield key, stored, recomputed


def _recomputed(connection: Connection, day: int) -> Iterator[tuple[SumPlace, SumRow]]:
    sums = Sums()
    query = select(RECEIPTS.c.receipt).where(
        RECEIPTS.c.day.between(day - 1, day + 1),  # `day` may differ by one from the day of `created`
        RECEIPTS.c.created >= day * DAY_S,
        RECEIPTS.c.created < (day + 1) * DAY_S,
    )
    for packed in connection.execution_options(yield_per=_ROWS_AT_ONCE).scalars(query):
        sums.add(Receipt.from_json(unpack(packed)))
    sums.spread()
    for period, by_dims in sums.rows.items():
        for dims, row in by_dims.items():
            yield (SECONDS[period.granularity], period.start, dims), row
        yield (SECONDS[period.granularity], period.start, TOTAL), sums.totals[period]


def _merged(rows: dict[SumPlace, SumRow], folded: set[tuple[int, int, str]]) -> dict[SumPlace, SumRow]:
    merged: dict[SumPlace, SumRow] = {}
    for (seconds, start, dims), row in rows.items():
        if (seconds, start, dims.tenant) in folded:
            dims = dims._replace(key=OTHER, route=OTHER)  # noqa: PLW2901
        merge_in(merged, (seconds, start, dims), row)
    return merged
