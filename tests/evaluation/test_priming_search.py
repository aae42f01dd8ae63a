"""The search for exemplars, with engines of known scores."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.evaluation.priming.exemplars import ExemplarCandidate, Style
from gateway.evaluation.priming.search import (
    CALLS_EACH,
    ExemplarSearch,
    MeasuredOutcomes,
    ScoreDifference,
    Trial,
    TrialOutcome,
    improves,
    min_calls,
)
from gateway.evaluation.record import Question
from gateway.evaluation.statistics import sign_test
from gateway.policy.projections import Exemplar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.evaluation.priming.search import Shown

STYLES: tuple[Style, ...] = ("as it is", "concise", "primed", "result alone", "result first", "reasoning first")
SELECT = [Question(f"s{at}", f"Which is number {at}?", str(at), "numeric") for at in range(60)]


def pool(styles: Sequence[Style] = STYLES, each: int = 10) -> dict[Style, list[ExemplarCandidate]]:
    return {
        style: [ExemplarCandidate(Exemplar(f"p{at}", style), style, f"p{at}", 10 + at, str(at)) for at in range(each)]
        for style in styles
    }


class World:
    """Engines whose accuracy depends on the shown exemplars; each question has its own difficulty."""

    def __init__(self, chance: Callable[[Counter[str]], float], seed: int = 0) -> None:
        self.chance = chance
        self.seed = seed
        self.measured: list[tuple[Shown, Question]] = []

    async def measure(self, asks: Sequence[tuple[Shown, Question]]) -> list[TrialOutcome]:
        self.measured += asks
        return [self._outcome(shown, question) for shown, question in asks]

    def _outcome(self, shown: Shown, question: Question) -> TrialOutcome:
        difficulty = random.Random(f"{self.seed} {question.id}").random()
        right = difficulty < self.chance(Counter(one.style for one in shown))
        read = 50 + sum(one.tokens * 2 for one in shown)
        return TrialOutcome(float(right), read, 20, 1 if question.id.endswith("0") else CALLS_EACH)


def trial(*scores: float, read: float = 10) -> Trial:
    return Trial((), scores, read, 1)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(STYLES))
async def test_the_best_style_is_found(seed: int, best: Style) -> None:
    world = World(lambda styles: 0.7 if styles[best] else 0.3, seed)
    found = await ExemplarSearch(pool(), SELECT, MeasuredOutcomes(world.measure, 5000), max_exemplars=8).run()
    assert found.best is not None
    assert {one.style for one in found.best.trial.shown} == {best}
    # One exemplar has the effect of four, and is shorter.
    assert len(found.best.trial.shown) == 1
    assert found.best.gained is not None
    assert found.best.gained.gain > 0.1


async def test_the_search_adds_exemplars_while_they_help() -> None:
    world = World(lambda styles: 0.2 + 0.09 * min(8, styles["concise"]))
    found = await ExemplarSearch(pool(), SELECT, MeasuredOutcomes(world.measure, 9000), max_exemplars=8).run()
    assert found.best is not None
    assert Counter(one.style for one in found.best.trial.shown) == {"concise": 8}
    assert [len(step.trial.shown) for step in found.steps] == [0, 4, 8]
    scores = [step.trial.score for step in found.steps]
    assert scores == sorted(scores)


async def test_two_styles_that_help_together_are_found_together() -> None:
    world = World(lambda styles: 0.2 + 0.25 * bool(styles["result first"]) + 0.25 * bool(styles["concise"]))
    found = await ExemplarSearch(pool(), SELECT, MeasuredOutcomes(world.measure, 9000), max_exemplars=4).run()
    assert found.best is not None
    assert {"result first", "concise"} <= {one.style for one in found.best.trial.shown}


async def test_none_is_found_where_none_helps() -> None:
    """The best tried set is reported even if it does not improve."""
    world = World(lambda styles: 0.5 if not styles else 0.4)
    found = await ExemplarSearch(pool(), SELECT, MeasuredOutcomes(world.measure, 5000), max_exemplars=8).run()
    assert found.best is None
    assert found.ended == "nothing better"
    assert found.runner_up is not None
    assert found.runner_up.gained is not None
    assert found.runner_up.gained.gain < 0


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 400), st.integers(0, 99), st.integers(0, 60))
async def test_the_budget_is_kept_to_the_last_call(spare: int, seed: int, keep: int) -> None:
    world = World(lambda styles: 0.2 + 0.09 * styles["concise"], seed)
    calls = len(SELECT) * CALLS_EACH + keep + spare
    scores = MeasuredOutcomes(world.measure, calls)
    found = await ExemplarSearch(pool(), SELECT, scores, max_exemplars=8, reserve=keep).run()
    assert scores.spent == sum(2 - question.id.endswith("0") for _, question in world.measured)
    assert scores.remaining >= keep
    saved = sum(question.id.endswith("0") for question in SELECT)  # by the first set
    if spare + saved < len(SELECT) * CALLS_EACH:
        assert found.ended == "calls"
        assert found.best is None


async def test_the_min_calls_reach_for_one_set_and_its_check() -> None:
    world = World(lambda styles: 0.9 if styles else 0.1)
    least = min_calls(len(SELECT), 10)
    scores = MeasuredOutcomes(world.measure, least)
    found = await ExemplarSearch(pool(["concise"]), SELECT, scores, max_exemplars=1, reserve=10 * 2 * CALLS_EACH).run()
    assert found.best is not None
    assert len(found.best.trial.shown) == 1


async def test_nothing_is_measured_twice_and_a_larger_set_never_shows_a_question_twice() -> None:
    world = World(lambda styles: 0.2 + 0.05 * sum(styles.values()))
    await ExemplarSearch(pool(each=5), SELECT, MeasuredOutcomes(world.measure, 9000), max_exemplars=8).run()
    assert len(set(world.measured)) == len(world.measured)
    for shown, _ in world.measured:
        names = [one.question for one in shown]
        assert len(set(names)) == len(names)
        assert len(names) <= 8


async def test_the_same_search_makes_the_same_calls() -> None:
    """A killed search resumes in the same way."""
    first, second = World(lambda styles: 0.1 * len(styles) + 0.1), World(lambda styles: 0.1 * len(styles) + 0.1)
    for world in (first, second):
        await ExemplarSearch(pool(), SELECT, MeasuredOutcomes(world.measure, 2000), max_exemplars=8).run()
    assert first.measured == second.measured


def test_fewer_tokens_break_a_tie_and_a_worse_score_does_not() -> None:
    before = trial(1, 0, 1, 0, read=90)
    assert improves(trial(1, 0, 1, 0, read=80), before)
    assert not improves(trial(1, 0, 1, 0, read=90), before)
    assert not improves(trial(1, 0, 0, 0, read=10), before)


@pytest.mark.parametrize(("wins", "losses", "beyond"), [(3, 0, False), (4, 0, True), (8, 2, True), (7, 4, False)])
def test_a_gain_counts_that_chance_would_rarely_bring(wins: int, losses: int, beyond: bool) -> None:
    before = trial(*[0.0] * wins, *[1.0] * losses, *[1.0] * 20, read=10)
    after = trial(*[1.0] * wins, *[0.0] * losses, *[1.0] * 20, read=20)
    assert ScoreDifference.of(before, after).chance == sign_test(wins, losses, "greater")
    assert improves(after, before) is beyond


def test_an_interval_is_never_a_point_and_holds_the_gain() -> None:
    """Agresti's example: of 1600 voters 944 approved, later 880; 86 and 150 changed their opinion."""
    same = ScoreDifference.of(trial(*[1.0] * 20), trial(*[1.0] * 20))
    assert same.low < 0 < same.high
    assert same.gain == 0
    before = trial(*[1.0] * 150, *[0.0] * 86, *[1.0] * 1364)
    after = trial(*[0.0] * 150, *[1.0] * 86, *[1.0] * 1364)
    changed = ScoreDifference.of(before, after)
    assert changed.gain == pytest.approx(-0.04)
    assert changed.low == pytest.approx(-0.0587, abs=5e-4)
    assert changed.high == pytest.approx(-0.0213, abs=5e-4)


def test_trials_of_different_questions_are_not_compared() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ScoreDifference.of(trial(1, 0), trial(1))
