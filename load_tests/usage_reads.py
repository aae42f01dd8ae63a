"""Measure how fast usage is read from SQL: the first chart and the tables of the dashboard.

    PYTHONPATH=. python load_tests/usage_reads.py --help

The sums of one day of receipts are computed once and written for each of 30 days. Like the usage worker, the script
writes sums by the minute for 6 hours, by the hour for 14 days, and by the day. It writes receipts only for the last
minutes. Times include decoding, addition and JSON, without HTTP.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import ExitStack
from itertools import islice
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec.structs import replace
from rich.console import Console

from gateway.api.usage import encoded
from gateway.usage.database import UsageDatabase
from gateway.usage.database_reader import DatabaseReader
from gateway.usage.engine import UsageEngine
from gateway.usage.entries import OutboxEntry
from gateway.usage.reader import UsageReader
from gateway.usage.search import ReceiptSearch
from gateway.usage.span import RequestedRange, span
from gateway.usage.sql import sql_of
from gateway.usage.sums import ALL_TENANTS, SECONDS, Retention, Sums
from gateway.usage.tables import DAY_S
from gateway.usage.threads import QueryThreads
from gateway.usage.usage import UsageQuery
from load_tests import markdown
from load_tests.day_receipts import day_of_receipts
from load_tests.machine import machine
from tests.postgres import running_postgres

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from gateway.accounting.receipt import Receipt

RETENTION = Retention(minute=6 * 3600, hour=14 * DAY_S, day=400 * DAY_S)
DAYS = 30
_RECEIPTS = 5_000
_ROWS_AT_ONCE = 5_000
_RANGES: dict[str, tuple[int, Any]] = {"24h": (DAY_S, "hour"), "7d": (7 * DAY_S, "hour"), "30d": (30 * DAY_S, "day")}
_TICK_S = 0.001


class Reads:
    """A usage database and its readers."""

    def __init__(self, address: str) -> None:
        self.engine = UsageEngine(address)
        self.engine.open()
        self.threads = QueryThreads(self.engine.reading)
        self.reader = DatabaseReader(self.threads)

    def fill(self, rows: Iterator[tuple[Any, ...]], receipts: list[Receipt]) -> int:
        """Write sums and receipts. Return the number of sums."""
        count = 0
        with self.engine.writing() as connection:
            sql = sql_of(connection)
            while some := list(islice(rows, _ROWS_AT_ONCE)):
                sql.put_sums(some)
                count += len(some)
        database = UsageDatabase(self.engine, RETENTION)
        database.add(OutboxEntry(one.tenant, "1-0", one.to_json()) for one in receipts)
        with self.engine.writing() as connection:
            connection.exec_driver_sql("ANALYZE")
        return count

    def close(self) -> None:
        self.threads.close()
        self.engine.close()


def day_of_sums(receipts: int, tenants: int, now: float) -> Sums:
    """Return the sums of a UTC day. The last hours before `now` have sums by the minute."""
    sums = Sums()
    today = int(now) // DAY_S * DAY_S
    for one in day_of_receipts(receipts, tenants, now):
        created = today + one.created % DAY_S
        within = now - RETENTION.minute - 60 < created <= now
        sums.add(replace(one, created=created), finest="minute" if within else "hour")
    return sums.spread()


def made_rows(sums: Sums, now: float) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of `DAYS` days up to now: the rows of one day, moved to each of them."""
    stored = [
        ((SECONDS[period.granularity], period.start), tuple(where), row.to_bytes())
        for period, rows in sums.rows.items()
        for where, row in rows.items()
    ]
    stored += [
        ((SECONDS[period.granularity], period.start), (ALL_TENANTS, "", "", "", "", ""), row.to_bytes())
        for period, row in sums.totals.items()
    ]
    stored.sort()
    for name, length in SECONDS.items():
        for back in range(DAYS, -1, -1):
            for (seconds, start), where, row in stored:
                moved = start - back * DAY_S
                if seconds == length and now - RETENTION.of(name) < moved + seconds and moved <= now:
                    yield (seconds, moved, *where, row)


