"""Measure response times before, during and after the usage worker processes a backlog.

    PYTHONPATH=. python load_tests/usage_catch_up.py --help

One gateway, a student without latency, a Redis and one usage worker each have their own process. Requests start at
fixed times, independent of earlier answers, and response times count from then. In each round, the worker runs without
a backlog, is stopped, and is started again with a full outbox of each tenant.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import aiohttp
import typer
from redis.asyncio import Redis
from rich.console import Console

from gateway.local.redis import EmbeddedRedis
from gateway.redis.keys import RedisKeys
from load_tests import markdown, proc
from load_tests.children import interruptible, running
from load_tests.day_receipts import day_of_receipts
from load_tests.engine_process import fake_engine
from load_tests.machine import machine
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, model, running_gateway
from tests.readiness import detail

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PREFIX = "catch-up"
TENANTS = 200
BEFORE, MEANWHILE, AFTER = "before", "catching up", "after"
HEAD = ("usage worker", "answers", "refused", "p50", "p99", "at most")
_START_WITHIN_S = 90.0
_CATCH_UP_WITHIN_S = 120.0
_LOOK_EVERY_S = 0.1
_PATIENCE = aiohttp.ClientTimeout(20)
_BODY = {"model": "chat-student", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20}

err = Console(stderr=True)


@dataclass
class CatchUp:
    """Attributes:
    answered_s: times of answers in seconds, by phase.
    refused: requests that were refused or whose connection was lost, by phase.
    took_s: how long each round took to catch up, in seconds.
    """

    answered_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    refused: Counter[str] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)


class CatchUpBench:
    """A gateway, its Redis, and the configuration for a usage worker."""

    def __init__(self, folder: Path, gateway: GatewayProcess, redis: Redis, rate: float) -> None:
        self._folder = folder
        self._gateway = gateway
        self._redis = redis
        self._keys = RedisKeys(PREFIX)
        self._rate = rate
        self._tenants: set[str] = set()

    async def round(self, number: int, receipts: int, seconds: float, figures: CatchUp) -> None:
        """Measure the three phases once."""
        config = str(self._folder / "gateway/config.yaml")
        command = [sys.executable, "-m", "gateway", "usage-worker", "--config", config]
        with running(f"worker {number}", command, self._folder) as worker:
            await asyncio.to_thread(worker.wait_until, self._worker_is_up, _START_WITHIN_S)
            await self._measure(BEFORE, figures, _for(seconds))
        await self._fill(receipts, seed=number)
        with running(f"worker {number} behind", command, self._folder):
            began = time.perf_counter()
            await self._measure(MEANWHILE, figures, self._caught_up)
            figures.took_s.append(time.perf_counter() - began)
            await self._measure(AFTER, figures, _for(seconds))

    def _worker_is_up(self) -> bool:
        return bool(detail(self._gateway.admin_url)["usage"]["up"])

    async def _fill(self, receipts: int, seed: int) -> None:
        """Post receipts to the outboxes, as the gateway does."""
        made = day_of_receipts(receipts, TENANTS, time.time(), seed)
        while some := list(islice(made, 1_000)):
            async with self._redis.pipeline(transaction=False) as pipe:
                self._tenants |= (tenants := {one.tenant for one in some})
                pipe.sadd(self._keys.ledger().tenants, *tenants)
                for one in some:
                    pipe.xadd(self._keys.outbox(one.tenant), {"receipt": one.to_json()})
                await pipe.execute()

    async def _caught_up(self) -> None:
        async with asyncio.timeout(_CATCH_UP_WITHIN_S), self._redis.pipeline(transaction=False) as pipe:
            while True:
                for tenant in self._tenants:
                    pipe.xlen(self._keys.outbox(tenant))
                if not sum(await pipe.execute()):
                    return
                await asyncio.sleep(_LOOK_EVERY_S)

    async def _measure(self, phase: str, figures: CatchUp, end: Callable[[], Awaitable[None]]) -> None:
        """Send requests at the rate until `end` returns."""
        headers = {"Authorization": f"Bearer {KEY}"}
        async with (
            aiohttp.ClientSession(
                self._gateway.url, headers=headers, connector=aiohttp.TCPConnector(limit=0), timeout=_PATIENCE
            ) as session,
            asyncio.TaskGroup() as group,
        ):

            async def ask(due: float) -> None:
                try:
                    async with session.post("/v1/chat/completions", json=_BODY) as reply:
                        await reply.read()
                        reply.raise_for_status()
                except (aiohttp.ClientError, TimeoutError):
                    figures.refused[phase] += 1
                else:
                    figures.answered_s[phase].append(time.perf_counter() - due)

            ending = group.create_task(_awaited(end))
            due = time.perf_counter()
            while not ending.done():
                group.create_task(ask(due))
                due += 1 / self._rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))


async def _awaited(work: Callable[[], Awaitable[None]]) -> None:
    await work()


def _for(seconds: float) -> Callable[[], Awaitable[None]]:
    return lambda: asyncio.sleep(seconds)


async def measure(receipts: int, rate: float, seconds: float, rounds: int, url: str = "sqlite") -> CatchUp:
    """Run all rounds. `url` is that of the usage database."""
    figures = CatchUp()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="gkt-catch-up-")))
        server = await stack.enter_async_context(EmbeddedRedis())
        redis = await stack.enter_async_context(Redis.from_url(server.url))
        student = stack.enter_context(fake_engine("instant", dialect="openai", for_s=3_600))
        configured: dict[str, Any] = {
            "redis_url": server.url,
            "redis": {"prefix": PREFIX},
            "receipts": {"ttl": "1m", "max_buffered": 100_000_000},
            "usage": {"run": "command", "url": url},
            "log": {"requests": {"sample": 0}},
            "data": str(folder / "data"),
            "models": [model("small", "openai", f"{student}/v1", continuation="trailing", echo=False)],
            "routes": [STUDENT_ONLY | {"baseline": "small"}],
        }
        gateway = stack.enter_context(running_gateway(folder / "gateway", **configured))
        bench = CatchUpBench(folder, gateway, redis, rate)
        for number in range(rounds):
            err.print(f"round {number + 1} of {rounds}")
            await bench.round(number, receipts, seconds, figures)
    return figures


def main(
    receipts: Annotated[int, typer.Option(min=1, max=1_000_000, help="Receipts of the backlog.")] = 100_000,
    rate: Annotated[float, typer.Option(min=1, max=2_000, help="Requests per second.")] = 100,
    seconds: Annotated[float, typer.Option(min=1, max=60, help="Length of the phases before and after.")] = 15,
    rounds: Annotated[int, typer.Option(min=1, max=10)] = 3,
    url: Annotated[str, typer.Option(help="usage.url: sqlite, or an empty database in PostgreSQL.")] = "sqlite",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead of a table.")] = False,
) -> None:
    """Print the times of answers before, while and after the usage worker catches up."""
    with interruptible():
        began, busy, ours = time.monotonic(), proc.busy_s(), proc.ours_s()
        measured = asyncio.run(measure(receipts, rate, seconds, rounds, url))
        others = (proc.busy_s() - busy - (proc.ours_s() - ours)) / (time.monotonic() - began)
    figures = {
        "machine": machine(),
        "receipts": receipts,
        "rate": rate,
        "others_cores": max(0.0, others),
        "receipts_per_s": round(receipts / statistics.median(measured.took_s)),
        "phases": {
            name: {**figures_of(took), "refused": measured.refused[name]} for name, took in measured.answered_s.items()
        },
    }
    typer.echo(json.dumps(figures, indent=2) if as_json else shown(figures))


def figures_of(took_s: list[float]) -> dict[str, float]:
    """Return the number of answers, and their percentiles in milliseconds."""
    cuts = statistics.quantiles(took_s, n=100)
    return {"answers": len(took_s), "p50_ms": cuts[49] * 1000, "p99_ms": cuts[98] * 1000, "max_ms": max(took_s) * 1000}


def shown(figures: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    rows = [
        (
            name,
            str(one["answers"]),
            str(one["refused"]),
            *(f"{one[key]:.1f} ms" for key in ("p50_ms", "p99_ms", "max_ms")),
        )
        for name, one in figures["phases"].items()
    ]
    return (
        f"{markdown.table(HEAD, rows)}\n\n{figures['receipts']:,} receipts, {figures['receipts_per_s']:,} per second "
        f"from the start of the worker's process. {figures['rate']:g} requests per second. Other programs used "
        f"{figures['others_cores']:.2f} cores. {figures['machine']}"
    )


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
