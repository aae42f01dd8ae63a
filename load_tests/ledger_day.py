"""A day of receipts, added up into a real Redis as fast as one process can: what it costs, and how fast it is read.

    PYTHONPATH=. python load_tests/ledger_day.py --help

Receipts are posted to outboxes as they are settled, in the order of a day that ends now, and added up by the roller
with the janitor beside it, as in a gateway. Meanwhile a clock ticks on the same event loop: what is computed between
two ticks is how long the loop was held. Then all rows are made anew from the same receipts, read from a file. It ends by itself.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import math
import random
import struct
import time
from collections import defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gateway.ledger.janitor import Janitor
from gateway.ledger.ledger_state import LedgerState
from gateway.ledger.rebuild import Archived, Rebuild
from gateway.ledger.receipt import BatchFacts, EngineShare, GuidanceFacts, Receipt, Timings
from gateway.ledger.roller import Roller
from gateway.ledger.rollup import Row, usd
from gateway.ledger.rollups import SECONDS, Retention, Rollups, periods
from gateway.local.redis import EmbeddedRedis
from gateway.metrics import Metrics
from gateway.redis_client import RedisClient
from gateway.redis_keys import RedisKeys
from load_tests import markdown
from load_tests.machine import machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
    from typing import BinaryIO

    from redis.asyncio import Redis

DAY_S = 86_400
# As config.yaml has them.
RETENTION = Retention(minute=6 * 3600, hour=14 * DAY_S, day=400 * DAY_S)
_AT_ONCE = 5_000
_HEAD = struct.Struct("<HHI")
_TICK_S = 0.001
_READS = 5


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


def day_of_receipts(count: int, tenants: int, now: float, seed: int = 7) -> Iterator[Receipt]:
    """In the order of their time: few tenants have most of them, at noon there are more than at night."""
    dice = random.Random(seed)
    weights = [*itertools.accumulate(1 / (place + 1) for place in range(tenants))]
    names = [f"tenant-{place:03}" for place in range(tenants)]
    start = int(now) - DAY_S + 60
    for number in range(count):
        part = number / count
        moment = start + (DAY_S - 120) * (part - 0.12 * math.sin(2 * math.pi * part))
        tenant = bisect.bisect_left(weights, dice.random() * weights[-1])
        yield _receipt(dice, number, int(moment), names[min(tenant, tenants - 1)])


def _receipt(dice: random.Random, number: int, created: int, tenant: str) -> Receipt:
    route = dice.choices(("chat", "chat", "search", "mail"), k=1)[0]
    mode = dice.choices(("guided", "teacher_complete", "student", "teacher"), (80, 5, 10, 5))[0]
    ok = dice.random() > 0.01
    read, written = dice.randint(50, 2_000), dice.randint(20, 600)
    teacher = None if mode == "student" else EngineShare("big", read, 40, Decimal(read + 40).scaleb(-6))
    student = (
        EngineShare(("small", "tiny")[route == "mail"], read + 40, written, Decimal(read + written).scaleb(-7), 20)
        if mode in {"guided", "student"}
        else None
    )
    cost = sum((share.cost_usd for share in (teacher, student) if share is not None), Decimal(0))
    baseline = Decimal(read + written).scaleb(-6)
    first = dice.lognormvariate(6, 0.6)
    return Receipt(
        id=f"req_{number:024x}",
        created=created,
        tenant=tenant,
        key=f"key-{dice.choices(range(5), (50, 25, 15, 8, 2))[0]}",
        route=route,
        mode=mode,
        stream=dice.random() < 0.5,
        status="ok" if ok else dice.choice(("engine_timeout", "client_gone", "engine_unavailable")),
        finish_reason="stop" if ok else None,
        unguided="teacher_late" if mode == "student" else None,
        teacher=teacher,
        student=student,
        guidance=GuidanceFacts("cutoff", "prefix", 40, 38, complete=False) if mode == "guided" else None,
        batch=BatchFacts(f"b{number // 8}", dice.randint(1, 16)) if teacher is not None else None,
        cost_usd=cost,
        baseline_model="big",
        baseline_usd=baseline,
        baseline_estimated=True,
        savings_usd=baseline - cost,
        timings=Timings(
            total_ms=round(first * dice.uniform(1.5, 6), 3),
            admission_ms=round(dice.uniform(0.3, 2), 3),
            batch_wait_ms=round(dice.uniform(0, 10), 3) if teacher is not None else None,
            teacher_ms=round(first * 0.9, 3) if teacher is not None else None,
            first_token_ms=round(first, 3),
        ),
    )


class Shelf:
    """The receipts again, in a file: what an archive would give."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @staticmethod
    def put(file: BinaryIO, tenant: bytes, entry: bytes, raw: bytes) -> None:
        file.write(_HEAD.pack(len(tenant), len(entry), len(raw)) + tenant + entry + raw)

    async def batches(self, since: Mapping[str, str]) -> AsyncIterator[Sequence[Archived]]:
        del since
        with self._path.open("rb") as file:
            some = []
            while head := file.read(_HEAD.size):
                sizes = _HEAD.unpack(head)
                tenant, entry, raw = (file.read(size) for size in sizes)
                some.append(Archived(tenant.decode(), entry.decode(), Receipt.from_json(raw)))
                if len(some) == _AT_ONCE:
                    yield some
                    some = []
            yield some


