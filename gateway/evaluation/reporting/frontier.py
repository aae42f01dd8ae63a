"""Accuracy against cost: the settings that no other beats in both, and the best of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from gateway.evaluation.setting import Mode

KEEP = 0.95
"""The part of the teacher's accuracy that the best setting must keep, as the paper claims (Table 6)."""

_KEEP = f"{KEEP:.0%}".replace("%", "\u00a0%")


class FrontierPoint(NamedTuple):
    """A setting by cost and accuracy; `cost_usd` is the mean of an answer."""

    name: str
    mode: Mode
    cost_usd: Decimal
    accuracy: float


class BestSetting(NamedTuple):
    """The best setting with the reason in words.

    `mixture`: accuracy of a random mixture of teacher and student at its cost, which guidance must beat; None without a
    student alone.
    """

    name: str
    why: str
    mixture: float | None

    def beats_mixture(self, accuracy: float) -> bool:
        return self.mixture is None or accuracy > self.mixture


def pareto(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """Return the points that no other point beats in cost and accuracy, cheapest first."""
    found: list[FrontierPoint] = []
    for point in sorted(points, key=lambda one: (one.cost_usd, -one.accuracy)):
        if not found or point.accuracy > found[-1].accuracy:
            found.append(point)
    return found


def hull(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """Return the points of `pareto` on its upper convex hull.

    A route that divides its requests between two settings reaches any point on the line between them. So a point below
    such a line is beaten by a mixture.
    """
    found: list[FrontierPoint] = []
    for point in pareto(points):
        while len(found) > 1 and _below(found[-2], found[-1], point):
            found.pop()
        found.append(point)
    return found


def best(points: Sequence[FrontierPoint]) -> BestSetting | None:
    """Return the best guided setting among those cheaper than the teacher and more accurate than the student.

    It is the cheapest one that keeps `KEEP` of the teacher's accuracy, else the most accurate one. Returns None without
    such a setting or without a teacher alone. The selection uses the reported questions, so its accuracy is slightly
    optimistic; `eval recommend` uses other questions.
    """
    teacher = next((one for one in points if one.mode == "teacher"), None)
    student = next((one for one in points if one.mode == "student"), None)
    if teacher is None:
        return None
    paying = [
        one
        for one in points
        if one.mode == "guided"
        and one.cost_usd < teacher.cost_usd
        and (student is None or one.accuracy > student.accuracy)
    ]
    keeping = [one for one in paying if one.accuracy >= KEEP * teacher.accuracy]
    if keeping:
        found = min(keeping, key=lambda one: (one.cost_usd, -one.accuracy))
        return BestSetting(
            found.name, f"the cheapest one that keeps {_KEEP} of the teacher's accuracy", _mixture(found, points)
        )
    if paying:
        found = max(paying, key=lambda one: (one.accuracy, -one.cost_usd))
        why = f"the most accurate one cheaper than the teacher; none keeps {_KEEP} of the teacher's accuracy"
        return BestSetting(found.name, why, _mixture(found, points))
    return None


def _mixture(of: FrontierPoint, points: Sequence[FrontierPoint]) -> float | None:
    """Return the accuracy of teacher and student mixed at this cost."""
    teacher = next((one for one in points if one.mode == "teacher"), None)
    student = next((one for one in points if one.mode == "student"), None)
    if teacher is None or student is None:
        return None
    if not student.cost_usd < teacher.cost_usd:
        return max(teacher.accuracy, student.accuracy)
    share = float((of.cost_usd - student.cost_usd) / (teacher.cost_usd - student.cost_usd))
    return student.accuracy + min(1.0, max(0.0, share)) * (teacher.accuracy - student.accuracy)


def _below(left: FrontierPoint, middle: FrontierPoint, right: FrontierPoint) -> bool:
    """Return whether the middle point lies on or below the line between the others."""
    middle_distance, right_distance = float(middle.cost_usd - left.cost_usd), float(right.cost_usd - left.cost_usd)
    return (middle.accuracy - left.accuracy) * right_distance <= (right.accuracy - left.accuracy) * middle_distance
