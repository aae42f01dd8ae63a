"""A whole search: the teacher's answers to the pool, exemplars made of them, the race, and its winner checked."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gateway.errors import StartupError
from gateway.evaluation.priming.exemplars import candidates, varied
from gateway.evaluation.priming.search import ExemplarSearch, MeasuredOutcomes, ScoreDifference, fewest_calls
from gateway.evaluation.priming.trials import POOL_CALLS_EACH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.evaluation.example import QuestionScorer
    from gateway.evaluation.priming.exemplars import ExemplarCandidate, QuestionSplit, Style, TeacherAnswer
    from gateway.evaluation.priming.search import SearchResult, SearchStep, Shown, Trial, TrialOutcome
    from gateway.evaluation.question import Question


class SearchMeasures(Protocol):
    """What a search asks of engines; `trials.Trials` is one."""

    async def answers(self, pool: Sequence[Question], longest: int) -> dict[str, list[TeacherAnswer]]:
        """What the teacher writes to each question, by id."""
        ...

    async def measure(self, asks: Sequence[tuple[Shown, Question]]) -> list[TrialOutcome]:
        """Each question behind its exemplars."""
        ...


class SearchListener(Protocol):
    """Who is told how far a search is."""

    def made(self, styles: Mapping[Style, Sequence[ExemplarCandidate]], wrong: int) -> None:
        """These exemplars may be chosen; to `wrong` questions of the pool there was no correct answer short enough."""
        ...

    def took(self, step: SearchStep) -> None:
        """The search took one step more."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchLimits:
    """What a search may take.

    Attributes:
        calls: of engines, all in all.
        most: how many exemplars may be shown.
        most_tokens: of an exemplar's answer.
        longest: of what the teacher writes to a question of the pool, in tokens.
    """

    calls: int
    most: int
    most_tokens: int
    longest: int

    def reach_for(self, parts: QuestionSplit) -> None:
        """Raises StartupError where the calls do not reach for one set of exemplars and its check."""
        least = POOL_CALLS_EACH * len(parts.pool) + fewest_calls(len(parts.select), len(parts.check))
        if self.calls < least:
            raise StartupError(
                f"--calls {self.calls} does not reach: {len(parts.pool)} questions of the pool, {len(parts.select)} to "
                f"compare on and {len(parts.check)} to check take {least} calls for one set alone. Raise --calls, or "
                "lower --pool, --select or --check."
            )


@dataclass(frozen=True, slots=True)
class SearchCheck:
    """What was found, and no exemplars, on questions that the search has not seen."""

    without: Trial
    behind: Trial
    gained: ScoreDifference


@dataclass(frozen=True, slots=True)
class SearchReport:
    """What came of it.

    Attributes:
        checked: None where nothing was found, or no questions were kept for it.
        spent: calls, those of earlier sittings included.
    """

    found: SearchResult
    checked: SearchCheck | None
    spent: int

    @property
    def helps(self) -> bool:
        """Whether exemplars were found, and gain on the questions of the check too."""
        return self.found.best is not None and (self.checked is None or self.checked.gained.gain > 0)

    @property
    def best(self) -> SearchStep | None:
        """The best set that there is, whether or not it helps; None: none was tried to the end."""
        return self.found.best or self.found.runner_up


async def find(
    measures: SearchMeasures,
    parts: QuestionSplit,
    score: QuestionScorer,
    limits: SearchLimits,
    seed: int,
    listener: SearchListener,
    own: Sequence[ExemplarCandidate] = (),
) -> SearchReport:
    """Search among what can be made of the pool, and `own`.

    Raises StartupError where the calls do not reach, an engine fails, or there is no exemplar at all; EngineErrors of
    a judge.
    """
    limits.reach_for(parts)
    answers = await measures.answers(parts.pool, limits.longest)
    made = [
        await candidates(question, answers.get(question.id, []), score, most_tokens=limits.most_tokens)
        for question in parts.pool
    ]
    if not any(made) and not own:
        raise StartupError(
            f"To none of the {len(parts.pool)} questions of the pool did the teacher give a correct answer of at most "
            f"{limits.most_tokens} tokens: raise --pool or --max-answer-tokens, or look whether its scorer reads it."
        )
    styles = varied((one for some in made for one in some), seed)
    if own:
        styles["given"] = list(own)
    listener.made(styles, sum(not some for some in made))
    scores = MeasuredOutcomes(measures.measure, limits.calls, POOL_CALLS_EACH * len(parts.pool))
    check = fewest_calls(0, len(parts.check))
    search = ExemplarSearch(styles, parts.select, scores, most=limits.most, keep=check)
    found = await search.run(listener.took)
    checked = None
    if found.best is not None and parts.check:
        without, behind = await scores.of([(), found.best.trial.shown], parts.check)
        checked = SearchCheck(without, behind, ScoreDifference.of(without, behind))
    return SearchReport(found, checked, scores.spent)


def named(shown: Shown) -> str:
    """A set in words: how many exemplars of which style."""
    counts = Counter(one.style for one in shown)
    return ", ".join(f"{count} {style}" for style, count in counts.items()) or "none"
