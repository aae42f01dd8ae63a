"""A whole search: the teacher's answers to the pool, exemplars from them, the race of sets, and the final check."""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import orjson

from gateway.errors import StartupError
from gateway.evaluation.priming.exemplars import TeacherAnswer, candidates, ordered_by_style
from gateway.evaluation.priming.search import ExemplarSearch, MeasuredOutcomes, ScoreDifference, TrialOutcome, min_calls
from gateway.evaluation.run import EvalWork, StagedRun
from gateway.policy.projections import CONCISE, CUTOFF, PRIMED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gateway.evaluation.folder import RunFolder
    from gateway.evaluation.pair import Pair
    from gateway.evaluation.priming.exemplars import ExemplarCandidate, PromptStyle, QuestionSplit, Style
    from gateway.evaluation.priming.search import SearchResult, SearchStep, Shown, Trial
    from gateway.evaluation.record import Example, Question
    from gateway.evaluation.run import QuestionScorer, RunProgress
    from gateway.evaluation.setting import Setting
    from gateway.policy.projections import Exemplar

POOL_CALLS_EACH = 3
"""Calls of one question of the pool: plain, concise and primed."""
# Errors that a retry cannot fix: a set that exceeds an engine's context, or an unreadable judgment.
_FINAL_ERRORS = frozenset({"engine_rejected", "invalid_request", "judge_unreadable"})


@dataclass(frozen=True, slots=True)
class Trials:
    """Measurement of sets of exemplars by staged runs in `folder`.

    Each set replaces the projection of `setting`. `all_questions` are the questions of the whole search, in a fixed
    order. `begin` adds settings to the folder's manifest.
    """

    folder: RunFolder
    pair: Pair
    setting: Setting
    all_questions: Sequence[Question]
    score: QuestionScorer
    progress: RunProgress
    concurrency: int
    begin: Callable[[Sequence[Setting]], None]

    async def answers(self, pool: Sequence[Question], pool_answer_tokens: int) -> dict[str, list[TeacherAnswer]]:
        """Return complete answers of at most `pool_answer_tokens` by question id. Raises StartupError if one fails."""
        plain = replace(self.setting, mode="teacher", max_tokens=pool_answer_tokens)
        primed = replace(plain, shots=len(PRIMED.exemplars))
        concise = [replace(one, id=f"{one.id} (concise)", text=f"{CONCISE.instruction} {one.text}") for one in pool]
        await self._run([plain, primed], pool, PRIMED.exemplars)
        await self._run([plain], concise)
        found: dict[str, list[TeacherAnswer]] = {}
        for question, prompt in zip(pool, concise, strict=True):
            examples: dict[PromptStyle, Example] = {
                "as it is": self._example(plain, question),
                "concise": self._example(plain, prompt),
                "primed": self._example(primed, question),
            }
            found[question.id] = [
                TeacherAnswer(style, example.text, example.teacher_output_tokens)
                for style, example in examples.items()
                if example.error is None and example.finish == "stop"
            ]
        return found

    async def measure(self, requests: Sequence[tuple[Shown, Question]]) -> list[TrialOutcome]:
        """Return the outcomes in order. Raises StartupError if an engine is missing or fails.

        A request that an engine rejects scores 0, and an answer whose judgment is unreadable too.
        """
        settings = {shown: self.setting_with(shown) for shown, _ in requests}
        by_names: dict[tuple[str, ...], list[Setting]] = {}
        for shown, setting in settings.items():
            names = tuple(question.id for one, question in requests if one == shown)
            by_names.setdefault(names, []).append(setting)
        by_id = {question.id: question for _, question in requests}
        for names, group in by_names.items():
            await self._run(group, [by_id[name] for name in names])
        return [_outcome(self._example(settings[shown], question)) for shown, question in requests]

    def setting_with(self, shown: Shown) -> Setting:
        """Return the setting in which only the teacher reads these exemplars."""
        if not shown:
            return replace(self.setting, mode="guided", projection=CUTOFF)
        exemplars = tuple(one.exemplar for one in shown)
        texts = orjson.dumps([(one.question, one.answer) for one in exemplars])
        digest = hashlib.blake2b(texts, digest_size=4).hexdigest()
        projection = replace(PRIMED, name=f"primed {digest}", exemplars=exemplars)
        return replace(self.setting, mode="guided", projection=projection)

    async def _run(
        self, settings: Sequence[Setting], questions: Sequence[Question], exemplars: Sequence[Exemplar] = ()
    ) -> None:
        self.begin(settings)
        work = EvalWork(questions=questions, exemplars=exemplars, settings=settings, score=self.score)
        with closing(StagedRun(self.folder, work, self.pair, self.progress, concurrency=self.concurrency)) as run:
            await run.run()
        self.folder.write_examples(self.all_questions)
        examples = [self._example(setting, question) for setting in settings for question in questions]
        failed = {one.error for one in examples if one.error is not None} - _FINAL_ERRORS
        if failed:
            raise StartupError(
                f"Answers are missing ({', '.join(sorted(failed))}), so no exemplars can be chosen. All texts are "
                "stored: repeat the command to resume."
            )

    def _example(self, setting: Setting, question: Question) -> Example:
        return self.folder.examples[setting.name, question.id]


