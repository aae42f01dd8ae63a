"""Back up and restore the usage database: receipts, comparisons, uptime, and sums without receipts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from gateway.backup.records import IncompleteSums, ReceiptRecords, TableRows
from gateway.quality.comparison import Comparison
from gateway.usage.database import add_comparisons
from gateway.usage.entries import OutboxEntry
from gateway.usage.queries import UsageQueries
from gateway.usage.rollup import SumDimensions
from gateway.usage.sums import SECONDS, Period
from gateway.usage.sums_writer import fill_sums
from gateway.usage.tables import COMPARISONS, DAY_S, SUMS, UPTIME
from gateway.usage.uptime_table import EngineMinutes, add_minutes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from sqlalchemy import Table

    from gateway.backup.records import Record
    from gateway.usage.store import UsageStore

_ROWS_PER_RECORD = 2_000
_SETTLED_S = 3_600


async def usage_records(store: UsageStore, made_s: int, on_progress: Callable[[int], None]) -> AsyncIterator[Record]:
    """Yield the records of the usage database. Raises UsageDatabaseError.

    A restore recomputes sums from receipts, so only sums of periods with missing receipts are records. These are the
    periods up to the day of the first receipt that ended at least an hour ago.

    `made_s` is the time of the backup in Unix seconds. `on_progress` receives the number of receipts read.
    """
    span, done = await store.read(UsageQueries.span), 0
    async for batch in store.receipts():
        yield ReceiptRecords([("", "", raw) for raw in batch])
        done += len(batch)
        on_progress(done)
    if unreadable := await store.read(UsageQueries.unreadable):
        yield ReceiptRecords([(entry.tenant, entry.id, entry.raw) for entry in unreadable])
    for table in (COMPARISONS, UPTIME):
        for day in await store.read(_days, table):
            rows = await store.read(_rows, table, day)
            for start in range(0, len(rows), _ROWS_PER_RECORD):
                yield TableRows(str(table.name), rows[start : start + _ROWS_PER_RECORD])
    first_day_end = math.inf if span is None else (span[0] // DAY_S + 1) * DAY_S
    for seconds in SECONDS.values():
        for start in await store.read(_starts, seconds, min(first_day_end, made_s - _SETTLED_S - seconds + 1)):
            yield IncompleteSums(seconds, start, await store.read(_sums, seconds, start))


async def put_usage(store: UsageStore, record: ReceiptRecords | TableRows | IncompleteSums) -> None:
    """Add a record to the usage database. Raises UsageDatabaseError."""
    match record:
        case ReceiptRecords(receipts):
            await store.write([OutboxEntry(*receipt) for receipt in receipts])
        case TableRows("usage_comparisons", rows):
            await store.change(add_comparisons, [Comparison(*row[1:]) for row in rows])
        case TableRows(_, rows):
            await store.change(add_minutes, [EngineMinutes(*row) for row in rows])
        case IncompleteSums(seconds, start, rows):
            granularity = next(name for name, length in SECONDS.items() if length == seconds)
            sums = {SumDimensions(*dims): raw for dims, raw in rows}
            await store.change(fill_sums, {Period(granularity, start): sums})


def _days(queries: UsageQueries, table: Table) -> Sequence[int]:
    return queries.connection.scalars(select(table.c.day).distinct().order_by(table.c.day)).all()


def _rows(queries: UsageQueries, table: Table, day: int) -> list[list[Any]]:
    return [list(row) for row in queries.connection.execute(select(table).where(table.c.day == day))]


def _starts(queries: UsageQueries, seconds: int, before: float) -> Sequence[int]:
    query = select(SUMS.c.start).distinct().where(SUMS.c.seconds == seconds, SUMS.c.start < before)
    return queries.connection.scalars(query.order_by(SUMS.c.start)).all()


def _sums(queries: UsageQueries, seconds: int, start: int) -> list[tuple[Any, bytes]]:
    rows = queries.connection.execute(select(SUMS).where(SUMS.c.seconds == seconds, SUMS.c.start == start))
    return [(tuple(dims), raw) for _, _, *dims, raw in rows]
