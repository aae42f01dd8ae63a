"""Targets, and a mixture of student and teacher at equal cost."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.evaluation.advice.sample_size import POWER, questions_to_show
from gateway.evaluation.advice.target import AnswerPanel, Numbers, RecommendationTarget, advantages, claims

STUDENT, TEACHER, GUIDED = range(3)


def of(correct: Numbers, cost: Numbers) -> AnswerPanel:
    return AnswerPanel(correct, cost, (TEACHER,), STUDENT, (False, False, True), (True,) * 3)


def panel(accuracies: tuple[float, float, float], costs: tuple[float, float, float], n: int = 1000) -> AnswerPanel:
    """Return student, teacher and guided results, each with the first questions correct."""
    correct = np.array([[float(i < round(part * n)) for part in accuracies] for i in range(n)])
    return of(correct, np.tile(costs, (n, 1)))


@settings(max_examples=50, deadline=None)
@given(
    student=st.floats(0.1, 0.5),
    gain=st.floats(0.05, 0.4),
    guided=st.floats(0, 1),
    part=st.floats(-0.1, 0.95),
)
def test_over_the_mixture_is_the_height_above_the_line(student: float, gain: float, guided: float, part: float) -> None:
    own = panel((student, student + gain, guided), (1.0, 9.0, 1.0 + 8.0 * part))
    low, high, here = own.correct.mean(axis=0)
    assert own.over_mixture(GUIDED, TEACHER).point == pytest.approx(here - (low + part * (high - low)), abs=1e-9)


@pytest.mark.parametrize(
    ("accuracies", "costs", "height"),
    [
        ((0.4, 0.8, 0.7), (1, 9, 12), -0.1),  # dearer than the teacher: against the teacher
        ((0.6, 0.5, 0.7), (1, 9, 5), 0.1),  # a teacher that is no better: against the student
        ((0.4, 0.8, 0.5), (9, 1, 5), -0.3),  # a teacher that is cheaper and better: against it
        ((0.4, 0.8, 0.4), (4, 8, 3), 0.1),  # cheaper than the student and as good: the line is extended
        ((0.4, 0.8, 0.0), (4, 8, 3), -0.3),  # cheaper than the student, and useless
        ((0.4, 0.8, 0.9), (2, 2, 2), 0.1),  # all cost the same: against the better
    ],
)
def test_without_a_mixture_line_the_better_baseline_is_the_target(
    accuracies: tuple[float, float, float], costs: tuple[float, float, float], height: float
) -> None:
    assert panel(accuracies, costs).over_mixture(GUIDED, TEACHER).point == pytest.approx(height)


def test_costs_that_are_not_known_well_make_the_height_less_sure() -> None:
    rng = np.random.default_rng(2)
    own = panel((0.4, 0.8, 0.7), (1, 9, 3))
    unsure = own._replace(cost=own.cost * rng.lognormal(0, 0.8, own.cost.shape))
    assert unsure.over_mixture(GUIDED, TEACHER).error > own.over_mixture(GUIDED, TEACHER).error


@pytest.mark.parametrize(
    ("target", "margin", "words"),
    [
        (
            RecommendationTarget("keep", Decimal("0.95")),
            0.7 - 0.76,
            "the cheapest that keeps 95 % of the teacher's accuracy",
        ),
        (
            RecommendationTarget("loss", Decimal("0.02")),
            -0.08,
            "the cheapest within 2 points of the teacher's accuracy",
        ),
        (RecommendationTarget("budget", Decimal("0.0005")), 0.0005 - 3, "the best for 0.5 USD per 1000 answers"),
        (RecommendationTarget("share", Decimal("0.6")), 0.6 * 9 - 3, "the best for 60 % of the teacher's cost"),
    ],
)
def test_the_margin_of_a_setting_is_relative_to_the_target(
    target: RecommendationTarget, margin: float, words: str
) -> None:
    assert target.margin(panel((0.4, 0.8, 0.7), (1, 9, 3)), GUIDED) == pytest.approx(margin)
    assert str(target) == words


def test_the_estimated_questions_show_the_advantage_with_the_stated_probability() -> None:
    n = questions_to_show(0.05, 0.2, 0.8, 1)
    rng = np.random.default_rng(3)
    shown = []
    for _ in range(400):
        # Both right, the teacher alone, the guided alone, none. The student costs as much as the teacher.
        cell = rng.choice(4, n, p=[0.5, 0.075, 0.125, 0.3])
        correct = np.column_stack([np.zeros(n), cell < 2, (cell == 0) | (cell == 2)]).astype(float)
        (claim,) = claims([of(correct, np.ones((n, 3))).over_mixture(GUIDED, TEACHER)], 0.8, 0)
        shown.append(claim.shown)
    assert np.mean(shown) == pytest.approx(POWER, abs=0.05)


def test_several_settings_need_more_questions() -> None:
    assert questions_to_show(0.05, 0.2, 0.8, 6) > 1.5 * questions_to_show(0.05, 0.2, 0.8, 1)


def test_the_teacher_that_leaves_the_smallest_advantage_counts() -> None:
    """A second configuration of the teacher is as accurate at half of the cost."""
    own = panel((0.4, 0.8, 0.7), (1, 9, 4), 400)
    cheaper = AnswerPanel(
        np.column_stack([own.correct, own.correct[:, TEACHER]]),
        np.column_stack([own.cost, own.cost[:, TEACHER] / 2]),
        *((TEACHER, 3), STUDENT, (*own.guided, False), (True, True, True, False)),
    )
    (alone,) = advantages(own, 0.8, 0).values()
    assert (alone.teacher, alone.answer) == (TEACHER, "shown")
    assert alone.claim.point == pytest.approx(0.7 - 0.55)
    (both,) = advantages(cheaper, 0.8, 0).values()
    assert (both.teacher, both.answer) == (3, "contradicted")
    assert both.claim.point == pytest.approx(0.7 - (0.4 + 0.4 * 3 / 3.5))
    assert cheaper.best_teacher == 3, "the cheaper one of equals"


def test_each_setting_may_fail_against_another_teacher() -> None:
    """Each of two settings equals the mixture with one of two teachers. At 80 %, at most 20 % of runs claim one."""
    rng, shown = np.random.default_rng(5), 0
    for seed in range(200):
        # Student, two teachers and two settings. The better mixture at cost 5 is right in 65 %.
        right = np.array([0.2, 0.65, 0.9, 0.65, 0.81])
        correct = (rng.random((400, 5)) < right).astype(float)
        cost = np.tile(np.array([1.0, 5.0, 9.0, 5.0, 8.0]), (400, 1))
        both = AnswerPanel(correct, cost, (1, 2), 0, (False, False, False, True, True), (True,) * 5)
        shown += any(one.shown for one in advantages(both, 0.8, seed).values())
    assert shown / 200 < 0.28


def test_a_share_of_costs_is_that_of_a_teacher_that_a_policy_can_have() -> None:
    own = panel((0.4, 0.8, 0.7), (1, 9, 3))
    dearer = AnswerPanel(
        np.column_stack([own.correct, np.ones(len(own.correct))]),
        np.column_stack([own.cost, own.cost[:, TEACHER] * 10]),
        *((TEACHER, 3), STUDENT, (*own.guided, False), (True, True, True, False)),
    )
    assert dearer.best_teacher == 3
    assert RecommendationTarget("share", Decimal("0.6")).margin(dearer, GUIDED) == pytest.approx(0.6 * 9 - 3)


def test_a_small_difference_is_neither_shown_nor_contradicted() -> None:
    (found,) = advantages(panel((0.4, 0.8, 0.55), (1, 9, 4), 400), 0.8, 0).values()
    assert found.claim.point == pytest.approx(0)
    assert found.answer == "not shown"


def test_twenty_questions_are_the_least_for_an_answer() -> None:
    (few,) = advantages(panel((0, 1, 1), (1, 9, 2), 19), 0.8, 0).values()
    (enough,) = advantages(panel((0, 1, 1), (1, 9, 2), 20), 0.8, 0).values()
    assert (few.answer, enough.answer) == ("not shown", "shown")
