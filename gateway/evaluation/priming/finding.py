"""A whole search: the teacher's answers to the pool, exemplars from them, the race of sets, and the final check."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gateway.errors import StartupError
from gateway.evaluation.priming.exemplars import candidates, ordered_by_style
from gateway.evaluation.priming.search import ExemplarSearch, MeasuredOutcomes, ScoreDifference, min_calls
from gateway.evaluation.priming.trials import POOL_CALLS_EACH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.evaluation.example import QuestionScorer
    from gateway.evaluation.priming.exemplars import ExemplarCandidate, QuestionSplit, Style, TeacherAnswer
    from gateway.evaluation.priming.search import SearchResult, SearchStep, Shown, Trial, TrialOutcome
    from gateway.evaluation.question import Question


class SearchMeasures(Protocol):
    """Engine calls of a search; implemented by `trials.Trials`."""

    async def answers(self, pool: Sequence[Question], pool_answer_tokens: int) -> dict[str, list[TeacherAnswer]]:
        """Return the teacher's answers to each question, by id."""
        ...

    async def measure(self, requests: Sequence[tuple[Shown, Question]]) -> list[TrialOutcome]:
        """Return the outcome of each question with its exemplars."""
        ...


class SearchListener(Protocol):
    """Receiver of a search's progress."""

    def on_candidates(self, styles: Mapping[Style, Sequence[ExemplarCandidate]], wrong: int) -> None:
        """Report the candidates; `wrong` questions of the pool have no correct answer that is short enough."""
        ...

    def on_step(self, step: SearchStep) -> None:
        """Report a step of the search."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchLimits:
    """Limits of a search.

    Attributes:
        calls: Engine calls in total.
        max_exemplars: Exemplars of a set.
        max_tokens: Tokens of an exemplar's answer.
        pool_answer_tokens: Token limit of the teacher's answers to the pool.
    """

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


@dataclass(frozen=True, slots=True)
class SearchCheck:
    """The found exemplars compared with no exemplars, on questions outside the search."""

    without: Trial
    with_exemplars: Trial
    gained: ScoreDifference


@dataclass(frozen=True, slots=True)
class SearchReport:
    """Result of a search with its check.

    Attributes:
        search: The result of the race.
        check: None if nothing was found, or without questions for a check.
        spent: Engine calls, including those of earlier sittings.
    """

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
    measures: SearchMeasures,
    parts: QuestionSplit,
    score: QuestionScorer,
    limits: SearchLimits,
    seed: int,
    listener: SearchListener,
    own: Sequence[ExemplarCandidate] = (),
) -> SearchReport:
    """Search among the exemplars from the pool, and `own`.

    Raises:
        StartupError: The calls do not suffice, an engine fails, or there is no exemplar at all.
        EngineError: A judge fails.
    """
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
