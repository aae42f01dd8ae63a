"""Comparison of settings: paired by question, and by accuracy against cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from gateway.evaluation.statistics import Interval, paired_bootstrap, paired_difference, sign_test

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from gateway.evaluation.record import Example
    from gateway.evaluation.summary import SettingSummary

KEEP = 0.95
"""The part of the teacher's accuracy that the best setting must keep, as the paper claims (Table 6)."""
_KEEP = f"{KEEP:.0%}".replace("%", "\u00a0%")


class SettingComparison(NamedTuple):
    """A setting compared with a reference on n common questions. `interval` is None if they are too few.

    `won` and `lost` are the questions that only one of them answers correctly; `p` is that of McNemar's exact test.
    """

    reference: str
    n: int
    difference: float
    interval: Interval | None
    p: float
    won: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ShareInterval:
    """A share with its 95 % interval; `interval` is None if the whole may be 0 or all resamples agree."""

    value: float
    interval: Interval | None


def compare(one: Mapping[str, Example], other: Mapping[str, Example]) -> SettingComparison | None:
    """Compare two settings; return None without common questions."""
    shared = [question for question in one if question in other]
    if not shared:
        return None
    first, second = _right(one, other)
    won = tuple(question for question in shared if one[question].correct and not other[question].correct)
    lost = tuple(question for question in shared if other[question].correct and not one[question].correct)
    return SettingComparison(
        reference=other[shared[0]].setting,
        n=len(shared),
        difference=sum(first) / len(shared) - sum(second) / len(shared),
        interval=paired_difference(first, second),
        p=sign_test(len(won), len(lost)),
        won=won,
        lost=lost,
    )


def kept_share(
    one: Mapping[str, Example], teacher: Mapping[str, Example], student: Mapping[str, Example] | None, seed: int
) -> ShareInterval | None:
    """Return the accuracy as a share of the teacher's (the paper's 95.00 %).

    Return None if the teacher answers no question correctly, or fewer than the student: there is nothing to keep.
    """
    first, second = _right(one, teacher)
    if student is not None:
        by_teacher, alone = _right(teacher, student)
        if sum(by_teacher) < sum(alone):
            return None
    if not sum(second):
        return None
    share = paired_bootstrap(lambda kept, whole: kept / whole, first, second, seed=seed)
    return ShareInterval(sum(first) / sum(second), share)


def gap_closed(
    one: Mapping[str, Example], student: Mapping[str, Example], teacher: Mapping[str, Example], seed: int
) -> ShareInterval | None:
    """Return (guided - student) / (teacher - student): 0 at the student, 1 at the teacher.

    Return None unless the interval of teacher - student is above 0, since there may be no gap.
    """
    guided, alone, by_teacher = _right(one, student, teacher)
    gap = paired_difference(by_teacher, alone)
    if gap is None or gap.low <= 0:
        return None
    return ShareInterval(
        (sum(guided) - sum(alone)) / (sum(by_teacher) - sum(alone)),
        paired_bootstrap(lambda one, low, high: (one - low) / (high - low), guided, alone, by_teacher, seed=seed),
    )


def _right(*answers: Mapping[str, Example]) -> list[list[bool]]:
    """Return whether each common question was answered correctly, for each setting."""
    shared = [question for question in answers[0] if all(question in one for one in answers)]
    return [[one[question].correct for question in shared] for one in answers]


class BestSetting(NamedTuple):
    """The best setting, why, and the accuracy of teacher and student mixed at its cost; None without a student."""

    name: str
    why: str
    mixture: float | None


def pareto(summaries: Collection[SettingSummary]) -> list[SettingSummary]:
    """Return the settings that no other setting beats in cost and accuracy, cheapest first."""
    found: list[SettingSummary] = []
    for summary in sorted(summaries, key=lambda one: (one.cost_per_answer, -one.accuracy)):
        if not found or summary.accuracy > found[-1].accuracy:
            found.append(summary)
    return found


def hull(summaries: Collection[SettingSummary]) -> list[SettingSummary]:
    """Return the settings on the upper convex hull of `pareto`: mixtures of two beat settings below their line."""
    found: list[SettingSummary] = []
    for summary in pareto(summaries):
        while len(found) > 1 and _below(found[-2], found[-1], summary):
            found.pop()
        found.append(summary)
    return found


def best(summaries: Collection[SettingSummary]) -> BestSetting | None:
    """Return the best guided setting among those cheaper than the teacher and more accurate than the student.

    It is the cheapest one that keeps `KEEP` of the teacher's accuracy, else the most accurate one. Returns None without
    such a setting or without a teacher alone. The selection uses the reported questions, so its accuracy is slightly
    optimistic; `eval recommend` uses other questions.
    """
    teacher, student = (next((one for one in summaries if one.mode == mode), None) for mode in ("teacher", "student"))
    if teacher is None:
        return None
    cheaper = (one for one in summaries if one.mode == "guided" and one.cost_per_answer < teacher.cost_per_answer)
    paying = [one for one in cheaper if student is None or one.accuracy > student.accuracy]
    if not paying:
        return None
    if keeping := [one for one in paying if one.accuracy >= KEEP * teacher.accuracy]:
        found = min(keeping, key=lambda one: (one.cost_per_answer, -one.accuracy))
        why = f"the cheapest one that keeps {_KEEP} of the teacher's accuracy"
    else:
        found = max(paying, key=lambda one: (one.accuracy, -one.cost_per_answer))
        why = f"the most accurate one cheaper than the teacher; none keeps {_KEEP} of the teacher's accuracy"
    return BestSetting(found.name, why, None if student is None else _mixture(found, teacher, student))


def _mixture(of: SettingSummary, teacher: SettingSummary, student: SettingSummary) -> float:
    if not student.cost_per_answer < teacher.cost_per_answer:
        return max(teacher.accuracy, student.accuracy)
    share = float((of.cost_per_answer - student.cost_per_answer) / (teacher.cost_per_answer - student.cost_per_answer))
    return student.accuracy + min(1.0, max(0.0, share)) * (teacher.accuracy - student.accuracy)


def _below(left: SettingSummary, middle: SettingSummary, right: SettingSummary) -> bool:
    """Return whether the middle setting lies on or below the line between the others."""
    to_middle, to_right = (float(one.cost_per_answer - left.cost_per_answer) for one in (middle, right))
    return (middle.accuracy - left.accuracy) * to_right <= (right.accuracy - left.accuracy) * to_middle
