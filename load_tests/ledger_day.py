"""A day of receipts, added up into a real Redis as fast as one process can: what it costs, and how fast it is read.

    PYTHONPATH=. python load_tests/ledger_day.py --help

Receipts are posted to outboxes as they are settled, in the order of a day that ends now. They are added up by the
roller with the janitor beside it, as in a gateway, and archived in SQLite. Meanwhile a clock ticks on the same event
loop: what is computed between two ticks is how long the loop was held. Then all rows are made anew from the archive,
and compared one by one with those that were there; and the dashboard of a gateway with that Redis is opened in Chromium
(ledger_views.py). Redis, the archive and the gateway are this run's alone, in temporary folders. It ends by itself.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gateway.archive.archive import Archive
from gateway.archive.database import Where
from gateway.archive.feed import ArchiveFeed
from gateway.local.redis import EmbeddedRedis
from gateway.metrics import Metrics
from gateway.redis_client import RedisClient
from gateway.redis_keys import RedisKeys
from gateway.rollups.janitor import Janitor
from gateway.rollups.rebuild import Rebuild
from gateway.rollups.roller import Roller
from gateway.rollups.rollup import Row, usd
from gateway.rollups.rollups import SECONDS, Retention, Rollups, periods
from gateway.rollups.state import LedgerState
from gateway.usage.reader import UsageReader
from gateway.usage.span import Asked, span
from gateway.usage.usage import Ask, Usage
from load_tests import ledger_views, markdown
from load_tests.day_receipts import DAY_S, day_of_receipts
from load_tests.machine import machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from redis.asyncio import Redis

    from gateway.ledger.receipt import Receipt
    from gateway.rollups.rollups import Period

# As config.yaml has them.
RETENTION = Retention(minute=6 * 3600, hour=14 * DAY_S, day=400 * DAY_S)
_AT_ONCE = 5_000
_ARCHIVED_AT_ONCE = 1_000
_TICK_S = 0.001
_READS = 5
FIRST_TABLE = "usage by tenant, 24 h, as GET /usage: the first time"


@dataclass(slots=True)
class Held:
    """What the loop's thread computed between two ticks of a clock, in milliseconds of CPU: a tick cannot come sooner.

    Other programs do not change it, as they would how late the clock ticks.
    """

    late_ms: list[float] = field(default_factory=list)

    async def tick(self) -> None:
        while True:
            asked = time.thread_time()
            await asyncio.sleep(_TICK_S)
            self.late_ms.append((time.thread_time() - asked) * 1000)

    def at(self, part: float) -> float:
        ordered = sorted(self.late_ms)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


class Day:
    """One run."""

    def __init__(self, client: RedisClient, count: int, tenants: int, archive: Archive, progress: Progress) -> None:
        self.redis: Redis = client.commands
        self.keys = RedisKeys("day")
        self.count = count
        self.tenants = tenants
        self.archive = archive
        self.feed = ArchiveFeed(self.redis, self.keys)
        self.progress = progress
        self.rollups = Rollups(self.redis, self.keys, RETENTION)
        self.state = LedgerState()
        self.state.leads = True
        self.roller = Roller(client, self.redis, self.keys, self.rollups, "one", self.state)
        self.janitor = Janitor(
            client, self.redis, self.keys, self.state, most=10 * _AT_ONCE, archived=True, retention=RETENTION
        )
        self.held = Held()
        self.rolling_s = self.rolling_cpu_s = self.archiving_s = 0.0
        self.rounds_ms: list[float] = []
        self.cost_pico = 0
        self.now = time.time()

    async def add_up(self) -> None:
        bar = self.progress.add_task("added up and archived", total=self.count)
        told = day_of_receipts(self.count, self.tenants, self.now)
        await self.archive.open()
        while some := list(itertools.islice(told, _AT_ONCE)):
            await self._post(some)
            await self._roll()
            await self._archive()
            await self.janitor.tidy()
            self.progress.update(bar, advance=len(some))

    async def _post(self, some: Sequence[Receipt]) -> None:
        raws = [one.to_json() for one in some]
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.sadd(self.keys.ledger().tenants, *{one.tenant for one in some})
            for one, raw in zip(some, raws, strict=True):
                pipe.xadd(self.keys.outbox(one.tenant), {"receipt": raw})
            await pipe.execute()
        self.cost_pico += sum(int(one.cost_usd.scaleb(12)) for one in some)

    async def _archive(self) -> None:
        """As the archiver does: what was taken is written to the disk, and then told of."""
        began = time.perf_counter()
        while entries := (await self.feed.take(_ARCHIVED_AT_ONCE)).entries:
            await self.archive.write(entries)
            await self.feed.told(entries)
        self.archiving_s += time.perf_counter() - began

    async def _roll(self) -> None:
        ticking = asyncio.ensure_future(self.held.tick())  # noqa: TID251
        began, cpu = time.perf_counter(), time.process_time()
        while True:
            round_began = time.perf_counter()
            if not await self.roller.roll():
                break
            self.rounds_ms.append((time.perf_counter() - round_began) * 1000)
        self.rolling_s += time.perf_counter() - began
        self.rolling_cpu_s += time.process_time() - cpu
        ticking.cancel()

    async def idle_ms(self) -> dict[str, float]:
        """The CPU of a look at all outboxes where nothing is new, in milliseconds."""
        found = {}
        for name, look in {"roller": self.roller.roll, "janitor": self.janitor.tidy}.items():
            await look()
            cpu = time.process_time()
            await look()
            found[name] = (time.process_time() - cpu) * 1000
        return found

    async def rebuilt(self) -> tuple[float, float]:
        """How long it took to make all rows anew, in seconds, and of the process's CPU."""
        bar = self.progress.add_task("made anew", total=self.count)
        began, cpu = time.perf_counter(), time.process_time()
        await Rebuild(
            self.redis, self.keys, RETENTION, self.archive, lambda read: self.progress.update(bar, completed=read)
        ).run()
        return time.perf_counter() - began, time.process_time() - cpu

    async def rows(self) -> AsyncIterator[tuple[tuple[Period, str, bytes], bytes]]:
        """All that are kept, as they are kept."""
        for granularity in SECONDS:
            since = max(self.now - DAY_S, time.time() - RETENTION.of(granularity))
            async for pages in self.rollups.pages(list(periods(granularity, since, self.now + 60))):
                for page in pages:
                    for field_, raw in page.fields.items():
                        yield (page.period, page.tenant, field_), raw

    async def differing(self, before: dict[tuple[Period, str, bytes], bytes]) -> tuple[int, int]:
        """How many rows are the same as before, and how many are not; but for what Redis has forgotten meanwhile."""
        same = wrong = 0
        async for at, raw in self.rows():
            held = before.pop(at, None)
            if held is not None and Row.from_bytes(held) == Row.from_bytes(raw):
                same += 1
            else:
                wrong += 1
        now = time.time()
        left = [period for period, _, _ in before if RETENTION.ends(period.granularity, period.start) > now]
        return same, wrong + len(left)

    async def total(self) -> Row:
        total = Row()
        for _, row in await self.rollups.totals(list(periods("day", self.now - DAY_S, self.now + 60))):
            total.merge(row)
        return total

    async def read_ms(self) -> dict[str, float]:
        """The median of some reads, by what was read, in milliseconds."""
        since, until = self.now - DAY_S, self.now + 60
        reader = UsageReader(self.rollups, RETENTION)

        async def totals() -> None:
            await self.rollups.totals(list(periods("hour", since, until)))

        async def table() -> None:
            ask = Ask(span(Asked(since, time.time()), None, RETENTION, time.time()), None, ("tenant",), {})
            await reader.read(ask, Usage.as_dict)

        async def by_tenant(granularity: Any) -> None:
            together: dict[str, Row] = defaultdict(Row)
            for _, where, row in await self.rollups.rows(list(periods(granularity, since, until))):
                together[where.tenant].merge(row)

        async def of_one() -> None:
            await self.rollups.rows(list(periods("hour", since, until)), "tenant-000")

        found = {}
        for name, read in {
            "totals of 24 h by the hour": totals,
            "rows of one tenant, 24 h by the hour": of_one,
            "all tenants' rows of 24 h by the hour, added up by tenant": lambda: by_tenant("hour"),
            "the same by the day": lambda: by_tenant("day"),
            FIRST_TABLE: table,
        }.items():
            took = []
            for _ in range(_READS):
                began = time.perf_counter()
                await read()
                took.append((time.perf_counter() - began) * 1000)
            found[name] = statistics.median(took)
            if read is table:
                found[name], found["the same, asked again"] = took[0], statistics.median(took[1:])
        return found

    async def memory(self) -> list[tuple[str, int, int, int]]:
        """By granularity: how many rows, how many keys, and their bytes."""
        found = []
        generation: Any = self.redis.hget(self.keys.ledger().state, "generation")
        of = self.keys.ledger().of(int(await generation or 0))
        for granularity in SECONDS:
            rows = names_count = held = 0
            names = [name async for name in self.redis.scan_iter(f"{of.rows_base}rows:{granularity}:*", count=10_000)]
            for start in range(0, len(names), 2_000):
                async with self.redis.pipeline(transaction=False) as pipe:
                    for name in names[start : start + 2_000]:
                        pipe.hlen(name)
                        pipe.memory_usage(name, samples=0)
                    told = await pipe.execute()
                rows += sum(told[::2])
                held += sum(told[1::2])
                names_count += len(told) // 2
            found.append((granularity, rows, names_count, held))
        return found


