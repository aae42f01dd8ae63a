"""Simultaneous one-sided confidence bounds of many means. Pure functions.

A contrast has one value per question, and its mean should be above 0. Examples are the remaining allowed loss of a
setting, and its advantage over a reference.
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
"""Probability of detecting a difference with the estimated number of questions."""
_DRAWS = 10_000
_PSEUDO = 2.0
_ROUNDING = 1e-9
# A setting so many standard errors below 0 is not claimed, and need not widen the bounds of others.
_MIN_SCORE = -3.0
_MAX_QUESTIONS = 100_000


@dataclass(frozen=True, slots=True)
class Contrast:
    """A value for each of n questions.

    Attributes:
        values: Array of shape (n,).
        cells: Array of shape (c,): the possible values of a question, for any combination of correct and wrong answers.
            They count as two extra questions, spread evenly (Agresti and Min 2005, for paired shares): twenty questions
            on which two settings agree do not prove that they always do. Empty for values that are not shares.
    """

    values: Numbers
    cells: Numbers = field(default_factory=lambda: np.empty(0))

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
        """Return the standard deviation of one question."""
        squares = float((self.values**2).sum() + self._weight * (self.cells**2).sum()) / self.size
        return math.sqrt(max(0.0, squares - self.mean**2))

    @property
    def error(self) -> float:
        """Return the standard error of the mean."""
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
    """Return the simultaneous claims: at this confidence none of the shown ones is false.

    Uses Romano and Wolf's step-down (2005) with the maximum of k normals that are correlated as the contrasts are.
    Settings err together on the same questions, so the correction is smaller than Bonferroni's. Contrasts far below 0
    are left out of the correction (Hansen 2005).

    Args:
        contrasts: The contrasts, over the same questions.
        confidence: One-sided confidence level.
        seed: Seed of the normal samples.
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
    return [_claim(one, critical, bool(is_shown)) for one, is_shown in zip(contrasts, shown, strict=True)]


def _claim(contrast: Contrast, critical: float, shown: bool) -> BoundedMean:
    more = 0 if shown else _needed(contrast, critical)
    return BoundedMean(contrast.point, contrast.mean - critical * contrast.error, shown, more)


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
