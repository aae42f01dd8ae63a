"""Two settings on the same questions: by how much one is better, how sure that is, and on which questions."""

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
    """One setting against another, on the questions that both have.

    Attributes:
        accuracy, reference_accuracy: on those questions alone.
        interval: of the difference (`paired_difference`); None where there are too few questions.
        test: the questions that only the one or only the other got right, and McNemar's exact p.
        won, lost: those questions.
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
    """A share with its 95 % interval; `interval` is None where the whole may be nothing, or no draw differs."""

    value: float
    interval: Interval | None


def compared(one: Mapping[str, Example], other: Mapping[str, Example]) -> SettingComparison | None:
    """None where no question has an answer in both."""
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
        won=tuple(question for question, here, there in pairs if here and not there),
        lost=tuple(question for question, here, there in pairs if there and not here),
    )


def kept(one: Mapping[str, Example], teacher: Mapping[str, Example], seed: int) -> ShareInterval | None:
    """The accuracy as a share of the teacher's (the paper's 95.00 %); None where the teacher got nothing right."""
    first, second = _right(one, teacher)
    if not sum(second):
        return None
    return ShareInterval(sum(first) / sum(second), paired_bootstrap(share, first, second, seed=seed))


def gap_closed(
    one: Mapping[str, Example], student: Mapping[str, Example], teacher: Mapping[str, Example], seed: int
) -> ShareInterval | None:
    """(guided - student) / (teacher - student): 0 at the student, 1 at the teacher.

    None unless the interval of teacher - student lies above 0: else there may be no gap to close.
    """
    guided, alone, taught = _right(one, student, teacher)
    gap = paired_difference(taught, alone)
    if gap is None or gap.low <= 0:
        return None
    return ShareInterval(
        (sum(guided) - sum(alone)) / (sum(taught) - sum(alone)),
        paired_bootstrap(_of_gap, guided, alone, taught, seed=seed),
    )


def _of_gap(guided: Means, alone: Means, taught: Means) -> Means:
    return (guided - alone) / (taught - alone)


def _right(*answers: Mapping[str, Example]) -> list[list[bool]]:
    """Whether each question was right, for the questions that all have."""
    shared = [question for question in answers[0] if all(question in one for one in answers)]
    return [[one[question].correct for question in shared] for one in answers]
