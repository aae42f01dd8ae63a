"""One sitting of `eval run`: a large one is agreed on, engines are started, progress is told, and a summary shown."""

from __future__ import annotations

import os
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from gateway.cli.eval_progress import ProgressBars, ProgressLines, duration
from gateway.cli.interrupts import INTERRUPTED, until_interrupted
from gateway.config.scalars import InvalidValue, ValueOrigin, dereference
from gateway.config.settings import environment
from gateway.errors import StartupError
from gateway.evaluation.elsewhere import describe_routes, remote_routes
from gateway.evaluation.folder import RunFolder, digest, shown_hash
from gateway.evaluation.judges import judge_of
from gateway.evaluation.live import LiveRun, connect_gateway, setting_routes, start_gateway
from gateway.evaluation.pair import ConfiguredPair, LocalPair, manifest_facts
from gateway.evaluation.record import Manifest
from gateway.evaluation.run import EvalWork, StagedRun
from gateway.evaluation.scoring import Scoring
from gateway.evaluation.staged import check_staged
from gateway.local import weights
from gateway.local.stack import usable_cores
from gateway.telemetry.logs import set_up_logs
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from gateway.evaluation.example import QuestionScorer
    from gateway.evaluation.pair import Pair
    from gateway.evaluation.questions.data import LoadedData
    from gateway.evaluation.scoring import Scorer
    from gateway.evaluation.setting import Setting

_LONG_S = 12 * 3600.0
"""A run that is expected to take longer than this is a large one, however few its calls are."""


@dataclass(frozen=True, slots=True)
class EvalSession:
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

    @property
    def plain_settings(self) -> list[dict[str, Any]]:
        """The settings as a manifest has them, each with a hash of what models are shown beside the question."""
        return [setting.as_dict() | {"shown": shown_hash(setting, self.data.exemplars)} for setting in self.settings]

    def work(self, score: QuestionScorer) -> EvalWork:
        """What is to be answered."""
        return EvalWork(self.data.questions, self.data.exemplars, self.settings, score)

    def manifest(self, settings: list[dict[str, Any]]) -> Manifest:
        """What the folder is to say of it."""
        facts = manifest_facts(self.pair)
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


def hold(sitting: EvalSession) -> None:
    """Do it. Leaves with 130 after a signal, and 1 by StartupError where an engine is gone; what came is kept."""
    set_up_logs("error", "auto")  # each failed call is in the examples, by its label
    told = Console(stderr=True, soft_wrap=True)
    if sitting.gateway is not None:
        _check_address(sitting.gateway)
    elif not sitting.live:
        check_staged(sitting.settings)
    if sitting.judge is not None and not isinstance(sitting.pair, ConfiguredPair):
        raise StartupError(f"--judge {sitting.judge} is a model of a configuration: name that with --config.")
    with RunFolder(sitting.folder) as folder:
        # Questions to whoever sits there, and downloads, come outside of the event loop: Ctrl-C ends them at once.
        if sitting.gateway is None:
            folder.check(sitting.manifest(sitting.plain_settings), sitting.data.questions)
        if sitting.gateway is None and not sitting.rescore:
            _warn_where_busy(sitting.pair, told)
            _fetch(sitting.pair)
        if sitting.live or sitting.gateway is not None:
            _agree_on_live(sitting, folder, told)
        elif not sitting.rescore:
            _agree_on_stages(sitting, folder, told)
        _until_done(_held(sitting, folder, told), sitting, told)
        _sum_up(folder, Console())


def _until_done(work: Coroutine[Any, Any, None], sitting: EvalSession, told: Console) -> None:
    if not uvloop.run(until_interrupted(work, "eval")):
        told.print(f"Stopped. What was written is in {sitting.folder}: the same command goes on from there.")
        raise typer.Exit(INTERRUPTED)


async def _held(sitting: EvalSession, folder: RunFolder, told: Console) -> None:
    async with _begun(sitting, folder, told) as (work, progress):
        if sitting.gateway is not None:
            await _elsewhere(sitting, work, folder, progress)
        elif sitting.live:
            routes = setting_routes(work.settings)
            folder.begin(sitting.manifest(sitting.plain_settings), work.questions)
            async with start_gateway(sitting.pair, routes, sitting.folder) as caller:
                await LiveRun(folder, work, caller, progress, concurrency=sitting.concurrency).run(routes)
        else:
            folder.begin(sitting.manifest(sitting.plain_settings), work.questions)
            await _staged(sitting, work, folder, progress, told)


