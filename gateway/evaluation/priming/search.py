"""Which exemplars raise the guided score: a forward search within a budget of calls. Pure: who measures is handed in.

Sets of exemplars race on the selection questions, all on the first third, the better half of them on the second, and
half of those on the last (successive halving). The winner replaces the set in hand where it is better beyond noise in
a paired comparison, or no worse and shorter; then larger, smaller and mixed sets made of it race in turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from gateway.evaluation.priming.exemplars import ExemplarCandidate
from gateway.evaluation.statistics import agresti_min, sign_test

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from gateway.evaluation.priming.exemplars import Style
    from gateway.evaluation.question import Question

Shown: TypeAlias = tuple[ExemplarCandidate, ...]
"""A set of exemplars, in the order in which a teacher sees them."""

NOISE = 0.1
"""A gain counts that chance alone would bring this rarely (sign test, one-sided)."""
CALLS_EACH = 2
"""What one question under one set takes at most: a teacher's call, and a student's."""
_FIRST_SIZES = (4, 1)
_RUNGS = 3


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """One question, answered with guidance behind one set of exemplars.

    Attributes:
        read_tokens, written_tokens: the teacher's.
        calls: how many texts of engines it took, whether or not they were there already.
    """

    score: float
    read_tokens: int
    written_tokens: int
    calls: int


Measure: TypeAlias = "Callable[[Sequence[tuple[Shown, Question]]], Awaitable[list[TrialOutcome]]]"


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of exemplars on some questions, in their order.

    Attributes:
        read_tokens, written_tokens: of the teacher, for each request, on average.
    """

    shown: Shown
    scores: tuple[float, ...]
    read_tokens: float
    written_tokens: float

    @property
    def score(self) -> float:
        """From 0 to 1."""
        return sum(self.scores) / len(self.scores)


@dataclass(frozen=True, slots=True)
class ScoreDifference:
    """What one set is better than another on the same questions.

    Attributes:
        gain: the difference of their scores, from -1 to 1; low, high: where it lies with 95 % confidence.
        wins, losses: questions on which it is better, and worse.
        chance: how often two equal sets would differ so much in its favour (exact sign test, one-sided).
    """

    gain: float
    low: float
    high: float
    wins: int
    losses: int
    chance: float

    @classmethod
    def of(cls, before: Trial, after: Trial) -> ScoreDifference:
        """Raises ValueError where they were not asked the same number of questions."""
        each = [new - old for old, new in zip(before.scores, after.scores, strict=True)]
        wins, losses = sum(one > 0 for one in each), sum(one < 0 for one in each)
        low, high = agresti_min(each)
        return cls(sum(each) / len(each), low, high, wins, losses, sign_test(wins, losses, "greater"))


class MeasuredOutcomes:
    """Outcomes, each measured once, within a budget.

    Args:
        calls: what may be spent; a set's worst case must fit into what is left before it is measured.
        spent: of them before the first set.
    """

    def __init__(self, measure: Measure, calls: int, spent: int = 0) -> None:
        self._measure = measure
        self._calls = calls
        self._known: dict[tuple[Shown, str], TrialOutcome] = {}
        self.spent = spent
        """Texts that were needed, those of an earlier sitting included: a search that goes on decides as it would."""

    @property
    def left(self) -> int:
        return self._calls - self.spent

    async def of(self, sets: Sequence[Shown], questions: Sequence[Question]) -> list[Trial]:
        """A trial of each set. Raises what `measure` raises; ValueError where the budget does not reach."""
        missing = [(one, asked) for one in sets for asked in questions if (one, asked.id) not in self._known]
        if len(missing) * CALLS_EACH > self.left:
            raise ValueError(f"{len(missing) * CALLS_EACH} calls were wanted, and {self.left} are left")
        for (one, asked), outcome in zip(missing, await self._measure(missing) if missing else [], strict=True):
            self._known[one, asked.id] = outcome
            self.spent += outcome.calls
        return [self._trial(one, questions) for one in sets]

    def _trial(self, shown: Shown, questions: Sequence[Question]) -> Trial:
        known = [self._known[shown, asked.id] for asked in questions]
        return Trial(
            shown,
            tuple(one.score for one in known),
            sum(one.read_tokens for one in known) / len(known),
            sum(one.written_tokens for one in known) / len(known),
        )


@dataclass(frozen=True, slots=True)
class SearchStep:
    """A set that was taken.

    Attributes:
        gained: against no exemplars; None of the first step, which has none.
        tried: how many sets raced for it; spent: calls until then.
    """

    trial: Trial
    gained: ScoreDifference | None
    tried: int
    spent: int


