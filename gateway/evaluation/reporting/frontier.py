"""Accuracy against cost: which settings no other beats in both, and which of them is the one to take."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from gateway.evaluation.setting import Mode

KEEP = 0.95
"""The part of the teacher's accuracy that the best setting is to keep: what the paper claims (Table 6)."""

_KEEP = f"{KEEP:.0%}".replace("%", "\u00a0%")


class FrontierPoint(NamedTuple):
    """A setting in the plane; `cost_usd` is of one answer."""

    name: str
    mode: Mode
    cost_usd: Decimal
    accuracy: float


class BestSetting(NamedTuple):
    """The setting to take, and why in words.

    mixture: the accuracy that its cost buys by sending some requests to the teacher alone and the rest to the student
    alone, at random: what guidance has to beat. None without a student alone.
    """

    name: str
    why: str
    mixture: float | None

    def beats_mixture(self, accuracy: float) -> bool:
        return self.mixture is None or accuracy > self.mixture


def pareto(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """Those than which no other is both as cheap and more accurate, or cheaper and as accurate; cheapest first."""
    found: list[FrontierPoint] = []
    for point in sorted(points, key=lambda one: (one.cost_usd, -one.accuracy)):
        if not found or point.accuracy > found[-1].accuracy:
            found.append(point)
    return found


def hull(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """Those of `pareto` on its upper convex hull.

    Between two of them lies what a route reaches that sends a share of its requests to each; a point below such a
    line is beaten by that mixture.
    """
    found: list[FrontierPoint] = []
    for point in pareto(points):
        while len(found) > 1 and _below(found[-2], found[-1], point):
            found.pop()
        found.append(point)
    return found


def best(points: Sequence[FrontierPoint]) -> BestSetting | None:
    """The guided setting to take: of those that are cheaper than the teacher and more accurate than the student.

    Of them the cheapest that keeps `KEEP` of the teacher's accuracy; else the most accurate. None where there is none,
    or no teacher to be cheaper than. It is chosen on the questions that it is shown with, so it looks a little better
    than it is; `eval recommend` chooses on others.
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
            found.name, f"the cheapest that keeps {_KEEP} of the teacher's accuracy", _mixture(found, points)
        )
    if paying:
        found = max(paying, key=lambda one: (one.accuracy, -one.cost_usd))
        why = f"the most accurate that is cheaper than the teacher; none keeps {_KEEP} of the teacher's accuracy"
        return BestSetting(found.name, why, _mixture(found, points))
    return None


def _mixture(of: FrontierPoint, points: Sequence[FrontierPoint]) -> float | None:
    """The accuracy of teacher and student mixed, at this cost."""
    teacher = next((one for one in points if one.mode == "teacher"), None)
    student = next((one for one in points if one.mode == "student"), None)
    if teacher is None or student is None:
        return None
    if not student.cost_usd < teacher.cost_usd:
        return max(teacher.accuracy, student.accuracy)
    share = float((of.cost_usd - student.cost_usd) / (teacher.cost_usd - student.cost_usd))
    return student.accuracy + min(1.0, max(0.0, share)) * (teacher.accuracy - student.accuracy)


def _below(left: FrontierPoint, middle: FrontierPoint, right: FrontierPoint) -> bool:
    """Whether the middle lies on or below the line between the others."""
    wide, far = float(middle.cost_usd - left.cost_usd), float(right.cost_usd - left.cost_usd)
    return (middle.accuracy - left.accuracy) * far <= (right.accuracy - left.accuracy) * wide
