"""What may be claimed of many means at once: one-sided bounds that all hold together at a confidence. Pure.

A contrast is a figure for each question whose mean is to be above nought: how much of the loss that is allowed a
setting leaves, or by how much it beats what it is held against.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

Numbers = NDArray[np.float64]

POWER = 0.8
"""With how many questions a difference would be seen: with this chance."""
_DRAWS = 10_000
_PSEUDO = 2.0
_DUST = 1e-9
# So many standard errors below nought nothing is claimed by mistake, and it need not make the others' bounds wider.
_HOPELESS = -3.0
_UNTOLD = 100_000


@dataclass(frozen=True, slots=True)
class Contrast:
    """A figure for each of n questions.

    Attributes:
        values: (n,).
        cells: (c,): what it could be for a question whose answers are right or wrong in any way. They count as two
            questions more, spread evenly (Agresti and Min 2005, for paired shares): twenty questions on which two
            settings agree do not show that they always do. Empty for figures that are no shares.
    """

    values: Numbers
    cells: Numbers = field(default_factory=lambda: np.empty(0))

    @property
    def point(self) -> float:
        """The mean as measured; what binary fractions leave of nought is nought."""
        mean = float(self.values.mean())
        return 0.0 if abs(mean) < _DUST * float(np.abs(self.values).max()) else mean

    @property
    def size(self) -> float:
        """How many questions, those added included."""
        return len(self.values) + (_PSEUDO if len(self.cells) else 0.0)

    @property
    def mean(self) -> float:
        """With those added."""
        return float(self.values.sum() + self._weight * self.cells.sum()) / self.size

    @property
    def deviation(self) -> float:
        """Of one question."""
        squares = float((self.values**2).sum() + self._weight * (self.cells**2).sum()) / self.size
        return math.sqrt(max(0.0, squares - self.mean**2))

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return self.deviation / math.sqrt(self.size)

    @property
    def _weight(self) -> float:
        return _PSEUDO / len(self.cells) if len(self.cells) else 0.0


class BoundedMean(NamedTuple):
    """What is known of a contrast's mean.

    Attributes:
        point: as measured.
        bound: it is at least this, at the confidence asked for, with all other claims made beside it.
        shown: whether the bound is above nought; a mean that cannot vary need only not be below.
        more: how many questions more would show it, roughly; 0 where it is shown, None where it points the other way or
            would take more than 100,000.
    """

    point: float
    bound: float
    shown: bool
    more: int | None

    @property
    def likely(self) -> bool:
        """Whether it holds as measured."""
        return self.point >= 0


def claims(contrasts: Sequence[Contrast], confidence: float, seed: int) -> list[BoundedMean]:
    """The claims that may be made together: with this confidence none of those shown is false.

    Romano and Wolf's step-down (2005) with the largest of k normals that are correlated as the contrasts are: settings
    that answered the same questions err together, and so the price of comparing many is less than Bonferroni's.
    What is far below nought is left out of that price (Hansen 2005).
    """
    if not contrasts:
        return []
    errors = np.array([one.error for one in contrasts])
    means = np.array([one.mean for one in contrasts])
    fixed = errors == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.where(fixed, np.where(means >= 0, np.inf, -np.inf), means / errors)
    draws = _drawn(contrasts, seed)
    least = NormalDist().inv_cdf(confidence)
    shown = np.zeros(len(contrasts), bool)
    while True:
        left = ~shown & ~fixed & (scores > _HOPELESS)
        critical = max(least, float(np.quantile(draws[:, left].max(axis=1), confidence))) if left.any() else least
        now = scores > critical
        if (now == shown).all():
            break
        shown = now
    return [_claim(one, critical, bool(yes)) for one, yes in zip(contrasts, shown, strict=True)]


def _claim(contrast: Contrast, critical: float, shown: bool) -> BoundedMean:
    more = 0 if shown else _needed(contrast, critical)
    return BoundedMean(contrast.point, contrast.mean - critical * contrast.error, shown, more)


def _needed(contrast: Contrast, critical: float) -> int | None:
    """For a one-sided test at `critical`, if the mean is what it seems and the deviation stays."""
    if contrast.point <= 0:
        return None
    wanted = ((critical + NormalDist().inv_cdf(POWER)) * contrast.deviation / contrast.point) ** 2
    return max(1, math.ceil(wanted) - len(contrast.values)) if wanted <= _UNTOLD else None


def _drawn(contrasts: Sequence[Contrast], seed: int) -> Numbers:
    """(draws, k): normals of variance 1, correlated as the contrasts are over the questions."""
    values = np.stack([one.values for one in contrasts], axis=1)
    centred = values - values.mean(axis=0)
    scale = np.sqrt((centred**2).sum(axis=0))
    unit = np.divide(centred, scale, out=np.zeros_like(centred), where=scale > 0)
    correlation = unit.T @ unit
    # A little more than 1, so that settings which always agree have a factor too; by Cholesky, since eigenvectors have
    # no sign of their own, and another machine would draw something else.
    np.fill_diagonal(correlation, 1 + 1e-8)
    factor = np.linalg.cholesky(correlation)
    drawn: Numbers = np.random.default_rng(seed).standard_normal((_DRAWS, len(contrasts))) @ factor.T
    return drawn
