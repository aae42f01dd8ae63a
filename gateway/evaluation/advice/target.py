"""What a recommendation is to reach: a part of the teacher's accuracy, or the best for some money."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from gateway.evaluation.advice.bounds import Contrast

if TYPE_CHECKING:
    from decimal import Decimal

    from gateway.evaluation.advice.evidence import Evidence

Numbers = NDArray[np.float64]

_ONE = np.array([1.0, 1.0, 0.0, 0.0])  # right or wrong, and beside it
_OTHER = np.array([1.0, 0.0, 1.0, 0.0])


@dataclass(frozen=True, slots=True)
class AnswerPanel:
    """Who was right, and at what cost: n questions, k settings.

    Attributes:
        correct, cost: (n, k); 1 or 0, and USD.
        teacher, student: the columns of the two alone.
        guided: k of them.
    """

    correct: Numbers
    cost: Numbers
    teacher: int
    student: int
    guided: tuple[bool, ...]

    @classmethod
    def of(cls, evidence: Evidence) -> AnswerPanel:
        guided = tuple(one.guided for one in evidence.candidates)
        return cls(evidence.correct, evidence.cost, evidence.teacher, evidence.student, guided)

    def of_rows(self, rows: NDArray[np.intp]) -> AnswerPanel:
        """Some of the questions."""
        return AnswerPanel(self.correct[rows], self.cost[rows], self.teacher, self.student, self.guided)

    def over_mixture(self, column: int) -> Contrast:
        """By how much a setting is right more often than student and teacher mixed at random at the same cost.

        The mixture asks the dearer of the two with chance p = (cost - cheaper) / (dearer - cheaper). It needs no
        guidance, so guidance that does not beat it does not pay. Where p is above 1 the dearer alone is what to beat;
        where the dearer is no better, the cheaper alone. Where p is below 0 the line goes on: to be cheaper than the
        student pays if it gives up less accuracy for a dollar than the way from teacher to student does.

        The values are the influence of each question on that difference, so that what is not known of the costs and
        of the line's slope counts too (delta method).
        """
        of, cost = self.correct.T, self.cost.T
        cheaper, dearer = sorted((self.student, self.teacher), key=lambda alone: float(cost[alone].mean()))
        gain = float(of[dearer].mean() - of[cheaper].mean())
        spread = float(cost[dearer].mean() - cost[cheaper].mean())
        if gain <= 0:
            return Contrast(of[column] - of[cheaper], _ONE - _OTHER)
        part = float(cost[column].mean() - cost[cheaper].mean()) / spread if spread > 0 else 1.0
        if part >= 1:
            return Contrast(of[column] - of[dearer], _ONE - _OTHER)
        net = of - gain / spread * cost
        values = net[column] - (1 - part) * net[cheaper] - part * net[dearer]
        cells = np.array(
            [one - (1 - part) * two - part * three for one, two, three in product((1, 0), repeat=3)], float
        )
        return Contrast(values, cells)


@dataclass(frozen=True, slots=True)
class RecommendationTarget:
    """What is wanted.

    Attributes:
        kind: keep: this part of the teacher's accuracy. loss: at most so many points below it, as a part of 1.
            budget: at most so many USD for an answer. share: at most this part of the teacher's cost.
    """

    kind: Literal["keep", "loss", "budget", "share"]
    amount: Decimal

    @property
    def spares(self) -> bool:
        """Whether the cheapest is wanted, of those good enough; else the best, of those cheap enough."""
        return self.kind in {"keep", "loss"}

    def __str__(self) -> str:
        match self.kind:
            case "keep":
                return f"the cheapest that keeps {_exactly(self.amount)} of the teacher's accuracy"
            case "loss":
                return f"the cheapest within {_plain(self.amount * 100)} points of the teacher's accuracy"
            case "budget":
                return f"the best for {_plain(self.amount * 1000)} USD per 1000 answers"
            case "share":
                return f"the best for {_exactly(self.amount)} of the teacher's cost"

    def margin(self, panel: AnswerPanel, column: int) -> Contrast:
        """What a setting has left of what is allowed: accuracy, or USD for an answer; below nought it misses."""
        amount = float(self.amount)
        right, teacher = panel.correct[:, column], panel.correct[:, panel.teacher]
        cost = panel.cost[:, column]
        match self.kind:
            case "keep":
                return Contrast(right - amount * teacher, _ONE - amount * _OTHER)
            case "loss":
                return Contrast(right - teacher + amount, _ONE - _OTHER + amount)
            case "budget":
                return Contrast(amount - cost)
            case "share":
                return Contrast(amount * panel.cost[:, panel.teacher] - cost)


def percent(part: float, digits: int = 1) -> str:
    """A part of one, to be read."""
    return f"{part * 100:.{digits}f} %"


def _exactly(amount: Decimal) -> str:
    return f"{_plain(amount * 100)} %"


def _plain(amount: Decimal) -> str:
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
