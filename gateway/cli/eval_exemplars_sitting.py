"""One sitting of `eval exemplars`: questions are drawn, engines asked, and what was found is written."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer
import uvloop
from rich.console import Console

from gateway.cli.eval_exemplars_print import SearchPrinter, provenance
from gateway.cli.eval_progress import ProgressBars, ProgressLines
from gateway.cli.interrupts import INTERRUPTED, until_interrupted
from gateway.errors import EngineError, StartupError
from gateway.evaluation.folder import RunFolder, digest
from gateway.evaluation.judges import judge_of
from gateway.evaluation.pair import ConfiguredPair, LocalPair, manifest_facts
from gateway.evaluation.priming.exemplars import given, split
from gateway.evaluation.priming.exemplars_yaml import exemplar_yaml, exists_error, write_file
from gateway.evaluation.priming.finding import find
from gateway.evaluation.priming.trials import Trials
from gateway.evaluation.questions.data import GENERATED, GENERATED_CHOICES, load
from gateway.evaluation.questions.exemplars_file import exemplars
from gateway.evaluation.record import Manifest
from gateway.evaluation.run_records import read_run
from gateway.evaluation.scoring import Scoring
from gateway.evaluation.staged import STUDENT, TEACHER
from gateway.local import weights
from gateway.telemetry.logs import set_up_logs
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gateway.evaluation.pair import Pair
    from gateway.evaluation.priming.exemplars import ExemplarCandidate, QuestionSplit
    from gateway.evaluation.priming.finding import SearchLimits, SearchReport
    from gateway.evaluation.setting import Setting

_MADE = (GENERATED, GENERATED_CHOICES)
_MADE_COUNT = 2000
# `eval run` asks those of seed 0.
_OTHER_SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ExemplarSession:
    """What the command line asks for.

    Attributes:
        own: a file of exemplars that race with those that are made.
        evaluated: a run's folder, whose questions are left alone.
    """

    folder: Path
    out: Path
    force: bool
    data: str
    offset: int
    evaluated: Path | None
    skip_bad: bool
    scorer: str | None
    judge: str | None
    own: Path | None
    setting: Setting
    pool: int
    select: int
    check: int
    limits: SearchLimits
    seed: int
    pair: Pair
    concurrency: int


def seek(sought: ExemplarSession) -> bool:
    """Search, print and write. Whether exemplars help. Raises StartupErrors."""
    if sought.out.exists() and not sought.force:
        raise exists_error(sought.out)
    if not sought.out.absolute().parent.is_dir():
        raise StartupError(f"{sought.out} cannot be written: there is no such folder. Make it first.")
    set_up_logs("error", "auto")
    name, parts = drawn(sought)
    own = () if sought.own is None else given(exemplars(sought.own), parts)
    sought.limits.check_calls(parts)
    if isinstance(sought.pair, LocalPair):
        # Before the event loop: a name that is wrong is said at once, and a Ctrl-C ends a download.
        for fetch in (weights.find, weights.fetch):
            for model in dict.fromkeys((sought.pair.teacher, sought.pair.student)):
                fetch(model)
    with RunFolder(sought.folder) as folder:
        told = SearchPrinter(folder, sought.limits.calls)
        found: list[SearchReport] = []

        async def search() -> None:
            found.append(await _searched(sought, name, parts, own, folder, told))

        if not uvloop.run(until_interrupted(search(), "eval exemplars")):
            typer.echo(
                f"Stopped. What was written is in {sought.folder}: the same command goes on from there.", err=True
            )
            raise typer.Exit(INTERRUPTED)
        told.ended(found[0])
        return _written(sought, name, found[0], told)


def drawn(sought: ExemplarSession) -> tuple[str, QuestionSplit]:
    """The data set's name, and its questions in their parts. Raises StartupErrors."""
    left = set() if sought.evaluated is None else {one.question for one in read_run(sought.evaluated).examples}
    leave: list[str] = []
    if sought.data in _MADE:
        # Problems can be made without end: others than those of an evaluation.
        leave += [one.text for one in load(sought.data, count=_MADE_COUNT).questions]
        loaded = load(sought.data, count=_MADE_COUNT, seed=_OTHER_SEED, scorer=sought.scorer)
    else:
        loaded = load(sought.data, scorer=sought.scorer, skip_bad=sought.skip_bad)
        leave += [one.text for at, one in enumerate(loaded.questions) if at < sought.offset or one.id in left]
    if loaded.skipped:
        typer.echo(f"{len(loaded.skipped)} lines were passed over; the first: {loaded.skipped[0]}", err=True)
    parts = split(
        loaded.questions, pool=sought.pool, select=sought.select, check=sought.check, seed=sought.seed, exclude=leave
    )
    return loaded.name, parts


async def _searched(
    sought: ExemplarSession,
    name: str,
    parts: QuestionSplit,
    own: Sequence[ExemplarCandidate],
    folder: RunFolder,
    told: SearchPrinter,
) -> SearchReport:
    # Those to compare on come first: more questions of the pool may join behind them in the same folder.
    every = (*parts.select, *parts.check, *parts.pool)

    def begin(settings: Sequence[Setting]) -> None:
        manifest = Manifest(
            data=name,
            data_sha256=digest(every),
            questions=len(every),
            settings=[setting.as_dict() for setting in settings],
            seed=sought.seed,
            live=False,
            version=__version__,
            created=int(time.time()),
            **manifest_facts(sought.pair),
        )
        folder.begin(manifest, every)

    console = Console(stderr=True)
    progress = ProgressBars(console) if console.is_terminal else ProgressLines(console)
    async with AsyncExitStack() as exits:
        exits.callback(progress.end)
        judge = None
        if sought.judge is not None:
            if not isinstance(sought.pair, ConfiguredPair):
                raise StartupError(f"--judge {sought.judge} is a model of a configuration: name that with --config.")
            judge = await exits.enter_async_context(judge_of(sought.pair.settings, sought.judge, folder.generations))
        score = Scoring(judge).score
        trials = Trials(
            folder=folder,
            pair=sought.pair,
            setting=sought.setting,
            all_questions=every,
            score=score,
            progress=progress,
            concurrency=sought.concurrency,
            begin=begin,
        )
        told.planned(parts)
        try:
            return await find(trials, parts, score, sought.limits, sought.seed, told, own)
        except EngineError as error:
            raise StartupError(
                f"The judge failed: {error.message} The same command goes on where it stopped."
            ) from error


def _written(sought: ExemplarSession, name: str, result: SearchReport, told: SearchPrinter) -> bool:
    best = result.best
    written = best is not None and (result.helps or sought.force)
    if best is not None and written:
        names = sought.pair.names
        day = datetime.now(UTC).date().isoformat()
        found = f"Exemplars for projection primed, found by `gkt-gateway eval exemplars` on {day}."
        of = f"data {name}, seed {sought.seed}; guidance of {sought.setting.tokens} tokens."
        facts = (found, f"Teacher {names[TEACHER]}, student {names[STUDENT]}; {of}")
        write_file(sought.out, exemplar_yaml(best.trial.shown, provenance(result, best, facts)), overwrite=sought.force)
    told.verdict(result, sought.out, written=written)
    return result.helps