async def timed(read: Callable[[], Awaitable[Any]], times: int) -> tuple[list[float], list[float], float]:
    """Return how long each call took, its CPU time, and the longest time that the event loop was held, in ms.

    The time that the loop was held is its thread's CPU time between two ticks, so other processes do not change it.
    """
    held = 0.0
    took, spent = [], []

    async def tick() -> None:
        nonlocal held
        while True:
            began = time.thread_time()
            await asyncio.sleep(_TICK_S)
            held = max(held, time.thread_time() - began)

    ticking = asyncio.get_running_loop().create_task(tick())
    for _ in range(times):
        began, computed = time.perf_counter(), time.process_time()
        await read()
        took.append((time.perf_counter() - began) * 1000)
        spent.append((time.process_time() - computed) * 1000)
    ticking.cancel()
    return took, spent, held * 1000


class Lines:
    """The lines of a table, one for each kind of read."""

    def __init__(self, reads: Reads, times: int) -> None:
        self.reads = reads
        self.times = times
        self.lines: list[tuple[str, str]] = []

    async def add(self, name: str, read: Callable[[], Awaitable[Any]], times: int | None = None) -> None:
        took, spent, held = await timed(read, times or self.times)
        shown = f"p50 {statistics.median(took):,.1f} ms, the first {took[0]:,.1f} ms, at most {max(took):,.1f} ms"
        self.lines.append((name, f"{shown}; CPU {statistics.median(spent):,.1f} ms; loop held {held:.1f} ms at most"))

    async def usage(self, name: str, length_s: int, granularity: Any, *by: str, **only: str) -> None:
        """Measure a usage query with a new reader each time, then with a reader that caches parts."""

        async def ask(reader: UsageReader) -> None:
            now = time.time()
            covered = span(RequestedRange(now - length_s, now), granularity, RETENTION, now)
            await reader.read(UsageQuery(covered, granularity, by, only), encoded)

        keeps = "tenant" in by
        await self.add(name, lambda: ask(UsageReader(self.reads.reader, RETENTION)), 3 if keeps else None)
        if keeps:
            reader = UsageReader(self.reads.reader, RETENTION)
            await ask(reader)
            await self.add(f"{name}, asked again", lambda: ask(reader))


async def measured(reads: Reads, times: int) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    lines, sums = Lines(reads, times), reads.reader
    for name, (length_s, granularity) in _RANGES.items():
        await lines.usage(f"chart of {name}", length_s, granularity)
    for name, (length_s, granularity) in _RANGES.items():
        await lines.usage(f"chart of one tenant, {name}", length_s, granularity, tenant="tenant-000")
    for name, (length_s, _) in _RANGES.items():
        await lines.usage(f"table by tenant, {name}", length_s, None, "tenant")
    await lines.add("50 newest receipts", lambda: sums.search(ReceiptSearch(), 50))
    await lines.add("50 newest receipts of a large tenant", lambda: sums.search(ReceiptSearch(tenant="tenant-000"), 50))
    await lines.add("50 newest receipts of a small tenant", lambda: sums.search(ReceiptSearch(tenant="tenant-199"), 50))
    return lines.lines


def main(
    receipts: Annotated[int, typer.Option(min=1_000, help="Receipts of a day.")] = 1_000_000,
    tenants: Annotated[int, typer.Option(min=1, max=10_000, help="Tenants. A few have most of the receipts.")] = 200,
    times: Annotated[int, typer.Option(min=1, help="Calls of each read.")] = 20,
    kinds: Annotated[str, typer.Option(help="Databases, separated by commas.")] = "sqlite,postgresql",
) -> None:
    """Write sums of 30 days to each database and print how long reads take."""
    console, now = Console(), time.time()
    sums = day_of_sums(receipts, tenants, now)
    last = list(day_of_receipts(_RECEIPTS, tenants, now))
    console.print(f"{machine()}\n")
    for kind in kinds.split(","):
        with ExitStack() as stack:
            if kind == "sqlite":
                folder = stack.enter_context(TemporaryDirectory(prefix="usage-reads-"))
                address = f"sqlite:///{folder}/usage.db"
            else:
                server = stack.enter_context(running_postgres())
                address = server.url.replace("postgresql:", "postgresql+psycopg:", 1)
            reads = Reads(address)
            stack.callback(reads.close)
            rows = reads.fill(made_rows(sums, now), last)
            lines = asyncio.run(measured(reads, times))
            console.print(f"{kind}: {receipts:,} receipts of {tenants} tenants a day, {rows:,} rows of sums")
            console.print(markdown.table(("", ""), lines), soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
