"""Targets, and a mixture of student and teacher at equal cost."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.evaluation.advice.target import AnswerPanel, RecommendationTarget

STUDENT, TEACHER, GUIDED = range(3)


def panel(accuracies: tuple[float, float, float], costs: tuple[float, float, float], n: int = 1000) -> AnswerPanel:
    """Return student, teacher and guided results, each with the first questions correct."""
    correct = np.array([[float(i < round(part * n)) for part in accuracies] for i in range(n)])
    return AnswerPanel(correct, np.tile(costs, (n, 1)), TEACHER, STUDENT, (False, False, True))


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
    assert own.over_mixture(GUIDED).point == pytest.approx(here - (low + part * (high - low)), abs=1e-9)


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
    assert panel(accuracies, costs).over_mixture(GUIDED).point == pytest.approx(height)


def test_costs_that_are_not_known_well_make_the_height_less_sure() -> None:
    rng = np.random.default_rng(2)
    own = panel((0.4, 0.8, 0.7), (1, 9, 3))
    unsure = AnswerPanel(own.correct, own.cost * rng.lognormal(0, 0.8, own.cost.shape), TEACHER, STUDENT, own.guided)
    assert unsure.over_mixture(GUIDED).error > own.over_mixture(GUIDED).error


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
    assert target.margin(panel((0.4, 0.8, 0.7), (1, 9, 3)), GUIDED).point == pytest.approx(margin)
    assert str(target) == words
