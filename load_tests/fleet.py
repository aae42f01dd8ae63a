"""Measure the batch fill of a fleet, and its effect on the teacher's throughput.

A modelled teacher (continuous batching, times from a file), a student without latency, one Redis, and gateways in
front of them. The same callers, each with one request at a time and a unique prompt, call these arrangements in turn:

  fleet       `--processes` gateways that share the teacher
  one         one gateway
  ungathered  one gateway that opens a batch for each request: batch.max_size 1
  unbatched   one gateway that makes one call at a time: max_concurrency 1

The table has a row for each arrangement. The batch fill is the size of
a batch divided by its maximum. Further columns are the teacher's tokens per second, its decode batch sizes, and the
latency of callers. Only loopback is used, and the run ends by itself.

    python -m load_tests.fleet
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import aiohttp
import orjson
import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from gateway.local.redis import EmbeddedRedis
from load_tests.engine_process import fake_engine
from tests.gateway_process import KEY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_probed

_WARM_UP_S = 4.0
_ENOUGH = 0.9


@dataclass(frozen=True, slots=True)
class Way:
    """An arrangement to measure."""

    name: str
    processes: int
    max_concurrency: int
    max_size: int


def main(
    processes: Annotated[int, typer.Option(min=1, max=16, help="Gateways in the fleet.")] = 4,
    callers: Annotated[int, typer.Option(min=1, max=2000, help="Callers, each with one request at a time.")] = 256,
    seconds: Annotated[float, typer.Option(min=1, max=120, help="Duration of each measurement.")] = 15,
    tokens: Annotated[int, typer.Option(min=1, max=512, help="m, the teacher's tokens.")] = 40,
    max_concurrency: Annotated[int, typer.Option(min=1, help="The teacher's calls in flight.")] = 96,
    max_size: Annotated[int, typer.Option(min=1, help="Calls in one batch.")] = 32,
    max_wait: Annotated[str, typer.Option(help="Maximum wait of a request for its batch.")] = "10ms",
    ways: Annotated[str, typer.Option(help="Arrangements to measure, by name.")] = "fleet,one,ungathered,unbatched",
    profile: Annotated[str, typer.Option(help="A file of load_tests/timings, for the teacher.")] = "teacher",
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON instead of a table.")] = False,
    gate: Annotated[bool, typer.Option("--gate", help=f"Fail if the fleet's fill is below {_ENOUGH}.")] = False,
) -> None:
    """Measure the batch fill of a fleet and the teacher's throughput, compared with one gateway and no batching."""
    known = [
        Way("fleet", processes, max_concurrency, max_size),
        Way("one", 1, max_concurrency, max_size),
        Way("ungathered", 1, max_concurrency, 1),
        Way("unbatched", 1, 1, 1),
    ]
    figures = asyncio.run(
        _measure_all([way for way in known if way.name in ways.split(",")], callers, seconds, tokens, max_wait, profile)
    )
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        _print(figures)
    if gate and figures["fleet"]["fill"] < _ENOUGH:
        raise typer.Exit(1)


async def _measure_all(
    ways: list[Way], callers: int, seconds: float, tokens: int, max_wait: str, profile: str
) -> dict[str, dict[str, float]]:
    figures = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        work = progress.add_task("", total=len(ways) * (seconds + _WARM_UP_S))
        for way in ways:
            progress.update(work, description=way.name)
            async with EmbeddedRedis() as redis:
                figures[way.name] = await _measure(way, redis.url, callers, seconds, tokens, max_wait, profile)
            progress.advance(work, seconds + _WARM_UP_S)
    return figures


async def _measure(
    way: Way, redis_url: str, callers: int, seconds: float, tokens: int, max_wait: str, profile: str
) -> dict[str, float]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        teacher = stack.enter_context(fake_engine(profile, dialect="tgi", for_s=seconds + 60))
        student = stack.enter_context(fake_engine("instant", dialect="openai", for_s=seconds + 60))
        big = model(
            "big",
            "tgi",
            teacher,
            max_concurrency=way.max_concurrency,
            batch={"max_size": way.max_size, "max_queue": max(callers, way.max_size)},
        )
        gateways = [
            stack.enter_context(
                running_gateway(
                    folder / str(number),
                    redis_url=redis_url,
                    models=[big, model("small", "openai", student + "/v1")],
                    routes=[guided(tokens=tokens, deadline="60s", max_wait=max_wait, cache_ttl="0s")],
                )
            )
            for number in range(way.processes)
        ]
        for gateway in gateways:
            await asyncio.to_thread(wait_until_probed, gateway.admin_url)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers={"Authorization": f"Bearer {KEY}"}
        ) as session:
            return await _load(session, gateways, teacher, callers, seconds)


