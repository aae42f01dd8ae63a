"""One sitting of `eval run`: a large one is agreed on, engines are started, progress is told, and a summary shown."""

from __future__ import annotations

import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from gateway.cli.eval_progress import Bars, Lines, duration
from gateway.cli.interrupts import INTERRUPTED, until_interrupted
from gateway.config import environment
from gateway.errors import StartupError
from gateway.evaluation.elsewhere import described, routes_at
from gateway.evaluation.folder import RunFolder, digest
from gateway.evaluation.judges import judge_of
from gateway.evaluation.live import LiveRun, gateway_at, gateway_of, routes_of
from gateway.evaluation.pair import ConfiguredPair, LocalPair, facts_of
from gateway.evaluation.record import Manifest
from gateway.evaluation.run import StagedRun, Work
from gateway.evaluation.scoring import Scoring
from gateway.local import weights
from gateway.logs import set_up_logs
from gateway.units import Origin, Wrong, dereference
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.evaluation.data import LoadedData
    from gateway.evaluation.example import Score
    from gateway.evaluation.live import LiveRoute
    from gateway.evaluation.pair import Pair
    from gateway.evaluation.scoring import Scorer
    from gateway.evaluation.setting import Setting

_LONG_S = 12 * 3600.0
"""A run that is expected to take longer than this is a large one, however few its calls are."""


@dataclass(frozen=True, slots=True)
class Sitting:
    """What the command line asks for."""

    folder: Path
    data: LoadedData
    settings: Sequence[Setting]
    pair: Pair
    concurrency: int
    scorer: Scorer | None = None
    judge: str | None = None
    seed: int = 0
    live: bool = False
    gateway: str | None = None
    key: str | None = None
    routes: tuple[str, ...] = ()
    rescore: bool = False
    yes: bool = False
    most_calls: int = 20_000

    def work(self, score: Score) -> Work:
        """What is to be answered."""
        return Work(self.data.questions, self.data.exemplars, self.settings, score)

    def manifest(self, settings: list[dict[str, Any]]) -> Manifest:
        """What the folder is to say of it."""
        facts = facts_of(self.pair)
        if self.gateway is not None:
            facts = {"teacher": self.gateway, "student": self.gateway, "prices": {}}
        return Manifest(
            data=self.data.name,
            data_sha256=digest(self.data.questions),
            questions=len(self.data.questions),
            settings=settings,
            seed=self.seed,
            live=self.live or self.gateway is not None,
            version=__version__,
            created=int(time.time()),
            **facts,
        )


def hold(sitting: Sitting) -> None:
    """Do it. Leaves with 130 after a signal, and 1 by StartupError where an engine is gone; what came is kept."""
    set_up_logs("error", "auto")  # each failed call is in the examples, by its label
    told = Console(stderr=True, soft_wrap=True)
    with RunFolder(sitting.folder) as folder:
        if not uvloop.run(until_interrupted(_held(sitting, folder, told), "eval")):
            told.print(f"Stopped. What was written is in {sitting.folder}: the same command goes on from there.")
            raise typer.Exit(INTERRUPTED)
        _sum_up(folder, Console())


async def _held(sitting: Sitting, folder: RunFolder, told: Console) -> None:
    progress = Bars(told) if told.is_terminal else Lines(told)
    async with AsyncExitStack() as exits:
        exits.callback(progress.end)
        judge = None
        if sitting.judge is not None:
            settings = sitting.pair.settings if isinstance(sitting.pair, ConfiguredPair) else None
            if settings is None:
                raise StartupError(f"--judge {sitting.judge} is a model of a configuration: name that with --config.")
            judge = await exits.enter_async_context(judge_of(settings, sitting.judge, folder.generations))
        work = sitting.work(Scoring(judge, sitting.scorer).score)
        if sitting.gateway is not None:
            await _elsewhere(sitting, work, folder, told, progress)
        elif sitting.live:
            await _live(sitting, work, folder, told, progress)
        else:
            await _staged(sitting, work, folder, told, progress)


async def _staged(sitting: Sitting, work: Work, folder: RunFolder, told: Console, progress: Bars | Lines) -> None:
    wanted = sitting.manifest([setting.as_dict() for setting in work.settings])
    folder.check(wanted, work.questions)
    run = StagedRun(folder, work, sitting.pair, progress, concurrency=sitting.concurrency)
    try:
        if sitting.rescore:
            folder.begin(wanted, work.questions)
            if left := await run.rescore():
                told.print(f"{len(left)} answers have no text yet: run without --rescore to ask for them.")
            return
        _fetch(sitting.pair)
        calls = run.calls_left()
        if sum(calls) > sitting.most_calls and not folder.stages:
            await _time_a_few(sitting, work, folder, progress)
            calls = run.calls_left()
        times = (folder.seconds_per_call("teacher"), folder.seconds_per_call("student"))
        expected = [count * seconds for count, seconds in zip(calls, times, strict=True) if seconds is not None]
        said = (
            f"{len(work.settings)} settings, {len(work.questions)} questions: the teacher is asked "
            f"{calls[0]} times, the student up to {calls[1]} times"
        )
        _agree(sitting, told, said, sum(calls), sum(expected) if expected else None)
        folder.begin(wanted, work.questions)
        await run.run()
    finally:
        run.close()


