"""A session of `eval exemplars`: draws questions, searches with the engines, and writes the result."""

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

_GENERATED_DATA = (GENERATED, GENERATED_CHOICES)
_GENERATED_COUNT = 2000
# `eval run` uses seed 0.
_OTHER_SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ExemplarSession:
    """Options of the command.

    Attributes:
        own: a file of additional exemplars to compare.
        evaluated: a run's folder, whose questions are excluded.
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


def seek(session: ExemplarSession) -> bool:
    """Search, print and write the result. Return whether exemplars help. Raises StartupError."""
    if session.out.exists() and not session.force:
        raise exists_error(session.out)
    if not session.out.absolute().parent.is_dir():
        raise StartupError(f"{session.out} cannot be written: there is no such folder. Make it first.")
    set_up_logs("error", "auto")
    name, parts = draw_questions(session)
    own = () if session.own is None else given(exemplars(session.own), parts)
    session.limits.check_calls(parts)
    if isinstance(session.pair, LocalPair):
        # Outside the event loop, so that Ctrl-C ends a download. An unknown name fails before any download.
        for fetch in (weights.find, weights.fetch):
            for model in dict.fromkeys((session.pair.teacher, session.pair.student)):
                fetch(model)
    with RunFolder(session.folder) as folder:
        printer = SearchPrinter(folder, session.limits.calls)
        reports: list[SearchReport] = []

        async def search() -> None:
            reports.append(await _search(session, name, parts, own, folder, printer))

        if not uvloop.run(until_interrupted(search(), "eval exemplars")):
            typer.echo(f"Stopped. The answers are in {session.folder}: run the same command again to resume.", err=True)
            raise typer.Exit(INTERRUPTED)
        printer.ended(reports[0])
        return _write(session, name, reports[0], printer)


def draw_questions(session: ExemplarSession) -> tuple[str, QuestionSplit]:
    """Return the data set's name and the split of its questions. Raises StartupError."""
    left = set() if session.evaluated is None else {one.question for one in read_run(session.evaluated).examples}
    excluded: list[str] = []
    if session.data in _GENERATED_DATA:
        # Generated data: draw problems that no evaluation uses.
        excluded += [one.text for one in load(session.data, count=_GENERATED_COUNT).questions]
        loaded = load(session.data, count=_GENERATED_COUNT, seed=_OTHER_SEED, scorer=session.scorer)
    else:
        loaded = load(session.data, scorer=session.scorer, skip_bad=session.skip_bad)
        excluded += [one.text for at, one in enumerate(loaded.questions) if at < session.offset or one.id in left]
    if loaded.skipped:
        typer.echo(f"{len(loaded.skipped)} lines were skipped; the first: {loaded.skipped[0]}", err=True)
    parts = split(
        loaded.questions,
        pool=session.pool,
        select=session.select,
        check=session.check,
        seed=session.seed,
        exclude=excluded,
    )
    return loaded.name, parts


async def _search(
    session: ExemplarSession,
    name: str,
    parts: QuestionSplit,
    own: Sequence[ExemplarCandidate],
    folder: RunFolder,
    printer: SearchPrinter,
) -> SearchReport:
    # The pool comes last, so that it may grow in the same folder.
    every = (*parts.select, *parts.check, *parts.pool)

    def begin(settings: Sequence[Setting]) -> None:
        manifest = Manifest(
            data=name,
            data_sha256=digest(every),
            questions=len(every),
            settings=[setting.as_dict() for setting in settings],
            seed=session.seed,
            live=False,
            version=__version__,
            created=int(time.time()),
            **manifest_facts(session.pair),
        )
        folder.begin(manifest, every)

    console = Console(stderr=True)
    progress = ProgressBars(console) if console.is_terminal else ProgressLines(console)
    async with AsyncExitStack() as exits:
        exits.callback(progress.end)
        judge = None
        if session.judge is not None:
            if not isinstance(session.pair, ConfiguredPair):
                raise StartupError(f"--judge {session.judge} is a model of a configuration: name that with --config.")
            judge = await exits.enter_async_context(judge_of(session.pair.settings, session.judge, folder.generations))
        score = Scoring(judge).score
        trials = Trials(
            folder=folder,
            pair=session.pair,
            setting=session.setting,
            all_questions=every,
            score=score,
            progress=progress,
            concurrency=session.concurrency,
            begin=begin,
        )
        printer.planned(parts)
        try:
            return await find(trials, parts, score, session.limits, session.seed, printer, own)
        except EngineError as error:
            raise StartupError(f"The judge failed: {error.message} Run the same command again to resume.") from error


def _write(session: ExemplarSession, name: str, result: SearchReport, printer: SearchPrinter) -> bool:
    best = result.best
    is_written = best is not None and (result.helps or session.force)
    if best is not None and is_written:
        names = session.pair.names
        day = datetime.now(UTC).date().isoformat()
        reports = f"Exemplars for projection primed, found by `gkt-gateway eval exemplars` on {day}."
        of = f"data {name}, seed {session.seed}; guidance of {session.setting.tokens} tokens."
        facts = (reports, f"Teacher {names[TEACHER]}, student {names[STUDENT]}; {of}")
        write_file(
            session.out, exemplar_yaml(best.trial.shown, provenance(result, best, facts)), overwrite=session.force
        )
    printer.verdict(result, session.out, written=is_written)
    return result.helps