async def _load(
    session: aiohttp.ClientSession, gateways: list[GatewayProcess], teacher: str, callers: int, seconds: float
) -> dict[str, float]:
    took: list[float] = []
    modes: dict[str, int] = {}
    stop = asyncio.Event()

    async def call(number: int) -> None:
        url = gateways[number % len(gateways)].url + "/v1/chat/completions"
        count = 0
        while not stop.is_set():
            count += 1
            text = f"Caller {number} asks question {count}: what is the answer to it, in a few words?"
            body = {"model": "chat", "messages": [{"role": "user", "content": text}], "max_tokens": 100}
            began = time.perf_counter()
            async with session.post(url, data=orjson.dumps(body)) as reply:
                await reply.read()
                mode = reply.headers.get("x-gkt-mode", str(reply.status))
                modes[mode] = modes.get(mode, 0) + 1
            took.append(time.perf_counter() - began)

    calls = [asyncio.ensure_future(call(number)) for number in range(callers)]  # noqa: TID251  awaited below
    await asyncio.sleep(_WARM_UP_S)
    async with session.post(teacher + "/stats/reset") as reply:
        await reply.read()
    before = [await _batches(session, gateway) for gateway in gateways]
    took.clear()
    modes.clear()
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    spent_s = time.perf_counter() - began
    async with session.get(teacher + "/stats") as reply:
        stats = orjson.loads(await reply.read())
    after = [await _batches(session, gateway) for gateway in gateways]
    seen, counted = sorted(took), dict(modes)
    stop.set()
    for one in calls:
        one.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    opened, filled, calls_made = (
        sum(new[at] - old[at] for new, old in zip(after, before, strict=True)) for at in range(3)
    )
    return {
        "answers_per_s": len(seen) / spent_s,
        "guided": counted.get("guided", 0) / max(1, sum(counted.values())),
        "batches": opened,
        "size": calls_made / max(1, opened),
        "fill": filled / max(1, opened),
        "teacher_tokens_per_s": stats["tokens_written"] / stats["elapsed_s"],
        "teacher_batch": stats["batch_size_mean"],
        "teacher_busiest": stats["busiest_in_flight"],
        "p50_s": statistics.median(seen) if seen else 0.0,
        "p99_s": seen[int(len(seen) * 0.99)] if seen else 0.0,
    }


async def _batches(session: aiohttp.ClientSession, gateway: GatewayProcess) -> tuple[float, float, float]:
    """Return the batches that this process opened, the sum of their fills, and the sum of their sizes."""
    async with session.get(gateway.admin_url + "/metrics") as reply:
        text = await reply.text()
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    names = ("gkt_batch_fill_count", "gkt_batch_fill_sum", "gkt_batch_size_sum")
    return tuple(values.get(name, 0.0) for name in names)  # type: ignore[return-value]


def _print(figures: dict[str, Any]) -> None:
    columns = {
        "answers_per_s": ("answers/s", "{:.1f}"),
        "guided": ("guided", "{:.0%}"),
        "batches": ("batches", "{:.0f}"),
        "size": ("size", "{:.1f}"),
        "fill": ("fill", "{:.2f}"),
        "teacher_tokens_per_s": ("teacher tokens/s", "{:.0f}"),
        "teacher_batch": ("decoded together", "{:.1f}"),
        "teacher_busiest": ("most in flight", "{:.0f}"),
        "p50_s": ("p50, s", "{:.2f}"),
        "p99_s": ("p99, s", "{:.2f}"),
    }
    table = Table("", *(title for title, _ in columns.values()), "tokens/s, times unbatched")
    base = figures.get("unbatched", {}).get("teacher_tokens_per_s")
    for way, seen in figures.items():
        times = seen["teacher_tokens_per_s"] / base if base else 0.0
        table.add_row(way, *(form.format(seen[key]) for key, (_, form) in columns.items()), f"{times:.1f}")
    Console(width=150).print(table)


if __name__ == "__main__":
    typer.run(main)