class Day:
    """One run."""

    def __init__(self, client: RedisClient, count: int, tenants: int, path: Path, progress: Progress) -> None:
        self.redis: Redis = client.commands
        self.keys = RedisKeys("day")
        self.count = count
        self.tenants = tenants
        self.path = path
        self.progress = progress
        self.rollups = Rollups(self.redis, self.keys, RETENTION)
        self.state = LedgerState()
        self.state.leads = True
        self.roller = Roller(client, self.redis, self.keys, self.rollups, "one", self.state)
        self.janitor = Janitor(
            client, self.redis, self.keys, self.state, most=10 * _AT_ONCE, archived=False, retention=RETENTION
        )
        self.held = Held()
        self.rolling_s = self.rolling_cpu_s = 0.0
        self.rounds_ms: list[float] = []
        self.cost_pico = 0
        self.now = time.time()

    async def add_up(self) -> None:
        bar = self.progress.add_task("added up", total=self.count)
        told = day_of_receipts(self.count, self.tenants, self.now)
        with self.path.open("wb") as file:
            while some := list(itertools.islice(told, _AT_ONCE)):
                await self._post(some, file)
                await self._roll()
                self.progress.update(bar, advance=len(some))

    async def _post(self, some: Sequence[Receipt], file: BinaryIO) -> None:
        raws = [one.to_json() for one in some]
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.sadd(self.keys.ledger().tenants, *{one.tenant for one in some})
            for one, raw in zip(some, raws, strict=True):
                pipe.xadd(self.keys.outbox(one.tenant), {"receipt": raw})
            _, *entries = await pipe.execute()
        for one, raw, entry in zip(some, raws, entries, strict=True):
            Shelf.put(file, one.tenant.encode(), entry, raw)
            self.cost_pico += int(one.cost_usd.scaleb(12))

    async def _roll(self) -> None:
        ticking = asyncio.ensure_future(self.held.tick())  # noqa: TID251
        began, cpu = time.perf_counter(), time.process_time()
        while True:
            round_began = time.perf_counter()
            if not await self.roller.roll():
                break
            self.rounds_ms.append((time.perf_counter() - round_began) * 1000)
        await self.janitor.tidy()
        self.rolling_s += time.perf_counter() - began
        self.rolling_cpu_s += time.process_time() - cpu
        ticking.cancel()

    async def rebuilt(self) -> float:
        """How long it took to make all rows anew, in seconds."""
        bar = self.progress.add_task("made anew", total=self.count)
        of = self.keys.ledger()
        cursors: Any = self.redis.hgetall(of.cursors)
        await self.redis.hset(of.archived, mapping=await cursors)
        began = time.perf_counter()
        await Rebuild(
            self.redis, self.keys, RETENTION, Shelf(self.path), lambda read: self.progress.update(bar, completed=read)
        ).run()
        return time.perf_counter() - began

    async def total(self) -> Row:
        total = Row()
        for _, row in await self.rollups.totals(list(periods("day", self.now - DAY_S, self.now + 60))):
            total.merge(row)
        return total

    async def read_ms(self) -> dict[str, float]:
        """The fastest of some reads, by what was read, in milliseconds."""
        since, until = self.now - DAY_S, self.now + 60

        async def totals() -> None:
            await self.rollups.totals(list(periods("hour", since, until)))

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
        }.items():
            took = []
            for _ in range(_READS):
                began = time.perf_counter()
                await read()
                took.append((time.perf_counter() - began) * 1000)
            found[name] = min(took)
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


async def run(count: int, tenants: int, console: Console) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with TemporaryDirectory(prefix="ledger-day-") as folder:
        async with EmbeddedRedis() as server:
            client = RedisClient(server.url, timeout_s=30, metrics=Metrics())
            await client.require()
            with Progress(*columns, console=Console(stderr=True)) as progress:
                day = Day(client, count, tenants, Path(folder, "receipts"), progress)
                empty = await used_bytes(day.redis)
                await day.add_up()
                full = await used_bytes(day.redis)
                total = await day.total()
                reads = await day.read_ms()
                memory = await day.memory()
                rebuild_s = await day.rebuilt()
                again = await day.total()
            stats = (await day.redis.info("latencystats")).get("latency_percentiles_usec_evalsha", {})
            await client.close()
    right = total == again and (total.requests, total.cost_pico) == (count, day.cost_pico)
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
        ("scripts in Redis", ", ".join(f"{name} {spent / 1000:.2f} ms" for name, spent in stats.items())),
        ("made anew from a file", f"{rebuild_s:.1f} s, {count / rebuild_s:,.0f} receipts/s"),
        ("Redis before, after", f"{empty / 1e6:.1f} MB, {full / 1e6:.1f} MB"),
    ]
    lines += [
        (f"rows by the {name}", f"{rows:,} in {keys:,} keys, {held / 1e6:.1f} MB, {held / max(1, rows):.0f} bytes each")
        for name, rows, keys, held in memory
    ]
    lines += [(f"read {name}", f"{spent:.1f} ms") for name, spent in reads.items()]
    console.print(markdown.table(("", ""), lines), soft_wrap=True)
    if not right:
        raise typer.Exit(1)


def _part(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else 0.0


def main(
    receipts: Annotated[int, typer.Option(min=1_000, help="How many.")] = 1_000_000,
    tenants: Annotated[int, typer.Option(min=1, max=10_000, help="Of how many tenants; few have most.")] = 200,
) -> None:
    """Add a day of receipts up, and print what it costs."""
    asyncio.run(run(receipts, tenants, Console()))


if __name__ == "__main__":
    typer.run(main)
