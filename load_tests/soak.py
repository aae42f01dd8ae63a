"""Soak test: mixed traffic with faults against two gateways on one Redis, for minutes or hours.

    python -m load_tests.soak --minutes 20

Callers of several tenants send requests for whole and streamed answers on guided, student, teacher and shadow routes.
They also send tools, embeddings, raw prompts, and guidance requests of devices. Some callers disconnect, some exceed a
limit or a budget, and some requests are invalid. Meanwhile Redis stops and restarts, engines fail in all ways, and
policies change, with valid and invalid files.

At the end, every request must have a reply or a disconnect, and exactly its receipt. Sums and budgets must match the
receipts. Memory, files, tasks, threads, Redis and latency must not grow (rule: soaking/flatness.py).

Only loopback is used, and the run ends by itself. The first Ctrl-C ends it early with a report, the second one at once.
The exit status is 0 on success, 1 on failure, and 130 if the run ended early without a failure.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from load_tests.children import NotStarted
from load_tests.machine import machine
from load_tests.soaking.books import Books
from load_tests.soaking.disturbances import Disturbances
from load_tests.soaking.report import SoakReport, record, shown
from load_tests.soaking.sampler import Sampler
from load_tests.soaking.traffic import Traffic, stopped
from load_tests.soaking.world import NAMES, World, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

INTERRUPTED = 130
GATEWAY = "gateway"
_WARM_UP_PART = 0.25
_MOST_ERRORS = 20
_MOST_MINUTES = 720
_GRACE_S = 600.0  # time limit of engines after the end of the run

out = Console(width=max(150, shutil.get_terminal_size().columns), highlight=False)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Soak:
    """Settings of a soak test.

    Attributes:
        modules: by gateway, the module for `python -m`. Tests use modules with defects.
        patience_s: timeout for unfinished work at the end.
    """

    seconds: float
    callers: int = 16
    per_s: float = 25.0
    seed: int = 1
    modules: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(NAMES, GATEWAY))
    patience_s: float = 60.0

    @property
    def sample_s(self) -> float:
        """Return the interval between samples: short enough for a short run, and long enough for a long one."""
        return min(10.0, max(0.5, self.seconds / 240))

    @property
    def minute_s(self) -> float:
        """Return the length of a percentile interval. A run has at least sixteen."""
        return min(60.0, self.seconds / 16)

    @property
    def gap_s(self) -> float:
        """Return the seconds between disturbances. A run has each of the seven kinds at least once."""
        return min(8.0, self.seconds / 24)

    @property
    def lasts_s(self) -> float:
        """Return the duration of a disturbance."""
        return min(3.0, self.seconds / 30)


def main(
    minutes: Annotated[float, typer.Option(min=0.25, max=_MOST_MINUTES, help="Duration of the traffic.")] = 20,
    callers: Annotated[int, typer.Option(min=2, max=500, help="Maximum concurrent requests.")] = 16,
    per_s: Annotated[float, typer.Option("--rate", min=1, max=2000, help="Maximum requests per second.")] = 25,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of requests.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the report as JSON.")] = None,
    second: Annotated[str, typer.Option(hidden=True, help="Module of the second gateway.")] = GATEWAY,
    patience_s: Annotated[float, typer.Option("--patience", hidden=True, help="Timeout at the end, in s.")] = 60,
) -> None:
    """Send mixed traffic with faults to two gateways, then check all counts and trends."""
    if json_file is not None and not json_file.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {json_file.parent}", param_hint="--json")
    plan = Soak(minutes * 60, callers, per_s, seed, dict(zip(NAMES, (GATEWAY, second), strict=True)), patience_s)
    try:
        found = asyncio.run(soak(plan))
    except NotStarted as error:
        err.print(f"it did not start: {error}")
        raise typer.Exit(1) from None
    for line in shown(found):
        out.print(line, markup=False)
    out.print(machine(), markup=False)
    if json_file is not None:
        json_file.write_text(json.dumps({**record(found), "machine": machine()}, indent=2) + "\n")
    raise typer.Exit(exit_status(found))


def exit_status(found: SoakReport) -> int:
    """Return 0 on success, 1 on failure, 130 for an early end without a failure."""
    if not found.holds:
        return 1
    return INTERRUPTED if found.ended else 0


async def soak(plan: Soak) -> SoakReport:
    """Run the soak test. Raise NotStarted if a part does not start."""
    with TemporaryDirectory(prefix="gkt-soak-") as folder:
        async with running(Path(folder), plan.modules, plan.seconds + _GRACE_S) as world, _interruptible() as stop:
            err.print("started: two gateways on one Redis, four engines; Ctrl-C ends it early, with a report")
            return await _under_way(plan, world, stop)


async def _under_way(plan: Soak, world: World, stop: asyncio.Event) -> SoakReport:
    loop = asyncio.get_running_loop()
    sampler = Sampler(world, plan.sample_s, plan.minute_s)
    traffic = Traffic(world, plan.callers, plan.per_s, plan.seed, sampler.took)
    disturbances = Disturbances(world, plan.gap_s, plan.lasts_s)
    began, over, calm = loop.time(), asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(sampler.run(over))
        group.create_task(traffic.run(over))
        disturbing = group.create_task(disturbances.run(calm))
        await _wait(plan, traffic, disturbances, stop, over)
        ended_s = loop.time() - began
        calm.set()
        await disturbing  # Redis and engines are available again before the last callers end
        over.set()
    broke = f"gateway {sampler.gone} is gone" if sampler.gone else disturbances.broke
    books = Books(world, traffic.tally, plan.patience_s)
    checks = [] if broke else await books.checks()
    return SoakReport(
        planned_s=plan.seconds,
        ran_s=ended_s,
        ended=broke or ("interrupted" if stop.is_set() else ""),
        sent=traffic.tally.sent,
        left=traffic.tally.left,
        checks=checks,
        shadows=books.stored.shadows,
        trends=sampler.trends(_WARM_UP_PART * ended_s),
        minutes=sampler.minutes,
        broken=traffic.tally.shown,
        errors=books.errors[:_MOST_ERRORS],
        replies=traffic.tally.statuses,
        statuses=books.stored.statuses,
        disturbed=disturbances.met,
    )


async def _wait(
    plan: Soak, traffic: Traffic, disturbances: Disturbances, stop: asyncio.Event, over: asyncio.Event
) -> None:
    """Wait until the end time or a stop. Show the progress: as a bar, or as a line per minute without a terminal."""
    loop = asyncio.get_running_loop()
    began, lines = loop.time(), 1
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task("", total=plan.seconds)
        while (passed_s := loop.time() - began) < plan.seconds and not over.is_set() and not disturbances.broke:
            tally = traffic.tally
            text = f"{tally.sent:,} requests, {tally.broken} broken, {disturbances.met.total()} disturbances"
            progress.update(bar, completed=passed_s, description=text)
            if not err.is_terminal and passed_s >= lines * plan.minute_s:
                lines += 1
                err.print(f"{text}, {timedelta(seconds=round(plan.seconds - passed_s))} left")
            if await stopped(stop, min(1.0, plan.seconds - passed_s)):
                return


@asynccontextmanager
async def _interruptible() -> AsyncIterator[asyncio.Event]:
    """Yield an event that the first SIGINT or SIGTERM sets. The next signal has its default effect."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def first() -> None:
        stop.set()
        err.print("ending: waiting for unfinished requests; Ctrl-C again ends it at once")
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, first)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


if __name__ == "__main__":
    typer.run(main)
