"""Does the gateway hold for hours? Mixed traffic with faults, two processes on one Redis, all counted in the end.

    python -m load_tests.soak --minutes 20

Callers of several tenants ask for whole answers and streams, on guided, student, teacher and shadow routes, with tools,
for embeddings and raw prompts, and for guidance that devices finish; some hang up, some are over a limit or a budget,
some are wrong. Meanwhile Redis stands still and restarts, engines die, stall, refuse and break off, and policies are
edited, rightly and wrongly. At the end every request must be a reply or a hang-up and have its one receipt, sums and
budgets must be those of the receipts, and memory, files, tasks, threads, Redis and latency must have stayed flat
(soaking/flatness.py has the rule).

Loopback only, and it ends by itself. Ctrl-C ends it early and in order, and it prints what it knows by then; a second
one ends it at once. The exit status is 0 when all of it held, 1 when it did not, 130 when it was ended early and
nothing was wrong so far.
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
_GRACE_S = 600.0  # engines outlive the run by so much at most

out = Console(width=max(150, shutil.get_terminal_size().columns), highlight=False)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Soak:
    """Settings of a soak test.

    Attributes:
        modules: by gateway, what `python -m` runs: something else only to see that it is caught.
        patience_s: how long what is under way at the end may take.
    """

    seconds: float
    callers: int = 16
    per_s: float = 25.0
    seed: int = 1
    modules: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(NAMES, GATEWAY))
    patience_s: float = 60.0

    @property
    def sample_s(self) -> float:
        """Between looks: often enough for a short run, and not too many for a long one."""
        return min(10.0, max(0.5, self.seconds / 240))

    @property
    def minute_s(self) -> float:
        """Percentiles are of so long; a run has at least sixteen."""
        return min(60.0, self.seconds / 16)

    @property
    def gap_s(self) -> float:
        """Between disturbances: all seven of them at least once in a run, and one after the other in a long one."""
        return min(8.0, self.seconds / 24)

    @property
    def lasts_s(self) -> float:
        """How long a disturbance lasts."""
        return min(3.0, self.seconds / 30)


def main(
    minutes: Annotated[float, typer.Option(min=0.25, max=_MOST_MINUTES, help="How long traffic is made.")] = 20,
    callers: Annotated[int, typer.Option(min=2, max=500, help="Requests at a time, at most.")] = 16,
    per_s: Annotated[float, typer.Option("--rate", min=1, max=2000, help="Requests a second, at most.")] = 25,
    seed: Annotated[int, typer.Option(min=0, help="Another one makes callers ask in another order.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything that was found here, too.")] = None,
    second: Annotated[str, typer.Option(hidden=True, help="What the second gateway runs instead of ours.")] = GATEWAY,
    patience_s: Annotated[float, typer.Option("--patience", hidden=True, help="Seconds for what is left.")] = 60,
) -> None:
    """Keep two gateways busy with all sorts of requests and faults, then look at every count and every trend."""
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
    """0: all of it held; 1: it did not; 130: nothing was wrong, but it was ended early."""
    if not found.holds:
        return 1
    return INTERRUPTED if found.ended else 0


async def soak(plan: Soak) -> SoakReport:
    """Do it. Raises NotStarted when a part does not start."""
    with TemporaryDirectory(prefix="gkt-soak-") as folder:
        async with running(Path(folder), plan.modules, plan.seconds + _GRACE_S) as world, _interruptible() as stop:
            err.print(
                "started: two gateways on one Redis, four engines; Ctrl-C ends it early, and it tells what it knows"
            )
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
        await disturbing  # Redis and engines are there again before the last callers leave
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
    """Until the time is up, or it is to stop; with a line that says how far it is: where nobody looks, each minute."""
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
    """An event that the first SIGINT or SIGTERM sets; the next one does what it always does."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def first() -> None:
        stop.set()
        err.print("ending: what is under way is waited for and counted; once more ends it at once")
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
