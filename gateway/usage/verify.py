"""Compare the sums in the database with sums that are computed anew from its receipts."""

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

Place: TypeAlias = tuple[int, int, SumDimensions]
"""Length and start of a period, and the dimensions of a sum."""

_ROWS_AT_ONCE = 1_000


def differences(connection: Connection, day: int) -> Iterator[tuple[Place, SumRow, SumRow]]:
    """Yield the sums of a day that differ from its receipts: the place, the sum in the database and the right one.

    Keys and routes are compared together where some of them count as others. Periods whose sums were deleted by
    retention are left out: those before the first sum of the same length. All receipts of the day must be kept. The
    connection must not see changes meanwhile (REPEATABLE READ).

    Args:
        day: days since the Unix epoch.
    """
    begin, end = day * DAY_S, (day + 1) * DAY_S
    held: dict[Place, SumRow] = {}
    in_day = (SUMS.c.start >= begin, SUMS.c.start < end)
    for seconds, start, *dims, row in connection.execute(select(SUMS).where(*in_day)):
        held[seconds, start, SumDimensions(*dims)] = SumRow.from_bytes(row)
    first: dict[int, int] = {}
    for seconds, start, _ in held:
        first[seconds] = min(start, first.get(seconds, start))
    right = {place: row for place, row in _computed(connection, day) if place[1] >= first.get(place[0], end)}
    folded = {(seconds, start, dims.tenant) for seconds, start, dims in held if dims.key == OTHER}
    held, right = _together(held, folded), _together(right, folded)
    for place in sorted({*held, *right}):
        there, computed = held.get(place, SumRow()), right.get(place, SumRow())
        if there != computed:
            yield place, there, computed


def _computed(connection: Connection, day: int) -> Iterator[tuple[Place, SumRow]]:
    sums = Sums()
    wanted = select(RECEIPTS.c.receipt).where(
        RECEIPTS.c.day.between(day - 1, day + 1),  # the day of an id may be next to that of `created`
        RECEIPTS.c.created >= day * DAY_S,
        RECEIPTS.c.created < (day + 1) * DAY_S,
    )
    for packed in connection.execution_options(yield_per=_ROWS_AT_ONCE).scalars(wanted):
        sums.add(Receipt.from_json(unpack(packed)))
    sums.spread()
    for period, by_dims in sums.rows.items():
        for dims, row in by_dims.items():
            yield (SECONDS[period.granularity], period.start, dims), row
        yield (SECONDS[period.granularity], period.start, TOTAL), sums.totals[period]


def _together(rows: dict[Place, SumRow], folded: set[tuple[int, int, str]]) -> dict[Place, SumRow]:
    merged: dict[Place, SumRow] = {}
    for (seconds, start, dims), row in rows.items():
        if (seconds, start, dims.tenant) in folded:
            dims = dims._replace(key=OTHER, route=OTHER)  # noqa: PLW2901
        merge_in(merged, (seconds, start, dims), row)
    return merged
