"""Confidence intervals of shares, and paired tests of two settings on the same questions."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Means: TypeAlias = NDArray[np.float64]
CONFIDENCE = 0.95
MIN_QUESTIONS = 20
"""No claim is made with fewer questions."""
RESAMPLES = 9999
"""Resamples of a bootstrap: another seed moves an interval's end by a small part of a percentage point."""
# Resamples per batch: memory grows with the number of questions.
_BATCH = 1000


class Interval(NamedTuple):
    """A closed interval from `low` to `high`."""

    low: float
    high: float


def wilson(successes: int, n: int) -> Interval:
    """Return Wilson's score interval of a share without continuity correction; [0, 1] for n = 0."""
    if n == 0:
        return Interval(0.0, 1.0)
    low, high = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(low), float(high))


def sign_test(wins: int, losses: int) -> float:
    """Return the exact two-sided p-value of a split if wins and losses are equally likely.

    This is McNemar's exact test, for the questions that only one of two settings answers correctly.
    """
    tried = wins + losses
    return float(stats.binomtest(wins, tried).pvalue) if tried else 1.0


def agresti_min(differences: Sequence[float]) -> Interval:
    """Return the interval of the mean difference of two settings, from one difference from -1 to 1 per question.

    This is Agresti and Min's interval for pairs (2005): Wald's after adding half a question to each of the four cells.
    It is valid for few questions, and if no question differs.
    """
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    count = len(differences) + 2
    mean = sum(differences) / count
    error = math.sqrt(((sum(one * one for one in differences) + 1) / count - mean * mean) / count)
    return Interval(max(-1.0, mean - z * error), min(1.0, mean + z * error))


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> Interval | None:
    """Return the interval of the difference of two shares of the same questions; None for fewer than two questions.

    Uses `agresti_min`: a bootstrap is too narrow if few questions differ, and claims equality if none does.
    """
    pairs = list(zip(first, second, strict=True))
    if len(pairs) < 2:
        return None
    return agresti_min([one - other for one, other in pairs])


def paired_bootstrap(statistic: Callable[..., Means], *samples: Sequence[float], seed: int) -> Interval | None:
    """Return the percentile interval of a statistic of several settings, resampling their questions together.

    `statistic` is a function of the samples' means, which are arrays with one value per resample; it returns such an
    array. `samples` have one value per question for each setting, in the same order. Equal seeds and samples give equal
    intervals.

    Returns None for fewer than two questions, and if the statistic is undefined for a resample (such as a share of 0).
    Returns None too if all resamples agree, since a sample without differences does not prove equality. Raises
    ValueError if the lengths differ.
    """
    if len(samples[0]) < 2:
        return None

    def of_means(*drawn: Means, axis: int = -1) -> Means:
        return statistic(*(one.mean(axis=axis) for one in drawn))

    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            tuple(np.asarray(sample, float) for sample in samples),
            of_means,
            paired=True,
            vectorized=True,
            method="percentile",
            confidence_level=CONFIDENCE,
            n_resamples=RESAMPLES,
            batch=_BATCH,
            rng=np.random.default_rng(seed),
        )
    drawn = found.bootstrap_distribution
    if not np.isfinite(drawn).all() or np.ptp(drawn) == 0:
        return None
    low, high = found.confidence_interval
    return Interval(float(low), float(high))


def holm(ps: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values in the order given: at 0.05, a false claim has a probability of 5 %."""
    adjusted = [math.nan] * len(ps)
    lower_bound = 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        lower_bound = max(lower_bound, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = lower_bound
    return adjusted
