"""Unbeaten settings, and the best one."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from gateway.evaluation.reporting.comparison import best, hull, pareto
from gateway.evaluation.summary import SettingSummary


def point(name: str, cost: int, accuracy: float) -> SettingSummary:
    setting = {"name": name, "mode": name if name in {"teacher", "student"} else "guided"}
    fields: dict[str, Any] = dict.fromkeys(SettingSummary._fields, 0)
    fields |= {"setting": setting, "examples": (None,) * 100, "correct": round(accuracy * 100)}
    return SettingSummary(**fields | {"cost_usd": Decimal(100 * cost)})


TEACHER, STUDENT = point("teacher", 100, 0.8), point("student", 10, 0.2)


def names(points: list[SettingSummary]) -> list[str]:
    return [one.name for one in points]


def test_a_setting_with_higher_cost_and_no_higher_accuracy_is_dominated() -> None:
    found = pareto([TEACHER, STUDENT, point("a", 40, 0.5), point("b", 50, 0.5), point("c", 60, 0.4)])
    assert names(found) == ["student", "a", "teacher"]


def test_of_two_at_one_cost_the_better_stays() -> None:
    assert names(pareto([point("a", 40, 0.5), point("b", 40, 0.6)])) == ["b"]


def test_a_setting_below_a_mixture_is_not_on_the_hull() -> None:
    """At half the cost, a mixture of both has an accuracy of 50 %."""
    assert names(hull([TEACHER, STUDENT, point("a", 55, 0.49)])) == ["student", "teacher"]
    assert names(hull([TEACHER, STUDENT, point("a", 55, 0.51)])) == ["student", "a", "teacher"]


def test_the_cheapest_that_keeps_enough_is_best() -> None:
    found = best([TEACHER, STUDENT, point("a", 70, 0.78), point("b", 60, 0.77), point("c", 50, 0.7)])
    assert found is not None
    assert found.name == "b"
    assert found.mixture == pytest.approx(0.2 + 0.6 * 50 / 90)


def test_where_none_keeps_enough_the_most_accurate_is_best() -> None:
    found = best([TEACHER, STUDENT, point("a", 70, 0.5), point("b", 60, 0.45)])
    assert found is not None
    assert found.name == "a"
    assert "none keeps" in found.why
    assert found.mixture == pytest.approx(0.2 + 0.6 * 60 / 90)


def test_none_is_best_that_is_dearer_than_the_teacher_or_no_better_than_the_student() -> None:
    assert best([TEACHER, STUDENT, point("a", 110, 0.9), point("b", 60, 0.2)]) is None
    assert best([STUDENT, point("a", 50, 0.9)]) is None