def _outcome(example: Example) -> TrialOutcome:
    if example.error is not None:
        return TrialOutcome(0.0, 0, 0, 1)
    student_wrote = example.mode != "teacher_complete"
    return TrialOutcome(example.score, example.teacher_input_tokens, example.teacher_output_tokens, 1 + student_wrote)


class SearchListener(Protocol):
    """Receiver of a search's progress. `wrong` questions of the pool have no correct answer that is short enough."""

    def on_candidates(self, styles: Mapping[Style, Sequence[ExemplarCandidate]], wrong: int) -> None: ...
    def on_step(self, step: SearchStep) -> None: ...


class SearchLimits(NamedTuple):
    """Limits of a search: engine calls, exemplars of a set, and tokens of an exemplar's and of the pool's answers."""

    calls: int
    max_exemplars: int
    max_tokens: int
    pool_answer_tokens: int

    def check_calls(self, parts: QuestionSplit) -> None:
        """Raise StartupError if the calls do not suffice for one set of exemplars and its check."""
        needed = POOL_CALLS_EACH * len(parts.pool) + min_calls(len(parts.select), len(parts.check))
        if self.calls < needed:
            raise StartupError(
                f"--calls {self.calls} is too few: {len(parts.pool)} questions of the pool, {len(parts.select)} to "
                f"compare on and {len(parts.check)} to check need {needed} calls for one set. Raise --calls, or lower "
                "--pool, --select or --check."
            )


class SearchCheck(NamedTuple):
    """The found exemplars compared with no exemplars, on questions outside the search."""

    without: Trial
    with_exemplars: Trial
    gained: ScoreDifference


class SearchReport(NamedTuple):
    """A search with its check, if there is something to check, and the engine calls with those of earlier sessions."""

    search: SearchResult
    check: SearchCheck | None
    spent: int

    @property
    def helps(self) -> bool:
        """Return whether exemplars were found that also gain in the check."""
        return self.search.best is not None and (self.check is None or self.check.gained.gain > 0)

    @property
    def best(self) -> SearchStep | None:
        """Return the best set, whether it helps or not; None if no set was tried to the end."""
        return self.search.best or self.search.runner_up


async def find(
    measures: Trials,
    parts: QuestionSplit,
    score: QuestionScorer,
    limits: SearchLimits,
    seed: int,
    listener: SearchListener,
    own: Sequence[ExemplarCandidate] = (),
) -> SearchReport:
    """Search among exemplars from the pool and `own`. Raises StartupError without any, and a judge's EngineError."""
    limits.check_calls(parts)
    answers = await measures.answers(parts.pool, limits.pool_answer_tokens)
    by_question = [
        await candidates(question, answers.get(question.id, []), score, max_tokens=limits.max_tokens)
        for question in parts.pool
    ]
    if not any(by_question) and not own:
        raise StartupError(
            f"The teacher has no correct answer of at most {limits.max_tokens} tokens to any of the {len(parts.pool)} "
            "questions of the pool: raise --pool or --max-answer-tokens, or check the scorer."
        )
    styles = ordered_by_style((one for group in by_question for one in group), seed)
    if own:
        styles["given"] = list(own)
    listener.on_candidates(styles, sum(not group for group in by_question))
    scores = MeasuredOutcomes(measures.measure, limits.calls, POOL_CALLS_EACH * len(parts.pool))
    check_calls = min_calls(0, len(parts.check))
    search = ExemplarSearch(styles, parts.select, scores, max_exemplars=limits.max_exemplars, reserve=check_calls)
    result = await search.run(listener.on_step)
    check = None
    if result.best is not None and parts.check:
        without, behind = await scores.of([(), result.best.trial.shown], parts.check)
        check = SearchCheck(without, behind, ScoreDifference.of(without, behind))
    return SearchReport(result, check, scores.spent)


def describe(shown: Shown) -> str:
    """Return a set in words: the number of exemplars by style."""
    counts = Counter(one.style for one in shown)
    return ", ".join(f"{count} {style}" for style, count in counts.items()) or "none"
