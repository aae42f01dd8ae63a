"""A session of `eval exemplars`: draws questions, searches with the engines, and writes the result."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from gateway.cli.eval_progress import EvalProgress, duration
from gateway.cli.interrupts import run_resumable
from gateway.cli.tables import console_for, plain_table
from gateway.errors import EngineError, StartupError
from gateway.evaluation.advice.target import percent
from gateway.evaluation.folder import RunFolder, new_manifest
from gateway.evaluation.pair import judge_of, manifest_facts
from gateway.evaluation.priming.exemplars import exemplar_yaml, exists_error, given, split, write_file
from gateway.evaluation.priming.finding import Trials, describe, find
from gateway.evaluation.questions.data import GENERATED, GENERATED_CHOICES, exemplars, load
from gateway.evaluation.record import read_run
from gateway.evaluation.scoring import Scoring, metric_of
from gateway.evaluation.setting import STUDENT, TEACHER
from gateway.telemetry.logs import set_up_logs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from gateway.evaluation.pair import Pair
    from gateway.evaluation.priming.exemplars import ExemplarCandidate, QuestionSplit, Style
    from gateway.evaluation.priming.finding import SearchLimits, SearchReport
    from gateway.evaluation.priming.search import ScoreDifference, SearchStep, Trial
    from gateway.evaluation.setting import Setting

_GENERATED_COUNT = 2000
_LEGEND = (
    "Score: guided accuracy on the same questions in each row. Gain: points against no exemplars, with the 95 % "
    "confidence interval. Input, output: teacher tokens per request. Tried: number of compared sets."
)


class SearchPrinter:
    """Prints the steps of a search. The folder has the times of its calls, and `calls` limits them."""

    def __init__(self, folder: RunFolder, calls: int) -> None:
        self.console = console_for(pipe_width=120)
        self._folder = folder
        self._calls = calls

    def planned(self, parts: QuestionSplit) -> None:
        self.say(
            f"Exemplars are made of {len(parts.pool)} questions, compared on {len(parts.select)} others and checked on "
            f"{len(parts.check)} more, in at most {self._calls:,} calls of engines{self._left()}."
        )

    def on_candidates(self, styles: Mapping[Style, Sequence[ExemplarCandidate]], wrong: int) -> None:
        each = ", ".join(f"{len(candidates)} {style}" for style, candidates in styles.items())
        none = f" {wrong} questions of the pool have no correct answer that is short enough." if wrong else ""
        self.say(f"Exemplars to choose from: {each}.{none}")

    def on_step(self, step: SearchStep) -> None:
        score, spent = percent(step.trial.score), f"after {step.spent:,} calls{self._left()}"
        if step.gained is None:
            self.say(f"Without exemplars: {score}, {spent}. Comparing sets of exemplars.")
        else:
            best = f"the best of {step.tried}" if step.tried > 1 else "the only one"
            self.say(f"Taken: {describe(step.trial.shown)}: {score}, {gain(step.gained)}; {best}, {spent}.")

    def ended(self, result: SearchReport) -> None:
        table = plain_table("exemplars", "score", "gain", "input", "output", "tried", right=slice(1, None))
        for step in result.search.steps:
            table.add_row(*_row(step.trial, step.gained), str(step.tried or ""))
        if (close := result.search.runner_up) is not None:
            table.add_row(*_row(close.trial, close.gained), f"{close.tried}, not taken", style="dim")
        if result.check is not None:
            table.add_section()
            table.add_row(*_row(result.check.without, None), "check")
            table.add_row(*_row(result.check.with_exemplars, result.check.gained), "check")
        self.console.print(table)
        self.console.print(_LEGEND, style="dim", soft_wrap=not self.console.is_terminal, highlight=False)
        if result.search.ended == "calls":
            self.say("The search ended at the limit --calls. A higher limit may find better exemplars.")
        self.say(f"It took {result.spent:,} calls, including those of earlier sessions.")

    def verdict(self, result: SearchReport, out: Path, *, written: bool) -> None:
        """Print whether exemplars help, and the file."""
        if result.helps:
            self.say(f"These exemplars help: they are in {out}.")
            if result.check is None:
                self.say("Expect a smaller gain: they were selected on these questions. Validate it with --check.")
        elif result.search.best is not None:
            self.say("No exemplars help: the best set gains nothing on the questions of the check.")
        else:
            self.say("No exemplars help: no gain is significant.")
        if not result.helps:
            self.say(f"The best exemplars were written to {out}." if written else "No file was written.")

    def _left(self) -> str:
        """Return the longest remaining time as text, if calls were timed."""
        seconds, calls = (sum(getattr(stage, name) for stage in self._folder.stages) for name in ("seconds", "calls"))
        if not calls:
            return "" if self._folder.examples else "; the time is estimated after the first calls"
        return f"; at most {duration(max(0, self._calls - calls) * seconds / calls)} left"

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=not self.console.is_terminal, highlight=False, markup=False)


def provenance(result: SearchReport, step: SearchStep, facts: Sequence[str]) -> list[str]:
    """Return the header lines of the file: `facts` and the measurements."""
    without = result.search.steps[0].trial
    compared = f"On the {len(without.scores)} questions on which sets were compared"
    lines = [*facts, f"{compared}: {_measured(without, step.trial, step.gained)}"]
    if (checked := result.check) is not None:
        others = f"On {len(checked.without.scores)} other questions"
        lines.append(f"{others}: {_measured(checked.without, checked.with_exemplars, checked.gained)}")
    read, before = step.trial.read_tokens, without.read_tokens
    lines.append(f"Each request has {read:.0f} input tokens of the teacher, and {before:.0f} without exemplars.")
    if not result.helps:
        lines.append("The gain is not significant: the file was written because of --force.")
    return lines


def gain(difference: ScoreDifference) -> str:
    """Return a difference in points with its interval."""
    low, high = difference.low * 100, difference.high * 100
    return f"{difference.gain * 100:+.1f} points ({low:+.1f} to {high:+.1f})"


def _measured(without: Trial, behind: Trial, gained: ScoreDifference | None) -> str:
    scores = f"{percent(behind.score)}, and {percent(without.score)} without exemplars"
    return f"{scores}." if gained is None else f"{scores}: {gain(gained)}."


def _row(trial: Trial, gained: ScoreDifference | None) -> tuple[str, ...]:
    return (
        describe(trial.shown),
        percent(trial.score),
        "" if gained is None else gain(gained).replace(" points", ""),
        f"{trial.read_tokens:.0f}",
        f"{trial.written_tokens:.0f}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExemplarSession:
    """Options of the command.

    `own` is a file of additional exemplars to compare. `evaluated` is a run's folder; its questions are excluded.
    `sizes` has the number of questions for each part of the split.
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
    sizes: Mapping[str, int]
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
    session.pair.fetch()  # outside the event loop, so that Ctrl-C ends a download
    with RunFolder(session.folder) as folder:
        printer = SearchPrinter(folder, session.limits.calls)
        report = run_resumable(_search(session, name, parts, own, folder, printer), session.folder)
        printer.ended(report)
        return _write(session, name, report, printer)


