"""Targets of a recommendation: a part of the teacher's accuracy, or the best accuracy within a budget."""

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

_ONE = np.array([1.0, 1.0, 0.0, 0.0])  # the four combinations of two answers, correct or wrong
_OTHER = np.array([1.0, 0.0, 1.0, 0.0])


@dataclass(frozen=True, slots=True)
class AnswerPanel:
    """Results of k settings on n questions.

    Attributes:
        correct, cost: Arrays of shape (n, k); 1 or 0, and USD.
        teacher, student: Columns of the teacher alone and the student alone.
        guided: Whether each of the k settings is guided.
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

    def rows_of(self, rows: NDArray[np.intp]) -> AnswerPanel:
        """Return the results of some questions."""
        return AnswerPanel(self.correct[rows], self.cost[rows], self.teacher, self.student, self.guided)

    def over_mixture(self, column: int) -> Contrast:
        """Return by how much a setting is more often correct than a random mixture of student and teacher at its cost.

        The mixture uses the dearer one with probability p = (cost - cheaper) / (dearer - cheaper). It needs no
        guidance, so guidance that does not beat it does not pay. If p is above 1, the reference is the dearer one. If
        the dearer one is not more accurate, the reference is the cheaper one. If p is below 0, the line is extended.
        So being cheaper than the student pays if it loses less accuracy per dollar than the line.

        The values are the influence of each question on the difference. So the uncertainty of the costs and of the
        line's slope is included (delta method).
        """
        correct, cost = self.correct.T, self.cost.T
        cheaper, dearer = sorted((self.student, self.teacher), key=lambda alone: float(cost[alone].mean()))
        gain = float(correct[dearer].mean() - correct[cheaper].mean())
        spread = float(cost[dearer].mean() - cost[cheaper].mean())
        if gain <= 0:
            return Contrast(correct[column] - correct[cheaper], _ONE - _OTHER)
        part = float(cost[column].mean() - cost[cheaper].mean()) / spread if spread > 0 else 1.0
        if part >= 1:
            return Contrast(correct[column] - correct[dearer], _ONE - _OTHER)
        net = correct - gain / spread * cost
        values = net[column] - (1 - part) * net[cheaper] - part * net[dearer]
        cells = np.array(
            [one - (1 - part) * two - part * three for one, two, three in product((1, 0), repeat=3)], float
        )
        return Contrast(values, cells)


@dataclass(frozen=True, slots=True)
class RecommendationTarget:
    """A target.

    Attributes:
        kind: keep: at least this part of the teacher's accuracy. loss: at most this difference from the teacher's
            accuracy, from 0 to 1. budget: at most so many USD per answer. share: at most this part of the teacher's
            cost.
        amount: The value of the limit.
    """

    kind: Literal["keep", "loss", "budget", "share"]
    amount: Decimal

    @property
    def minimizes_cost(self) -> bool:
        """Return whether the target is the cheapest of the accurate settings, else the best of the cheap ones."""
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
        """Return the margin of a setting to the limit, in accuracy or USD per answer; negative values miss it."""
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
    """Format a share as a percentage."""
    return f"{part * 100:.{digits}f} %"


def _exactly(amount: Decimal) -> str:
    return f"{_plain(amount * 100)} %"


def _plain(amount: Decimal) -> str:
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
