"""A whole search with fake engines."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from gateway.errors import StartupError
from gateway.evaluation.priming.exemplars import ExemplarCandidate, TeacherAnswer, given, split
from gateway.evaluation.priming.finding import POOL_CALLS_EACH, SearchLimits, find
from gateway.evaluation.priming.search import CALLS_EACH, TrialOutcome, min_calls
from gateway.evaluation.record import Question
from gateway.evaluation.scoring import Scoring
from gateway.policy.projections import Exemplar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gateway.evaluation.priming.exemplars import Style
    from gateway.evaluation.priming.search import SearchStep, Shown

CHOICES = (("a", "spoon"), ("b", "towel"), ("c", "kettle"))
score = Scoring().score


def questions(count: int) -> list[Question]:
    return [
        Question(f"q{at}", f"Which is number {at}? (a) spoon (b) towel (c) kettle", "abc"[at % 3], "choice", CHOICES)
        for at in range(count)
    ]


@dataclass
class Engines:
    """A teacher that answers the pool with `says`, and a pair whose guided score depends on the shown exemplars."""

    says: Callable[[Question], str]
    chance: Callable[[Shown, Question], float]
    answered: list[Question] = field(default_factory=list)
    measured: list[tuple[Shown, Question]] = field(default_factory=list)

    async def answers(self, pool: Sequence[Question], pool_answer_tokens: int) -> dict[str, list[TeacherAnswer]]:
        self.answered += pool
        return {one.id: [TeacherAnswer("as it is", text := self.says(one), len(text.split()))] for one in pool}

    async def measure(self, asks: Sequence[tuple[Shown, Question]]) -> list[TrialOutcome]:
        self.measured += asks
        return [
            TrialOutcome(float(random.Random(one.id).random() < self.chance(shown, one)), 40 + 20 * len(shown), 9, 2)
            for shown, one in asks
        ]


@dataclass
class SearchRecorder:
    styles: Mapping[Style, Sequence[ExemplarCandidate]] = field(default_factory=dict)
    wrong: int = 0
    steps: list[SearchStep] = field(default_factory=list)

    def on_candidates(self, styles: Mapping[Style, Sequence[ExemplarCandidate]], wrong: int) -> None:
        self.styles, self.wrong = styles, wrong

    def on_step(self, step: SearchStep) -> None:
        self.steps.append(step)


def explains(question: Question) -> str:
    return f"It is on the list as this number. The answer is ({question.answer})."


def early(shown: Shown, _: Question) -> float:
    """Correct if the exemplars name their choice first."""
    return 0.75 if any(one.style in {"result first", "result alone"} for one in shown) else 0.35


LIMITS = SearchLimits(calls=4000, max_exemplars=4, max_tokens=60, pool_answer_tokens=100)


async def test_the_better_style_of_exemplars_is_selected() -> None:
    parts = split(questions(90), pool=9, select=45, check=30, seed=0)
    engines, listener = Engines(explains, early), SearchRecorder()
    result = await find(engines, parts, score, LIMITS, 0, listener)
    assert result.helps
    assert result.best is not None
    assert {one.style for one in result.best.trial.shown} <= {"result first", "result alone"}
    assert [step.trial for step in listener.steps] == [step.trial for step in result.search.steps]
    assert result.check is not None
    assert result.check.gained.gain > 0.2
    assert len(result.check.with_exemplars.scores) == 30


@settings(deadline=None, max_examples=40)
@drawn(st.integers(0, 999), st.integers(1, 6), st.integers(4, 12), st.integers(0, 5), st.integers(0, 500))
async def test_the_call_limit_holds_and_no_evaluated_question_is_an_exemplar(
    seed: int, pool: int, select: int, check: int, spare: int
) -> None:
    left = {question.text for question in questions(60)[:20]}
    parts = split(questions(60), pool=pool, select=select, check=check, seed=seed, exclude=left)
    calls = POOL_CALLS_EACH * pool + min_calls(select, check) + spare
    engines = Engines(explains, early)
    limits = SearchLimits(calls=calls, max_exemplars=4, max_tokens=60, pool_answer_tokens=100)
    result = await find(engines, parts, score, limits, seed, SearchRecorder())
    assert result.spent == POOL_CALLS_EACH * pool + CALLS_EACH * len(engines.measured) <= calls
    measured = {question.text for _, question in engines.measured}
    shown = {one.exemplar.question for some, _ in engines.measured for one in some}
    assert not measured & shown
    assert not (measured | shown) & left
    assert shown <= {question.text for question in engines.answered}
    checked = {question.id for question in parts.check}
    winners = {some for some, question in engines.measured if question.id in checked}
    assert winners <= {(), result.best.trial.shown if result.best else ()}


async def test_exemplars_without_gain_on_other_questions_are_rejected() -> None:
    parts = split(questions(90), pool=6, select=40, check=30, seed=0)
    compared = {question.id for question in parts.select}
    lucky = Engines(explains, lambda shown, one: 0.9 if shown and one.id in compared else 0.4)
    result = await find(lucky, parts, score, LIMITS, 0, SearchRecorder())
    assert result.search.best is not None
    assert result.check is not None
    assert result.check.gained.gain == 0
    assert not result.helps


async def test_without_questions_for_a_check_the_comparison_decides() -> None:
    parts = split(questions(90), pool=6, select=40, check=0, seed=0)
    result = await find(Engines(explains, early), parts, score, LIMITS, 0, SearchRecorder())
    assert result.helps
    assert result.check is None


async def test_questions_that_the_teacher_gets_wrong_are_counted_and_left_out() -> None:
    parts = split(questions(90), pool=9, select=10, check=0, seed=0)
    listener = SearchRecorder()
    await find(Engines(lambda _: "A towel dries. The answer is (b).", early), parts, score, LIMITS, 0, listener)
    wrong = sum(question.answer != "b" for question in parts.pool)
    assert 0 < wrong == listener.wrong < 9
    assert {one.result for some in listener.styles.values() for one in some} == {"b"}


async def test_a_teacher_that_is_never_right_makes_no_exemplars() -> None:
    parts = split(questions(90), pool=5, select=10, check=0, seed=0)
    engines = Engines(lambda _: "I cannot say.", early)
    with pytest.raises(StartupError, match=r"no correct answer .* to any of the 5"):
        await find(engines, parts, score, LIMITS, 0, SearchRecorder())
    assert engines.measured == [], "nothing more is asked"


async def test_ones_own_exemplars_race_with_the_others() -> None:
    own = [Exemplar(f"Which of these is {at}? (a) one (b) two", "(a), of course.") for at in range(4)]
    parts = split(questions(90), pool=5, select=40, check=10, seed=0)
    engines = Engines(explains, lambda shown, _: 0.9 if any(one.style == "given" for one in shown) else 0.3)
    result = await find(engines, parts, score, LIMITS, 0, SearchRecorder(), given(own, parts))
    assert result.best is not None
    assert {one.exemplar for one in result.best.trial.shown} <= set(own)


def test_ones_own_exemplar_may_not_be_a_question_to_compare_on() -> None:
    parts = split(questions(90), pool=5, select=40, check=10, seed=0)
    own = [Exemplar("Fine?", "Yes."), Exemplar(parts.check[0].text.upper(), "(a)")]
    with pytest.raises(StartupError, match=f"Exemplar 2 of --exemplars is question '{parts.check[0].id}'"):
        given(own, parts)


async def test_too_few_calls_are_an_error_before_the_first_one() -> None:
    parts = split(questions(90), pool=5, select=10, check=5, seed=0)
    engines = Engines(explains, early)
    with pytest.raises(StartupError, match=r"--calls 74 is too few.* need 75 calls"):
        await find(
            engines,
            parts,
            score,
            SearchLimits(calls=74, max_exemplars=4, max_tokens=60, pool_answer_tokens=9),
            0,
            SearchRecorder(),
        )
    assert engines.answered == []
