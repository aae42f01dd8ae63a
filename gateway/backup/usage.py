"""Back up and restore the usage database: receipts, comparisons, uptime, and sums without receipts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from gateway.backup.records import IncompleteSums, ReceiptRecords, TableRows
from gateway.quality.comparison import Comparison
from gateway.quality.outcome import Outcome
from gateway.usage.database import add_comparisons, add_outcomes
from gateway.usage.entries import OutboxEntry, batched
from gateway.usage.queries import UsageQueries
from gateway.usage.rollup import SumDimensions
from gateway.usage.sums import SECONDS, Period
from gateway.usage.sums_writer import fill_sums
from gateway.usage.tables import COMPARISONS, DAY_S, OUTCOME_ROWS, SUMS, UPTIME
from gateway.usage.uptime_table import EngineMinutes, add_minutes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from sqlalchemy import Column, ColumnElement, Table

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
    for table in (COMPARISONS, OUTCOME_ROWS, UPTIME):
        for day in await store.read(_distinct, table.c.day):
            for rows in batched(await store.read(_rows, table, table.c.day == day), _ROWS_PER_RECORD):
                yield TableRows(str(table.name), list(rows))
    first_day_end = math.inf if span is None else (span[0] // DAY_S + 1) * DAY_S
    for seconds in SECONDS.values():
        before = min(first_day_end, made_s - _SETTLED_S - seconds + 1)
        for start in await store.read(_distinct, SUMS.c.start, SUMS.c.seconds == seconds, SUMS.c.start < before):
            sums = await store.read(_rows, SUMS, SUMS.c.seconds == seconds, SUMS.c.start == start)
            yield IncompleteSums(seconds, start, [(tuple(dims), raw) for _, _, *dims, raw in sums])


async def put_usage(store: UsageStore, record: ReceiptRecords | TableRows | IncompleteSums) -> None:
    """Add a record to the usage database. Raises UsageDatabaseError."""
    match record:
        case ReceiptRecords(receipts):
            await store.write([OutboxEntry(*receipt) for receipt in receipts])
        case TableRows("usage_comparisons", rows):
            await store.change(add_comparisons, [Comparison(*row[1:]) for row in rows])
        case TableRows("usage_outcomes", rows):
            await store.change(add_outcomes, [Outcome(*row[1:]) for row in rows])
        case TableRows(_, rows):
            await store.change(add_minutes, [EngineMinutes(*row) for row in rows])
        case IncompleteSums(seconds, start, rows):
            granularity = next(name for name, length in SECONDS.items() if length == seconds)
            sums = {SumDimensions(*dims): raw for dims, raw in rows}
            await store.change(fill_sums, {Period(granularity, start): sums})


def _distinct(queries: UsageQueries, column: Column[int], *where: ColumnElement[bool]) -> Sequence[int]:
    return queries.connection.scalars(select(column).distinct().where(*where).order_by(column)).all()


def _rows(queries: UsageQueries, table: Table, *where: ColumnElement[bool]) -> list[list[Any]]:
    return [list(row) for row in queries.connection.execute(select(table).where(*where))]