@asynccontextmanager
async def _begun(
    sitting: EvalSession, folder: RunFolder, told: Console
) -> AsyncIterator[tuple[EvalWork, ProgressBars | ProgressLines]]:
    """The work, with its judge where it has one, and who is told how far it is."""
    progress = ProgressBars(told) if told.is_terminal else ProgressLines(told)
    async with AsyncExitStack() as exits:
        exits.callback(progress.end)
        judge = None
        if sitting.judge is not None:
            assert isinstance(sitting.pair, ConfiguredPair)  # or it would not have begun
            judging = judge_of(sitting.pair.settings, sitting.judge, folder.generations)
            judge = await exits.enter_async_context(judging)
        yield sitting.work(Scoring(judge, sitting.scorer).score), progress


async def _staged(
    sitting: EvalSession, work: EvalWork, folder: RunFolder, progress: ProgressBars | ProgressLines, told: Console
) -> None:
    run = StagedRun(folder, work, sitting.pair, progress, concurrency=sitting.concurrency)
    with closing(run):
        if not sitting.rescore:
            await run.run()
        elif left := await run.rescore():
            told.print(f"{len(left)} answers have no text yet: run without --rescore to ask for them.")


async def _time_a_few(sitting: EvalSession, folder: RunFolder, told: Console) -> None:
    """The first calls of the run itself: what they write is kept, and not asked for again."""
    first = {setting.mode: setting for setting in sitting.settings}
    few = replace(sitting, settings=list(first.values()))
    async with _begun(few, folder, told) as (work, progress):
        folder.begin(few.manifest(few.plain_settings), work.questions)
        await _staged(few, replace(work, questions=work.questions[: few.concurrency]), folder, progress, told)


async def _elsewhere(
    sitting: EvalSession, work: EvalWork, folder: RunFolder, progress: ProgressBars | ProgressLines
) -> None:
    assert sitting.gateway is not None
    routes = remote_routes(sitting.routes, work)
    async with connect_gateway(sitting.gateway, _key(sitting.key)) as caller:
        settings = await describe_routes(routes, caller, work, folder.manifest)
        folder.begin(sitting.manifest(settings), work.questions)
        await LiveRun(folder, work, caller, progress, concurrency=sitting.concurrency).run(routes)


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise StartupError("--gateway: must be http(s)://host:port, without a password.")


def _key(reference: str | None) -> str:
    try:
        key = dereference(reference or "", ValueOrigin(environment(), Path.cwd()))
    except InvalidValue as error:
        raise StartupError(f"--key: {error}") from error
    if key is None:
        raise StartupError("--key: a key must not stand on the command line: write env:NAME or file:/path")
    return key


def _warn_where_busy(pair: Pair, told: Console) -> None:
    """Models on this machine want its cores for themselves: `thread_shares` says why."""
    if not isinstance(pair, LocalPair) or not hasattr(os, "getloadavg"):
        return
    load, cores = os.getloadavg()[0], usable_cores()
    # The load is the whole machine's, of which a container or a CPU set may have a part.
    if load > (os.cpu_count() or cores) - cores / 2:
        told.print(
            f"warning: the load of the last minute was {load:.1f}, and the models here have {cores} cores: beside "
            "other programs they may take ten times as long",
            highlight=False,
        )


def _fetch(pair: Pair) -> None:
    """Before a clock runs; a name that is wrong is said before a gigabyte is fetched."""
    if isinstance(pair, LocalPair):
        for fetch in (weights.find, weights.fetch):
            for model in dict.fromkeys((pair.teacher, pair.student)):
                fetch(model)


def _agree_on_stages(sitting: EvalSession, folder: RunFolder, told: Console) -> None:
    calls = _calls_left(sitting, folder)
    if sum(calls) > sitting.most_calls and not sitting.yes and not folder.stages:
        _until_done(_time_a_few(sitting, folder, told), sitting, told)
        calls = _calls_left(sitting, folder)
    times = (folder.seconds_per_call("teacher"), folder.seconds_per_call("student"))
    expected = [count * seconds for count, seconds in zip(calls, times, strict=True) if seconds is not None]
    said = (
        f"{len(sitting.settings)} settings, {len(sitting.data.questions)} questions: the teacher is asked "
        f"{calls[0]} times, the student up to {calls[1]} times"
    )
    _agree(sitting, told, said, sum(calls), sum(expected) if expected else None)


def _calls_left(sitting: EvalSession, folder: RunFolder) -> tuple[int, int]:
    work = sitting.work(Scoring().score)
    with closing(StagedRun(folder, work, sitting.pair, ProgressBars(Console(quiet=True)), concurrency=1)) as run:
        return run.calls_left()


def _agree_on_live(sitting: EvalSession, folder: RunFolder, told: Console) -> None:
    routes = len(sitting.settings) * (len(sitting.routes) or 1)
    calls = routes * len(sitting.data.questions)
    seconds = folder.seconds_per_call("live")
    said = f"{routes} settings, {len(sitting.data.questions)} questions: up to {calls} answers"
    _agree(sitting, told, said, calls, None if seconds is None else calls * seconds)


def _agree(sitting: EvalSession, told: Console, said: str, calls: int, seconds: float | None) -> None:
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
