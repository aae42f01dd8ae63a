"""Forward search for exemplars that raise the guided score, within a budget of calls. Measurement is injected.

Sets of exemplars race on the selection questions (successive halving). All sets run on the first third, the better
half on the second, and half of those on the last. The winner replaces the current set if it is better beyond noise in
a paired comparison, or not worse and shorter. Then larger, smaller and mixed variants of it race.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from gateway.evaluation.priming.exemplars import ExemplarCandidate
from gateway.evaluation.statistics import agresti_min, sign_test

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from gateway.evaluation.priming.exemplars import Style
    from gateway.evaluation.record import Question

Shown: TypeAlias = tuple[ExemplarCandidate, ...]
"""A set of exemplars, in the order of the prompt."""

NOISE = 0.1
"""Significance level of a gain (sign test, one-sided)."""
CALLS_EACH = 2
"""Upper bound of calls for one question with one set: one of the teacher and one of the student."""
_FIRST_SIZES = (4, 1)
_RUNGS = 3


class TrialOutcome(NamedTuple):
    """A question's score with one set of exemplars, the teacher's tokens, and the calls, stored ones included."""

    score: float
    read_tokens: int
    written_tokens: int
    calls: int


Measure: TypeAlias = "Callable[[Sequence[tuple[Shown, Question]]], Awaitable[list[TrialOutcome]]]"


class Trial(NamedTuple):
    """Results of a set of exemplars on some questions, in their order, with mean tokens of the teacher per request."""

    shown: Shown
    scores: tuple[float, ...]
    read_tokens: float
    written_tokens: float

    @property
    def score(self) -> float:
        """Return the mean score, from 0 to 1."""
        return sum(self.scores) / len(self.scores)


class ScoreDifference(NamedTuple):
    """Advantage of one set over another on the same questions, from -1 to 1, with its 95 % interval.

    `chance` is the p-value of the exact one-sided sign test.
    """

    gain: float
    low: float
    high: float
    chance: float

    @classmethod
    def of(cls, before: Trial, after: Trial) -> ScoreDifference:
        """Compare two trials. Raises ValueError if their numbers of questions differ."""
        each = [new - old for old, new in zip(before.scores, after.scores, strict=True)]
        wins, losses = sum(one > 0 for one in each), sum(one < 0 for one in each)
        low, high = agresti_min(each)
        return cls(sum(each) / len(each), low, high, sign_test(wins, losses, "greater"))


@dataclass(slots=True)
class MeasuredOutcomes:
    """Outcomes within a budget of calls, of which `spent` are used; each is measured once, if its upper bound fits."""

    measure: Measure
    calls: int
    spent: int = 0
    """Number of calls so far, including those of earlier sessions, so that a resumed search decides alike."""
    _known: dict[tuple[Shown, str], TrialOutcome] = field(default_factory=dict)

    @property
    def remaining(self) -> int:
        return self.calls - self.spent

    async def of(self, sets: Sequence[Shown], questions: Sequence[Question]) -> list[Trial]:
        """Return a trial of each set. Raises errors of `measure`, and ValueError if the budget does not suffice."""
        missing = [(one, question) for one in sets for question in questions if (one, question.id) not in self._known]
        if len(missing) * CALLS_EACH > self.remaining:
            raise ValueError(f"{len(missing) * CALLS_EACH} calls are needed, and {self.remaining} remain")
        for (one, question), outcome in zip(missing, await self.measure(missing) if missing else [], strict=True):
            self._known[one, question.id] = outcome
            self.spent += outcome.calls
        return [self._trial(one, questions) for one in sets]

    def _trial(self, shown: Shown, questions: Sequence[Question]) -> Trial:
        known = [self._known[shown, question.id] for question in questions]
        return Trial(
            shown,
            tuple(one.score for one in known),
            sum(one.read_tokens for one in known) / len(known),
            sum(one.written_tokens for one in known) / len(known),
        )


class SearchStep(NamedTuple):
    """A set from a race of `tried` sets, after `spent` calls. `gained` is the advantage over no exemplars."""

    trial: Trial
    gained: ScoreDifference | None
    tried: int
    spent: int


class SearchResult(NamedTuple):
    """Result of a search: the selected sets, of which the first is empty, and why it ended.

    `runner_up` is the best set of the last race if it was not selected; None without such a race.
    """

    steps: tuple[SearchStep, ...]
    runner_up: SearchStep | None
    ended: Literal["nothing better", "calls"]

    @property
    def best(self) -> SearchStep | None:
        """Return the found set; None if no set is better than no exemplars."""
        return self.steps[-1] if len(self.steps) > 1 else None


@dataclass(frozen=True, slots=True)
class ExemplarSearch:
    """A search for exemplars by style, in the order of trials. It leaves `reserve` calls unused."""

    styles: Mapping[Style, Sequence[ExemplarCandidate]]
    questions: Sequence[Question]
    scores: MeasuredOutcomes
    max_exemplars: int
    reserve: int = 0

    async def run(self, on_step: Callable[[SearchStep], None] = lambda _: None) -> SearchResult:
        """Search to the end, calling `on_step` after each step. Raises errors of `MeasuredOutcomes.of`."""
        (without,) = await self.scores.of([()], self.questions)
        steps = [SearchStep(without, None, 0, self.scores.spent)]
        on_step(steps[0])
        tried: set[Shown] = {()}
        while moves := [one for one in self.moves(steps[-1].trial.shown) if one not in tried]:
            moves = moves[: self._affordable(len(moves))]
            if not moves:
                return SearchResult(tuple(steps), None, "calls")
            tried.update(moves)
            finalists = await self._race(moves)
            spent = self.scores.spent
            raced = [SearchStep(one, ScoreDifference.of(without, one), len(moves), spent) for one in finalists]
            better = next((one for one in raced if improves(one.trial, steps[-1].trial)), None)
            if better is None:
                return SearchResult(tuple(steps), raced[0], "nothing better")
            steps.append(better)
            on_step(better)
        return SearchResult(tuple(steps), None, "nothing better")

    def moves(self, shown: Shown) -> list[Shown]:
        """Return the next sets to try, most promising first: first of each style, then larger, smaller and others."""
        if not shown:
            sizes = sorted({min(size, self.max_exemplars) for size in _FIRST_SIZES}, reverse=True)
            return _distinct(tuple(group[:size]) for size in sizes for group in self.styles.values() if group)
        taken = {one.question for one in shown}
        rest = {style: tuple(one for one in group if one.question not in taken) for style, group in self.styles.items()}
        styles = [one.style for one in shown]
        main = max(dict.fromkeys(styles), key=styles.count)
        room = self.max_exemplars - len(shown)
        larger = [shown + rest[main][: min(len(shown), room)]]
        larger += [shown + group[: min(1, room)] for group in rest.values()]
        half = len(shown) // 2
        others = [shown[:half], shown[half:], rest[main][: len(shown)]]
        return [one for one in _distinct([*larger, *others]) if one != shown]

    async def _race(self, sets: list[Shown]) -> list[Trial]:
        """Return the trials of the sets that reached the last question, the best first."""
        trials: list[Trial] = []
        for survivors, end in self._rungs(len(sets)):
            trials = await self.scores.of(sets[:survivors], self.questions[:end])
            trials.sort(key=lambda one: (-one.score, one.read_tokens))
            sets = [one.shown for one in trials]
        return trials

    def _rungs(self, sets: int) -> list[tuple[int, int]]:
        """Return pairs of a number of sets and the number of questions up to which they are measured."""
        count = len(self.questions)
        ends = sorted({math.ceil(count * (index + 1) / _RUNGS) for index in range(_RUNGS)})
        return [(max(1, math.ceil(sets / 2**index)), end) for index, end in enumerate(ends)]

    def _affordable(self, sets: int) -> int:
        """Return how many of `sets` sets fit into the calls in the worst case."""
        while sets:
            begin = calls = 0
            for survivors, end in self._rungs(sets):
                calls += survivors * (end - begin) * CALLS_EACH
                begin = end
            if calls <= self.scores.remaining - self.reserve:
                return sets
            sets -= 1
        return 0


def improves(after: Trial, before: Trial) -> bool:
    """Return whether a set is better beyond noise, or not worse with fewer teacher input tokens."""
    difference = ScoreDifference.of(before, after)
    return difference.chance <= NOISE or (difference.gain >= 0 and after.read_tokens < before.read_tokens)


def min_calls(select: int, check: int) -> int:
    """Return the calls of a search that tries and checks one set."""
    return 2 * CALLS_EACH * (select + check)


def _distinct(sets: Iterable[Shown]) -> list[Shown]:
    return [one for one in dict.fromkeys(sets) if one]
