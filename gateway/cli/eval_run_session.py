"""A session of `eval run`: confirms a large run, starts engines, shows progress and prints a summary."""

from __future__ import annotations

import math
import os
import sys
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.table import Table

from gateway.cli.eval_progress import EvalProgress, duration
from gateway.cli.interrupts import run_resumable
from gateway.config.scalars import InvalidValue, ValueOrigin, dereference
from gateway.config.settings import environment
from gateway.errors import StartupError
from gateway.evaluation import live
from gateway.evaluation.advice.sample_size import loss_within, questions_to_show
from gateway.evaluation.folder import RunFolder, new_manifest, shown_hash
from gateway.evaluation.pair import LocalPair, judge_of, judge_settings, manifest_facts
from gateway.evaluation.run import EvalWork, StagedRun
from gateway.evaluation.scoring import JUDGE, PREFERENCE, Scoring
from gateway.evaluation.summary import cache_hits, roles_with_cache_reads
from gateway.local.stack import usable_cores
from gateway.telemetry.logs import set_up_logs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.evaluation.pair import Pair
    from gateway.evaluation.questions.data import LoadedData
    from gateway.evaluation.record import Manifest
    from gateway.evaluation.scoring import Scorer
    from gateway.evaluation.setting import Setting

_LONG_S = 12 * 3600.0
"""A run with a longer expected duration needs a confirmation, however few its calls are."""
# Assumptions for the number of questions: guidance is so much more accurate than a mixture of student and teacher, and
# this part of the questions has one right answer of the two.
_ADVANTAGE, _DIFFERING = 0.05, 0.2


@dataclass(frozen=True, slots=True)
class EvalSession:
    """The options of the command line."""

    folder: Path
    data: LoadedData
    settings: Sequence[Setting]
    pair: Pair
    concurrency: int
    scorer: Scorer | None = None
    judge: str | None = None
    seed: int = 0
    gateway: str | None = None
    key: str | None = None
    routes: tuple[str, ...] = ()
    rescore: bool = False
    scores_guidance: bool = False
    scores_answers: bool = False
    yes: bool = False
    most_calls: int = 20_000

    @property
    def plain_settings(self) -> list[dict[str, Any]]:
        """Return the settings as the manifest stores them, each with a hash of the prompt's fixed text."""
        return [setting.as_dict() | {"shown": shown_hash(setting, self.data.exemplars)} for setting in self.settings]

    def manifest(self, settings: list[dict[str, Any]]) -> Manifest:
        facts = manifest_facts(self.pair)
        live = self.gateway is not None
        if live:
            facts = {"teacher": self.gateway, "student": self.gateway, "prices": {}}
        return new_manifest(self.data.name, self.data.questions, settings, seed=self.seed, live=live, **facts)


def hold(session: EvalSession) -> None:
    """Run the session. Exits with 130 after a signal. Raises StartupError if an engine fails; answers are kept."""
    set_up_logs("error", "auto")  # each failed call is in the examples, by its label
    console = Console(stderr=True, soft_wrap=True)
    if session.gateway is not None:
        parts = urlsplit(session.gateway)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
            raise StartupError("--gateway: must be http(s)://host:port, without a password.")
    if session.judge is not None:
        judge_settings(session.pair, session.judge)
    elif any(one.scorer in {JUDGE, PREFERENCE} for one in session.data.questions):
        raise StartupError("Questions without a rule for their answers need a judge: name a model with --judge.")
    with RunFolder(session.folder) as folder:
        # Confirmations and downloads come outside the event loop, so that Ctrl-C ends them at once.
        if session.gateway is None:
            folder.check(session.manifest(session.plain_settings), session.data.questions)
        if session.gateway is None and not session.rescore:
            _warn_where_busy(session.pair, console)
            session.pair.fetch()
        if not session.rescore:
            _agree(session, folder, console)
        run_resumable(_run(session, folder, console), session.folder)
        _sum_up(folder, Console())


async def _run(session: EvalSession, folder: RunFolder, console: Console, limit: int | None = None) -> None:
    """Answer the questions; in two stages the first `limit` ones, whose answers are kept and not requested again."""
    async with judge_of(session.pair, session.judge, folder.generations) as judge:
        score = Scoring(judge, session.scorer).score
        work = EvalWork(session.data.questions, session.data.exemplars, session.settings, score)
        with EvalProgress(console) as progress:
            if session.gateway is not None:
                routes = live.remote_routes(session.routes, work)
                async with live.connect_gateway(session.gateway, _key(session.key)) as caller:
                    settings = await live.describe_routes(routes, caller, work, folder.manifest)
                    folder.begin(session.manifest(settings), work.questions)
                    await live.run_live(routes, folder, work, caller, progress, concurrency=session.concurrency)
                return
            folder.begin(session.manifest(session.plain_settings), work.questions)
            work = replace(work, questions=work.questions[:limit])
            staged = StagedRun(
                folder,
                work,
                session.pair,
                progress,
                concurrency=session.concurrency,
                scores_guidance=session.scores_guidance,
                scores_answers=session.scores_answers,
            )
            with closing(staged) as run:
                if not session.rescore:
                    await run.run()
                elif left := await run.rescore():
                    console.print(f"{len(left)} answers have no text yet: run without --rescore to request them.")


