"""Targets of a recommendation, and the advantage of guidance over a mixture of student and teacher.

A contrast has one value per question, whose mean should be above 0, such as the advantage of a setting over a
reference. `claims` returns simultaneous one-sided bounds of many means.
"""

from __future__ import annotations

import math
from itertools import product
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.evaluation.advice.sample_size import POWER
from gateway.evaluation.statistics import MIN_QUESTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from gateway.evaluation.advice.evidence import Evidence

Numbers = NDArray[np.float64]
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

    def __neg__(self) -> Contrast:
        return Contrast(-self.values, -self.cells)

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


def claims(contrasts: Sequence[Contrast], confidence: float, seed: int) -> list[BoundedMean]:
    """Return the simultaneous claims: at this one-sided confidence all bounds hold, and no shown claim is false.

    The bounds use the maximum of k normals that are correlated as the contrasts are. Settings err together on the same
    questions, so the correction is smaller than Bonferroni's. Contrasts far below 0 are left out of the correction
    (Hansen 2005). `seed` is that of the normal samples.
    """
    if not contrasts:
        return []
    errors = np.array([one.error for one in contrasts])
    means = np.array([one.mean for one in contrasts])
    fixed = errors == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.where(fixed, np.where(means >= 0, np.inf, -np.inf), means / errors)
    critical = NormalDist().inv_cdf(confidence)
    corrected = ~fixed & (scores > _MIN_SCORE)
    if corrected.any():
        draws = _samples(contrasts, seed)[:, corrected]
        critical = max(critical, float(np.quantile(draws.max(axis=1), confidence)))
    shown = [bool(score > critical) for score in scores]
    return [
        BoundedMean(one.point, one.mean - critical * one.error, is_shown, 0 if is_shown else _needed(one, critical))
        for one, is_shown in zip(contrasts, shown, strict=True)
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
    """Results of k settings on n questions: arrays of shape (n, k), with 1 or 0, and USD.

    `teachers` and `student` are the columns of the two alone. A policy can have the `selectable` settings.
    """

    correct: Numbers
    cost: Numbers
    teachers: tuple[int, ...]
    student: int
    guided: tuple[bool, ...]
    selectable: tuple[bool, ...]

    @classmethod
    def of(cls, evidence: Evidence) -> AnswerPanel:
        every = evidence.candidates
        correct = np.array([[example.correct for example in one.examples] for one in every], float).T
        # Displayed costs are summed from Decimals instead.
        cost = np.array([[float(example.cost_usd) for example in one.examples] for one in every], float).T
        guided = tuple(one.guided for one in every)
        selectable = tuple(evidence.is_selectable(index) for index in range(len(every)))
        return cls(correct, cost, evidence.teachers, evidence.student, guided, selectable)

    def rows_of(self, rows: NDArray[np.intp]) -> AnswerPanel:
        return self._replace(correct=self.correct[rows], cost=self.cost[rows])

    @property
    def best_teacher(self) -> int:
        """Return the most accurate configuration of the teacher alone; of equals the cheaper one."""
        return self._best_of(self.teachers)

    @property
    def own_teacher(self) -> int:
        """Return the most accurate configuration of the teacher alone that a policy can have."""
        return self._best_of([one for one in self.teachers if self.selectable[one]])

    def _best_of(self, columns: Sequence[int]) -> int:
        right, usd = self.correct.mean(axis=0), self.cost.mean(axis=0)
        return min(columns, key=lambda one: (-float(right[one]), float(usd[one])))

    def over_mixture(self, column: int, teacher: int) -> Contrast:
        """Return by how much a setting is more often correct than a random mixture of student and teacher at its cost.

        The mixture uses the dearer one with probability p = (cost - cheaper) / (dearer - cheaper). It needs no
        guidance, so guidance that does not beat it does not pay. If p is above 1, the reference is the dearer one. If
        the dearer one is not more accurate, the reference is the cheaper one. If p is below 0, the line is extended.
        So being cheaper than the student pays if it loses less accuracy per dollar than the line.

        The values are the influence of each question on the difference. So the uncertainty of the costs and of the
        line's slope is included (delta method).
        """
        correct, cost = self.correct.T, self.cost.T
        cheaper, dearer = sorted((self.student, teacher), key=lambda alone: float(cost[alone].mean()))
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


Dominance = Literal["shown", "not shown", "contradicted"]


class Advantage(NamedTuple):
    """The smallest advantage of a guided setting over a mixture of the student and one configuration of the teacher.

    Attributes:
        teacher: The column of that configuration.
        claim: The advantage, with a bound for all guided settings and configurations together. It is shown if the
            advantage over the mixture with each configuration is.
        answer: Whether the setting is shown to beat the mixture with each configuration, or shown not to beat it.
    """

    teacher: int
    claim: BoundedMean
    answer: Dominance

    @property
    def shown(self) -> bool:
        return self.answer == "shown"


def advantages(panel: AnswerPanel, confidence: float, seed: int) -> dict[int, Advantage]:
    """Return the smallest advantage of each guided setting over the mixtures, by column.

    The claims about all pairs of a setting and a teacher are simultaneous. Separate claims for each teacher would err
    too often, since each setting may fail against another teacher.
    """
    guided = [column for column, is_guided in enumerate(panel.guided) if is_guided]
    pairs = [(column, teacher) for column in guided for teacher in panel.teachers]
    over = [panel.over_mixture(*pair) for pair in pairs]
    better = claims(over, confidence, seed)
    worse = claims([-contrast for contrast in over], confidence, seed)
    advantage = {}
    for column in guided:
        places = [place for place, pair in enumerate(pairs) if pair[0] == column]
        smallest = min(places, key=lambda place: (better[place].point > 0, better[place].bound))
        more = [better[place].more for place in places]
        claim = better[smallest]._replace(
            shown=all(better[place].shown for place in places),
            more=None if None in more else max(one for one in more if one is not None),
        )
        is_contradicted = any(worse[place].shown and worse[place].point > 0 for place in places)
        teacher = pairs[smallest][1]
        advantage[column] = _advantage(teacher, claim, len(panel.correct), is_contradicted=is_contradicted)
    return advantage


def _advantage(teacher: int, claim: BoundedMean, n: int, *, is_contradicted: bool) -> Advantage:
    if n < MIN_QUESTIONS:
        return Advantage(teacher, claim._replace(shown=False), "not shown")
    return Advantage(teacher, claim, "shown" if claim.shown else "contradicted" if is_contradicted else "not shown")


class RecommendationTarget(NamedTuple):
    """A target: the limit that a setting must observe. The `kind` determines what `amount` limits.

    The teacher is its most accurate configuration; for `share` the most accurate one that a policy can have.

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

    def margin(self, panel: AnswerPanel, column: int) -> float:
        """Return the measured margin of a setting to the limit: accuracy or USD per answer; negative values miss it."""
        amount, teacher = float(self.amount), panel.best_teacher
        right, cost = panel.correct[:, column], panel.cost[:, column]
        match self.kind:
            case "keep":
                margin = Contrast(right - amount * panel.correct[:, teacher])
            case "loss":
                margin = Contrast(right - panel.correct[:, teacher] + amount)
            case "budget":
                margin = Contrast(amount - cost)
            case "share":
                margin = Contrast(amount * panel.cost[:, panel.own_teacher] - cost)
        return margin.point

    def allowed_loss(self, accuracy: float) -> float | None:
        """Return the loss of accuracy that the target allows, for the teacher's accuracy; None if it limits costs."""
        match self.kind:
            case "keep":
                return float(1 - self.amount) * accuracy
            case "loss":
                return float(self.amount)
            case _:
                return None


def percent(part: float, digits: int = 1) -> str:
    return f"{part * 100:.{digits}f} %"


def _plain(amount: Decimal) -> str:
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
