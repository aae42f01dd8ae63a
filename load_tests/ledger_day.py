"""Write a day of receipts from the outboxes of a real Redis to SQLite, and measure the cost.

    PYTHONPATH=. python load_tests/ledger_day.py --help

Receipts are posted to outboxes in the order of a day that ends now. A usage worker in this process writes them. Then
the sums are compared with the receipts, and Chromium opens the dashboard of a gateway with that database
(ledger_views.py). Redis, the database and the gateway belong to this run and use temporary folders.
load_tests/usage_worker.py measures writes without Redis, load_tests/usage_reads.py reads without HTTP.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gateway.local.redis import EmbeddedRedis
from gateway.pricing import dollars
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.telemetry.metrics import Metrics
from gateway.usage.database_reader import DatabaseReader
from gateway.usage.feed import OutboxFeed
from gateway.usage.rollup import SumRow
from gateway.usage.state import WorkerLease
from gateway.usage.store import UsageStore
from gateway.usage.sums import Retention, periods
from gateway.usage.threads import QueryThreads
from gateway.usage.uptime_table import minutes_in_redis
from gateway.usage.verify import differences
from gateway.usage.worker import UsageWorker
from load_tests import ledger_views, markdown
from load_tests.day_receipts import DAY_S, day_of_receipts
from load_tests.machine import machine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from gateway.accounting.receipt import Receipt

# The defaults of config.yaml.
RETENTION = Retention(minute=6 * 3600, hour=14 * DAY_S, day=400 * DAY_S)
_AT_ONCE = 5_000


class Day:
    """A run over one day.

    Args:
        seat: an instance of a process that has joined.
    """

    def __init__(
        self, client: RedisClient, keys: RedisKeys, store: UsageStore, seat: WorkerLease, progress: Progress
    ) -> None:
        self.redis: Redis = client.commands
        self.keys = keys
        self.store = store
        self.feed = OutboxFeed(self.redis, keys, f"worker-{seat.number}")
        minutes = partial(minutes_in_redis, self.redis, keys.ledger())
        self.worker = UsageWorker(client, self.feed, store, seat, minutes, keep_s=None)
        self.progress = progress
        self.writing_s = self.writing_cpu_s = 0.0
        self.rounds_ms: list[float] = []
        self.cost_pico = 0
        self.now = time.time()

    async def write(self, count: int, tenants: int) -> None:
        """Post receipts, 5,000 at a time, and let the worker write them."""
        bar = self.progress.add_task("written", total=count)
        made = day_of_receipts(count, tenants, self.now)
        while some := list(itertools.islice(made, _AT_ONCE)):
            await self._post(some)
            await self._written()
            self.progress.update(bar, advance=len(some))

    async def _post(self, some: Sequence[Receipt]) -> None:
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.sadd(self.keys.ledger().tenants, *{one.tenant for one in some})
            for one in some:
                pipe.xadd(self.keys.outbox(one.tenant), {"receipt": one.to_json()})
            await pipe.execute()
        self.cost_pico += sum(int(one.cost_usd.scaleb(12)) for one in some)

    async def _written(self) -> None:
        began, cpu = time.perf_counter(), time.process_time()
        while (await self.feed.backlog()).waiting:
            round_began = time.perf_counter()
            await self.worker.round()
            self.rounds_ms.append((time.perf_counter() - round_began) * 1000)
        self.writing_s += time.perf_counter() - began
        self.writing_cpu_s += time.process_time() - cpu

    async def total(self) -> SumRow:
        """Return the sum of the day over all tenants."""
        threads, total = QueryThreads(self.store.engine.reading), SumRow()
        try:
            days = list(periods("day", self.now - DAY_S, self.now + 60))
            for _, row in await DatabaseReader(threads).totals(days):
                total.merge(row)
        finally:
            threads.close()
        return total

    def wrong_sums(self) -> int:
        """Return the number of sums that differ from the receipts."""
        days = range(int(self.now - DAY_S) // DAY_S, int(self.now) // DAY_S + 1)
        with self.store.engine.reading() as connection:
            return sum(1 for day in days for _ in differences(connection, day))


async def run(count: int, tenants: int, console: Console, *, views: bool = True) -> None:
    """Print the cost of a day. Raise typer.Exit with status 1 if a sum is wrong."""
    gc.collect()
    gc.freeze()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with TemporaryDirectory(prefix="ledger-day-") as folder:
        async with EmbeddedRedis() as server:
            client, keys = RedisClient(server.url, timeout_s=30, metrics=Metrics()), RedisKeys("day")
            await client.require()
            file = Path(folder, "usage.db")
            store = UsageStore(f"sqlite:///{file}", RETENTION)
            await store.open()
            seat = WorkerLease(client.commands, keys.ledger(), "day")
            await seat.join()
            with Progress(*columns, console=Console(stderr=True)) as progress:
                day = Day(client, keys, store, seat, progress)
                loads, empty = [load()], await used_bytes(day.redis)
                await day.write(count, tenants)
                loads.append(load())
                full, total = await used_bytes(day.redis), await day.total()
                wrong = await asyncio.to_thread(day.wrong_sums)
                written = await store.count()
                await store.close()
                file_bytes = sum(one.stat().st_size for one in file.parent.glob(f"{file.name}*"))
                shown = []
                if views:
                    shown = await ledger_views.opened(server.url, keys.prefix, Path(folder), progress)
                    loads.append(load())
            stats = (await day.redis.info("latencystats")).get("latency_percentiles_usec_evalsha", {})
            await client.close()
    right = (total.requests, total.cost_pico, written, wrong) == (count, day.cost_pico, count, 0)
    console.print(f"{machine()}\n")
    console.print(
        f"{count:,} receipts of {tenants} tenants, {dollars(total.cost_pico):f} USD: sums are "
        + ("right" if right else f"wrong: {wrong} differ, {written:,} receipts were written")
    )
    lines = [
        ("written, receipts/s", f"{count / day.writing_s:,.0f}"),
        ("CPU of the worker for each receipt, us", f"{day.writing_cpu_s / count * 1e6:.1f}"),
        (
            "rounds",
            f"{len(day.rounds_ms):,}, p50 {_part(day.rounds_ms, 0.5):.1f} ms, p99 {_part(day.rounds_ms, 0.99):.1f} ms",
        ),
        ("scripts in Redis", ", ".join(f"{name} {spent / 1000:.2f} ms" for name, spent in stats.items())),
        ("database", f"{file_bytes / 1e6:.0f} MB, {file_bytes / count:.0f} bytes for each receipt"),
        ("Redis before, after", f"{empty / 1e6:.1f} MB, {full / 1e6:.1f} MB"),
        *shown,
        ("load average of a minute, from step to step", ", ".join(loads)),
    ]
    console.print(markdown.table(("", ""), lines), soft_wrap=True)
    if not right:
        raise typer.Exit(1)


async def used_bytes(redis: Redis) -> int:
    """Return the memory that Redis uses."""
    return int((await redis.info("memory"))["used_memory"])


def load() -> str:
    """Return the load average of the machine."""
    return f"{os.getloadavg()[0]:.1f}"


def _part(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else 0.0


def main(
    receipts: Annotated[int, typer.Option(min=1_000, help="Receipts of the day.")] = 1_000_000,
    tenants: Annotated[int, typer.Option(min=1, max=10_000, help="Tenants. A few have most of the receipts.")] = 200,
    views: Annotated[bool, typer.Option(help="Also open the dashboard in Chromium.")] = True,
) -> None:
    """Write a day of receipts, and print the cost."""
    asyncio.run(run(receipts, tenants, Console(), views=views))


if __name__ == "__main__":
    typer.run(main)