def _key(reference: str | None) -> str:
    try:
        key = dereference(reference or "", ValueOrigin(environment(), Path.cwd()))
    except InvalidValue as error:
        raise StartupError(f"--key: {error}") from error
    if key is None:
        raise StartupError("--key: a key must not be written on the command line: use env:NAME or file:/path")
    return key


def _warn_where_busy(pair: Pair, console: Console) -> None:
    """Warn if other processes use the cores that local models need (see `thread_shares`)."""
    if not isinstance(pair, LocalPair) or not hasattr(os, "getloadavg"):
        return
    load, cores = os.getloadavg()[0], usable_cores()
    # The load is the whole machine's, of which a container or a CPU set may have a part.
    if load > (os.cpu_count() or cores) - cores / 2:
        console.print(
            f"warning: the load of the last minute was {load:.1f}, and the models here have {cores} cores: next to "
            "other programs they may take ten times as long",
            highlight=False,
        )


def _agree(session: EvalSession, folder: RunFolder, console: Console) -> None:
    """Print the size of the run, and ask for confirmation of a large one. Raises StartupError without confirmation."""
    settings, questions = len(session.settings), len(session.data.questions)
    if session.gateway is not None:
        settings *= len(session.routes)
        by_stage = {"live": settings * questions}
        answers = f"up to {by_stage['live']} answers"
    else:
        by_stage = _calls_left(session, folder)
        if sum(by_stage.values()) > session.most_calls and not session.yes and not folder.stages:
            # Measure the duration of the first calls.
            first = {setting.mode: setting for setting in session.settings}
            few = replace(session, settings=list(first.values()))
            run_resumable(_run(few, folder, console, few.concurrency), session.folder)
            by_stage = _calls_left(session, folder)
        answers = f"{by_stage['teacher']} calls of the teacher, up to {by_stage['student']} calls of the student"
    calls = sum(by_stage.values())
    means_s = {stage: folder.seconds_per_call(stage) for stage in by_stage}
    known_s = [by_stage[stage] * mean_s for stage, mean_s in means_s.items() if mean_s is not None]
    about = f", about {duration(sum(known_s))}" if known_s and calls else ""
    console.print(f"{settings} settings, {questions} questions: {answers}{about}.", highlight=False)
    if guided := sum(setting.mode == "guided" for setting in session.settings):
        _state_needed_questions(questions, guided, console)
    if session.yes or (calls <= session.most_calls and sum(known_s) <= _LONG_S):
        return
    if not sys.stdin.isatty():
        raise StartupError("A large run needs a confirmation on a terminal: add --yes, or make the grid smaller.")
    if not typer.confirm("Start the run?", err=True):
        raise StartupError("The run was not started. For a shorter run, use a smaller grid or --limit.")


def _state_needed_questions(questions: int, settings: int, console: Console) -> None:
    """Print how many questions `eval recommend` needs by default for the guided settings."""
    needed = math.ceil(questions_to_show(_ADVANTAGE, _DIFFERING, 0.8, settings) / 50) * 50
    few = f"note: {questions} questions are few for `eval recommend`. " if questions < needed else ""
    console.print(
        f"{few}About {needed} questions show with 80 % confidence that guidance is {_ADVANTAGE * 100:.0f} points "
        f"better than a student-teacher mixture at its cost, if {_DIFFERING:.0%} of the results differ. They measure "
        f"the loss of accuracy to within {loss_within(needed, _DIFFERING) * 100:.0f} points, {questions} to within "
        f"{loss_within(questions, _DIFFERING) * 100:.0f}.",
        highlight=False,
    )


def _calls_left(session: EvalSession, folder: RunFolder) -> dict[str, int]:
    work = EvalWork(session.data.questions, session.data.exemplars, session.settings, Scoring().score)
    with closing(StagedRun(folder, work, session.pair, EvalProgress(Console(quiet=True)), concurrency=1)) as run:
        return run.calls_left()


def _sum_up(folder: RunFolder, console: Console) -> None:
    """Print the accuracy or preference of each setting. The report adds confidence intervals and costs."""
    assert folder.manifest is not None
    compares = folder.manifest.metric == "preference"
    title = "points of the comparisons with the teacher" if compares else "right"
    table = Table("setting", title, "of", "errors", box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for setting in folder.manifest.settings:
        those = [one for one in folder.examples.values() if one.setting == setting["name"]]
        errors = sum(one.error is not None for one in those)
        right = f"{sum(one.score for one in those):g}" if compares else str(sum(one.correct for one in those))
        table.add_row(setting["name"], right, str(len(those) - errors), str(errors or ""))
    console.print(table)
    examples = folder.examples.values()
    hits = cache_hits(examples, roles_with_cache_reads(examples))
    parts = [f"{role} {'not reported' if part is None else f'{part:.0%}'}" for role, part in hits.items()]
    if parts:
        text = f"Input tokens read from the prompt cache: {', '.join(parts)}."
        console.print(text, markup=False, highlight=False)
    console.print(f"\nNext: gkt-gateway eval report {folder.path}", markup=False, highlight=False)
