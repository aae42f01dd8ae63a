"""Targets of a recommendation: a part of the teacher's accuracy, or the best accuracy within a budget.

A target yields contrasts: one value per question, whose mean should be above 0. Examples are the remaining allowed loss
of a setting, and its advantage over a reference. `claims` returns simultaneous one-sided bounds of many means.
"""

from __future__ import annotations

import math
from itertools import product
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from gateway.evaluation.advice.evidence import Evidence

Numbers = NDArray[np.float64]
POWER = 0.8
"""Probability of detecting a difference with the estimated number of questions."""
_DRAWS = 10_000
_PSEUDO = 2.0
_ROUNDING = 1e-9
# A setting so many standard errors below 0 is not claimed, and need not widen the bounds of others.
_MIN_SCORE = -3.0
_MAX_QUESTIONS = 100_000
_ONE = np.array([1.0, 1.0, 0.0, 0.0])  # the four combinations of two answers, correct or wrong
_OTHER = np.array([1.0, 0.0, 1.0, 0.0])


class Contrast(NamedTuple):
    """A value for each of n questions.

    Attributes:
        values: Array of shape (n,).
        cells: Array of shape (c,): the possible values of a question, for any combination of correct and wrong answers.
            They count as two extra questions, spread evenly (Agresti and Min 2005, for paired shares): twenty questions
            on which two settings agree do not prove that they always do. Empty for values that are not shares.
    """

    values: Numbers
    cells: Numbers = np.empty(0)

    @property
    def point(self) -> float:
        """Return the measured mean; rounding errors around 0 become 0."""
        mean = float(self.values.mean())
        return 0.0 if abs(mean) < _ROUNDING * float(np.abs(self.values).max()) else mean

    @property
    def size(self) -> float:
        """Return the number of questions, including the added ones."""
        return len(self.values) + (_PSEUDO if len(self.cells) else 0.0)

    @property
    def mean(self) -> float:
        """Return the mean, including the added questions."""
        return float(self.values.sum() + self._weight * self.cells.sum()) / self.size

    @property
    def deviation(self) -> float:
        squares = float((self.values**2).sum() + self._weight * (self.cells**2).sum()) / self.size
        return math.sqrt(max(0.0, squares - self.mean**2))

    @property
    def error(self) -> float:
        return self.deviation / math.sqrt(self.size)

    @property
    def _weight(self) -> float:
        return _PSEUDO / len(self.cells) if len(self.cells) else 0.0


class BoundedMean(NamedTuple):
    """Estimate of a contrast's mean.

    Attributes:
        point: The measured mean.
        bound: Lower bound at the confidence of all simultaneous claims.
        shown: Whether the bound is above 0; for a constant contrast, whether it is not below 0.
        more: Approximate number of additional questions to show the claim; 0 if it is shown, None if the measured mean
            contradicts it or more than 100,000 are needed.
    """

    point: float
    bound: float
    shown: bool
    more: int | None

    @property
    def likely(self) -> bool:
        """Return whether the claim holds as measured."""
        return self.point >= 0


def claims(contrasts: Sequence[Contrast], confidence: float, seed: int) -> list[BoundedMean]:
    """Return the simultaneous claims: at this one-sided confidence none of the shown ones is false.

    Uses Romano and Wolf's step-down (2005) with the maximum of k normals that are correlated as the contrasts are.
    Settings err together on the same questions, so the correction is smaller than Bonferroni's. Contrasts far below 0
    are left out of the correction (Hansen 2005). `seed` is that of the normal samples.
    """
    if not contrasts:
        return []
    errors = np.array([one.error for one in contrasts])
    means = np.array([one.mean for one in contrasts])
    fixed = errors == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.where(fixed, np.where(means >= 0, np.inf, -np.inf), means / errors)
    draws = _samples(contrasts, seed)
    normal_quantile = NormalDist().inv_cdf(confidence)
    shown = np.zeros(len(contrasts), bool)
    while True:
        open_claims = ~shown & ~fixed & (scores > _MIN_SCORE)
        critical = (
            max(normal_quantile, float(np.quantile(draws[:, open_claims].max(axis=1), confidence)))
            if open_claims.any()
            else normal_quantile
        )
        next_shown = scores > critical
        if (next_shown == shown).all():
            break
        shown = next_shown
    bounds = [one.mean - critical * one.error for one in contrasts]
    return [
        BoundedMean(one.point, bound, bool(is_shown), 0 if is_shown else _needed(one, critical))
        for one, bound, is_shown in zip(contrasts, bounds, shown, strict=True)
    ]


def _needed(contrast: Contrast, critical: float) -> int | None:
    """Return the additional questions for a one-sided test at `critical`, given the measured mean and deviation."""
    if contrast.point <= 0:
        return None
    total = ((critical + NormalDist().inv_cdf(POWER)) * contrast.deviation / contrast.point) ** 2
    return max(1, math.ceil(total) - len(contrast.values)) if total <= _MAX_QUESTIONS else None


def _samples(contrasts: Sequence[Contrast], seed: int) -> Numbers:
    """Return samples of shape (draws, k): standard normals, correlated as the contrasts are over the questions."""
    values = np.stack([one.values for one in contrasts], axis=1)
    centered = values - values.mean(axis=0)
    scale = np.sqrt((centered**2).sum(axis=0))
    unit = np.divide(centered, scale, out=np.zeros_like(centered), where=scale > 0)
    correlation = unit.T @ unit
    # Slightly above 1, so that settings that always agree have a factor too. Cholesky is reproducible on all machines;
    # eigenvectors have no defined sign.
    np.fill_diagonal(correlation, 1 + 1e-8)
    factor = np.linalg.cholesky(correlation)
    samples: Numbers = np.random.default_rng(seed).standard_normal((_DRAWS, len(contrasts))) @ factor.T
    return samples


class AnswerPanel(NamedTuple):
    """Results of k settings on n questions: arrays of shape (n, k), with 1 or 0, and USD; the columns of both alone."""

    correct: Numbers
    cost: Numbers
    teacher: int
    student: int
    guided: tuple[bool, ...]

    @classmethod
    def of(cls, evidence: Evidence) -> AnswerPanel:
        every = evidence.candidates
        correct = np.array([[example.correct for example in one.examples] for one in every], float).T
        # Displayed costs are summed from Decimals instead.
        cost = np.array([[float(example.cost_usd) for example in one.examples] for one in every], float).T
        return cls(correct, cost, evidence.teacher, evidence.student, tuple(one.guided for one in every))

    def rows_of(self, rows: NDArray[np.intp]) -> AnswerPanel:
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


class RecommendationTarget(NamedTuple):
    """A target: the limit that a setting must observe. The `kind` determines what `amount` limits.

    keep      minimum accuracy, as a part of the teacher's
    loss      maximum difference from the teacher's accuracy, from 0 to 1
    budget    maximum cost of an answer, in USD
    share     maximum cost, as a part of the teacher's
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
                return f"the cheapest that keeps {_plain(self.amount * 100)} % of the teacher's accuracy"
            case "loss":
                return f"the cheapest within {_plain(self.amount * 100)} points of the teacher's accuracy"
            case "budget":
                return f"the best for {_plain(self.amount * 1000)} USD per 1000 answers"
            case "share":
                return f"the best for {_plain(self.amount * 100)} % of the teacher's cost"

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
    return f"{part * 100:.{digits}f} %"


def _plain(amount: Decimal) -> str:
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