async def _time_a_few(sitting: Sitting, work: Work, folder: RunFolder, progress: Bars | Lines) -> None:
    """The first calls of the run itself: what they write is kept, and not asked for again."""
    first = {setting.mode: setting for setting in work.settings}
    few = replace(work, settings=list(first.values()), questions=work.questions[: sitting.concurrency])
    folder.begin(sitting.manifest([setting.as_dict() for setting in few.settings]), work.questions)
    run = StagedRun(folder, few, sitting.pair, progress, concurrency=sitting.concurrency)
    try:
        await run.run()
    finally:
        run.close()


async def _live(sitting: Sitting, work: Work, folder: RunFolder, told: Console, progress: Bars | Lines) -> None:
    routes = routes_of(work.settings)
    wanted = sitting.manifest([setting.as_dict() for setting in work.settings])
    folder.check(wanted, work.questions)
    _agree_on_live(sitting, folder, told, len(routes))
    _fetch(sitting.pair)
    folder.begin(wanted, work.questions)
    async with AsyncExitStack() as exits:
        caller = await exits.enter_async_context(gateway_of(sitting.pair, routes, sitting.folder))
        await LiveRun(folder, work, caller, progress, concurrency=sitting.concurrency).run(routes)


async def _elsewhere(sitting: Sitting, work: Work, folder: RunFolder, told: Console, progress: Bars | Lines) -> None:
    assert sitting.gateway is not None
    parts = urlsplit(sitting.gateway)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise StartupError(f"--gateway {sitting.gateway}: must be http(s)://host:port, without a password.")
    routes: list[LiveRoute] = routes_at(sitting.routes, work)
    key = _key(sitting.key)
    _agree_on_live(sitting, folder, told, len(routes))
    async with gateway_at(sitting.gateway, key) as caller:
        settings = await described(routes, caller, work, folder.manifest)
        folder.begin(sitting.manifest(settings), work.questions)
        await LiveRun(folder, work, caller, progress, concurrency=sitting.concurrency).run(routes)


def _key(reference: str | None) -> str:
    try:
        key = dereference(reference or "", Origin(environment(), Path.cwd()))
    except Wrong as error:
        raise StartupError(f"--key: {error}") from error
    if key is None:
        raise StartupError("--key: a key must not stand on the command line: write env:NAME or file:/path")
    return key


def _fetch(pair: Pair) -> None:
    """Before a clock runs; a name that is wrong is said before a gigabyte is fetched."""
    if isinstance(pair, LocalPair):
        for fetch in (weights.find, weights.fetch):
            for model in dict.fromkeys((pair.teacher, pair.student)):
                fetch(model)


def _agree_on_live(sitting: Sitting, folder: RunFolder, told: Console, routes: int) -> None:
    calls = routes * len(sitting.data.questions)
    seconds = folder.seconds_per_call("live")
    said = f"{routes} settings, {len(sitting.data.questions)} questions: up to {calls} answers"
    _agree(sitting, told, said, calls, None if seconds is None else calls * seconds)


def _agree(sitting: Sitting, told: Console, said: str, calls: int, seconds: float | None) -> None:
    """Say how large the run is; a large one is begun when somebody says so. Raises StartupError where nobody does."""
    told.print(f"{said}{'' if seconds is None or not calls else f', about {duration(seconds)}'}.", highlight=False)
    large = calls > sitting.most_calls or (seconds or 0.0) > _LONG_S
    if not large or sitting.yes:
        return
    if not sys.stdin.isatty():
        raise StartupError("That is a large run, and nobody is here to agree: add --yes, or make the grid smaller.")
    if not typer.confirm("Begin?", err=True):
        raise StartupError("Nothing was begun. A smaller grid, or --limit, makes it shorter.")


def _sum_up(folder: RunFolder, console: Console) -> None:
    """How right each setting is; the report says how sure that is, and what it costs."""
    assert folder.manifest is not None
    table = Table("setting", "right", "of", "errors", box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for setting in folder.manifest.settings:
        those = [one for one in folder.examples.values() if one.setting == setting["name"]]
        errors = sum(one.error is not None for one in those)
        right = sum(one.correct for one in those)
        table.add_row(setting["name"], str(right), str(len(those) - errors), str(errors or ""))
    console.print(table)
    console.print(f"\nNow: gkt-gateway eval report {folder.path}", markup=False, highlight=False)