def draw_questions(session: ExemplarSession) -> tuple[str, QuestionSplit]:
    """Return the data set's name and the split of its questions. Raises StartupError."""
    left = set() if session.evaluated is None else {one.question for one in read_run(session.evaluated).examples}
    excluded: list[str] = []
    if session.data in {GENERATED, GENERATED_CHOICES}:
        # Generated data: draw problems that no evaluation uses. `eval run` uses seed 0.
        excluded += [one.text for one in load(session.data, count=_GENERATED_COUNT).questions]
        loaded = load(session.data, count=_GENERATED_COUNT, seed=1, scorer=session.scorer)
    else:
        loaded = load(session.data, scorer=session.scorer, skip_bad=session.skip_bad)
        if metric_of(loaded.questions) == "preference":
            raise StartupError(f"--data {session.data}: questions without an answer have no exemplars: add answers.")
        excluded += [one.text for at, one in enumerate(loaded.questions) if at < session.offset or one.id in left]
    if loaded.skipped:
        typer.echo(f"{len(loaded.skipped)} lines were skipped; the first: {loaded.skipped[0]}", err=True)
    return loaded.name, split(loaded.questions, **session.sizes, seed=session.seed, exclude=excluded)


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
        plain = [setting.as_dict() for setting in settings]
        facts = manifest_facts(session.pair)
        folder.begin(new_manifest(name, every, plain, seed=session.seed, live=False, **facts), every)

    try:
        async with judge_of(session.pair, session.judge, folder.generations) as judge:
            score = Scoring(judge).score
            with EvalProgress(Console(stderr=True)) as progress:
                trials = Trials(
                    folder, session.pair, session.setting, every, score, progress, session.concurrency, begin
                )
                printer.planned(parts)
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
