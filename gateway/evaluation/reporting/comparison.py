"""Paired comparison of two settings: difference, interval, test, and the questions on which they differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.evaluation.statistics import Interval, McNemar, mcnemar, paired_bootstrap, paired_difference, share

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.evaluation.record import Example
    from gateway.evaluation.statistics import Means


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingComparison:
    """A setting compared with a reference, on their common questions.

    Attributes:
        reference: Name of the reference.
        n: Number of common questions.
        accuracy, reference_accuracy: Accuracies on these questions.
        interval: Interval of the difference (`paired_difference`); None for too few questions.
        test: Counts of questions that only one of them answers correctly, and McNemar's exact p.
        won, lost: These questions.
    """

    reference: str
    n: int
    accuracy: float
    reference_accuracy: float
    interval: Interval | None
    test: McNemar
    won: tuple[str, ...]
    lost: tuple[str, ...]

    @property
    def difference(self) -> float:
        return self.accuracy - self.reference_accuracy


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
    first = [one[question].correct for question in shared]
    second = [other[question].correct for question in shared]
    pairs = list(zip(shared, first, second, strict=True))
    return SettingComparison(
        reference=other[shared[0]].setting,
        n=len(shared),
        accuracy=sum(first) / len(shared),
        reference_accuracy=sum(second) / len(shared),
        interval=paired_difference(first, second),
        test=mcnemar(first, second),
        won=tuple(
            question for question, first_correct, second_correct in pairs if first_correct and not second_correct
        ),
        lost=tuple(
            question for question, first_correct, second_correct in pairs if second_correct and not first_correct
        ),
    )


def kept_share(one: Mapping[str, Example], teacher: Mapping[str, Example], seed: int) -> ShareInterval | None:
    """Return the accuracy as a share of the teacher's (the paper's 95.00 %); None for a teacher's accuracy of 0."""
    first, second = _right(one, teacher)
    if not sum(second):
        return None
    return ShareInterval(sum(first) / sum(second), paired_bootstrap(share, first, second, seed=seed))


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
        paired_bootstrap(_gap_share, guided, alone, by_teacher, seed=seed),
    )


def _gap_share(guided: Means, alone: Means, by_teacher: Means) -> Means:
    return (guided - alone) / (by_teacher - alone)


def _right(*answers: Mapping[str, Example]) -> list[list[bool]]:
    """Return whether each common question was answered correctly, for each setting."""
    shared = [question for question in answers[0] if all(question in one for one in answers)]
    return [[one[question].correct for question in shared] for one in answers]