async def used_bytes(redis: Redis) -> int:
    return int((await redis.info("memory"))["used_memory"])


async def run(count: int, tenants: int, console: Console, *, views: bool = True) -> None:
    # As a gateway does once it is built: what stays is not looked at again.
    gc.collect()
    gc.freeze()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with TemporaryDirectory(prefix="ledger-day-") as folder:
        async with EmbeddedRedis() as server:
            client = RedisClient(server.url, timeout_s=30, metrics=Metrics())
            await client.require()
            with Progress(*columns, console=Console(stderr=True)) as progress:
                file = Path(folder, "archive.db")
                archive = Archive(f"sqlite:///{file}")
                day = Day(client, count, tenants, archive, progress)
                loads, empty = [load()], await used_bytes(day.redis)
                await day.add_up()
                loads.append(load())
                full = await used_bytes(day.redis)
                total = await day.total()
                idle = await day.idle_ms()
                reads = await day.read_ms()
                memory = await day.memory()
                file_bytes = sum(one.stat().st_size for one in file.parent.glob(f"{file.name}*"))
                archived = await archive.count(Where())
                before = {at: raw async for at, raw in day.rows()}
                loads.append(load())
                rebuild_s, rebuild_cpu_s = await day.rebuilt()
                loads.append(load())
                same, wrong = await day.differing(before)
                again = await day.total()
                await archive.close()
                shown = []
                if views:
                    shown = await ledger_views.opened(server.url, day.keys.prefix, Path(folder), progress)
                    loads.append(load())
            stats = (await day.redis.info("latencystats")).get("latency_percentiles_usec_evalsha", {})
            await client.close()
    right = total == again and (total.requests, total.cost_pico) == (count, day.cost_pico)
    right = right and archived == count and not wrong
    console.print(f"{machine()}\n")
    console.print(
        f"{count:,} receipts of {tenants} tenants, {usd(total.cost_pico):f} USD: sums are "
        + "wrong " * (not right)
        + "right" * right
    )
    lines = [
        ("added up, receipts/s", f"{count / day.rolling_s:,.0f}"),
        ("CPU of the process for each receipt, us", f"{day.rolling_cpu_s / count * 1e6:.1f}"),
        (
            "rounds",
            f"{len(day.rounds_ms):,}, p50 {_part(day.rounds_ms, 0.5):.1f} ms, p99 {_part(day.rounds_ms, 0.99):.1f} ms",
        ),
        (
            "the loop was held meanwhile",
            f"p50 {day.held.at(0.5):.2f} ms, p99 {day.held.at(0.99):.2f} ms, at most {day.held.at(1):.1f} ms",
        ),
        ("CPU of a look where nothing is new", ", ".join(f"{name} {spent:.1f} ms" for name, spent in idle.items())),
        ("scripts in Redis", ", ".join(f"{name} {spent / 1000:.2f} ms" for name, spent in stats.items())),
        (
            "archived in SQLite",
            (
                f"{archived:,} in {day.archiving_s:.1f} s, {archived / day.archiving_s:,.0f} receipts/s, "
                f"{file_bytes / 1e6:.0f} MB, {file_bytes / archived:.0f} bytes each"
            ),
        ),
        (
            "made anew from the archive",
            f"{rebuild_s:.1f} s, {count / rebuild_s:,.0f} receipts/s, CPU {rebuild_cpu_s:.1f} s",
        ),
        ("rows after that", f"{same:,} equal to those before, {wrong:,} not"),
        ("Redis before, after", f"{empty / 1e6:.1f} MB, {full / 1e6:.1f} MB"),
    ]
    lines += [
        (f"rows by the {name}", f"{rows:,} in {keys:,} keys, {held / 1e6:.1f} MB, {held / max(1, rows):.0f} bytes each")
        for name, rows, keys, held in memory
    ]
    lines += [(f"read {name}", f"{spent:.1f} ms") for name, spent in reads.items()]
    lines += shown
    lines.append(("load average of a minute, from step to step", ", ".join(loads)))
    console.print(markdown.table(("", ""), lines), soft_wrap=True)
    if not right:
        raise typer.Exit(1)


def load() -> str:
    """How busy the machine is, as a whole."""
    return f"{os.getloadavg()[0]:.1f}"


def _part(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else 0.0


def main(
    receipts: Annotated[int, typer.Option(min=1_000, help="How many.")] = 1_000_000,
    tenants: Annotated[int, typer.Option(min=1, max=10_000, help="Of how many tenants; few have most.")] = 200,
    views: Annotated[bool, typer.Option(help="Open the dashboard in Chromium, too.")] = True,
) -> None:
    """Add a day of receipts up, and print what it costs."""
    asyncio.run(run(receipts, tenants, Console(), views=views))


if __name__ == "__main__":
    typer.run(main)