@dataclass(frozen=True, slots=True)
class SearchResult:
    """How a search ended.

    Attributes:
        steps: the sets it took, the first of them empty.
        runner_up: of the sets of the last race, which was not good enough, the best; None: there was no race.
        ended: nothing is better beyond noise; or the calls did not reach for one set more.
    """

    steps: tuple[SearchStep, ...]
    runner_up: SearchStep | None
    ended: Literal["nothing better", "calls"]

    @property
    def best(self) -> SearchStep | None:
        """The set that was found; None: none is better than no exemplars."""
        return self.steps[-1] if len(self.steps) > 1 else None


class ExemplarSearch:
    """One search.

    Args:
        styles: exemplars by style, in the order in which they are to be tried.
        questions: those to compare on. None of them may be one of the exemplars (ValueError).
        most: how many exemplars a set may have.
        keep: calls that it leaves.
    """

    def __init__(
        self,
        styles: Mapping[Style, Sequence[ExemplarCandidate]],
        questions: Sequence[Question],
        scores: MeasuredOutcomes,
        *,
        most: int,
        keep: int = 0,
    ) -> None:
        compared = {question.id for question in questions}
        if any(one.question in compared for some in styles.values() for one in some):
            raise ValueError("a question to compare on is an exemplar")
        self._styles = styles
        self._questions = questions
        self._scores = scores
        self._most = most
        self._keep = keep

    async def run(self, tell: Callable[[SearchStep], None] = lambda _: None) -> SearchResult:
        """Search to the end; `tell` hears of each step as it is taken. Raises what `MeasuredOutcomes.of` raises."""
        (without,) = await self._scores.of([()], self._questions)
        steps = [SearchStep(without, None, 0, self._scores.spent)]
        tell(steps[0])
        runner_up: SearchStep | None = None
        tried: set[Shown] = {()}
        while moves := [one for one in self.moves(steps[-1].trial.shown) if one not in tried]:
            moves = moves[: self._affordable(len(moves))]
            if not moves:
                return SearchResult(tuple(steps), runner_up, "calls")
            tried.update(moves)
            finalists = await self._race(moves)
            raced = [
                SearchStep(one, ScoreDifference.of(without, one), len(moves), self._scores.spent) for one in finalists
            ]
            better = [one for one in raced if improves(one.trial, steps[-1].trial)]
            if not better:
                runner_up = raced[0]
                break
            steps.append(better[0])
            tell(steps[-1])
        return SearchResult(tuple(steps), runner_up, "nothing better")

    def moves(self, shown: Shown) -> list[Shown]:
        """The sets to try after this one, the likeliest first: of each style at first, then larger, smaller, others."""
        if not shown:
            sizes = sorted({min(size, self._most) for size in _FIRST_SIZES}, reverse=True)
            return _unlike(tuple(some[:size]) for size in sizes for some in self._styles.values() if some)
        taken = {one.question for one in shown}
        rest = {style: tuple(one for one in some if one.question not in taken) for style, some in self._styles.items()}
        styles = [one.style for one in shown]
        main = max(dict.fromkeys(styles), key=styles.count)
        room = self._most - len(shown)
        larger = [shown + rest[main][: min(len(shown), room)]]
        larger += [shown + some[: min(1, room)] for some in rest.values()]
        half = len(shown) // 2
        others = [shown[:half], shown[half:], rest[main][: len(shown)]]
        return [one for one in _unlike([*larger, *others]) if one != shown]

    async def _race(self, sets: list[Shown]) -> list[Trial]:
        """Those that came to the last question, the best first."""
        trials: list[Trial] = []
        for survivors, end in self._rungs(len(sets)):
            trials = await self._scores.of(sets[:survivors], self._questions[:end])
            trials.sort(key=lambda one: (-one.score, one.read_tokens))
            sets = [one.shown for one in trials]
        return trials

    def _rungs(self, sets: int) -> list[tuple[int, int]]:
        """How many sets are asked up to which question."""
        count = len(self._questions)
        ends = sorted({math.ceil(count * (at + 1) / _RUNGS) for at in range(_RUNGS)})
        return [(max(1, math.ceil(sets / 2**at)), end) for at, end in enumerate(ends)]

    def _affordable(self, sets: int) -> int:
        """How many of so many sets the calls reach for, in the worst case."""
        while sets:
            begin = calls = 0
            for survivors, end in self._rungs(sets):
                calls += survivors * (end - begin) * CALLS_EACH
                begin = end
            if calls <= self._scores.left - self._keep:
                return sets
            sets -= 1
        return 0


def improves(after: Trial, before: Trial) -> bool:
    """Whether it is better beyond noise, or no worse and the teacher reads less."""
    difference = ScoreDifference.of(before, after)
    return difference.chance <= NOISE or (difference.gain >= 0 and after.read_tokens < before.read_tokens)


def fewest_calls(select: int, check: int) -> int:
    """What a search takes that tries one set alone, and checks it."""
    return 2 * CALLS_EACH * (select + check)


def _unlike(sets: Iterable[Shown]) -> list[Shown]:
    return [one for one in dict.fromkeys(sets) if one]
