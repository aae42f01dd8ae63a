"""How sure a comparison is: intervals of a share, and tests for two settings that answered the same questions."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Means: TypeAlias = NDArray[np.float64]

CONFIDENCE = 0.95
LEAST_QUESTIONS = 20
"""With fewer nothing is claimed."""
DRAWS = 9999
"""Of a bootstrap: so many that another seed moves an interval's end by a small part of a point."""
# Draws that are worked at together: what they take grows with the number of questions.
_BATCH = 1000


class Interval(NamedTuple):
    """From `low` to `high`, both of them in it."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


class McNemar(NamedTuple):
    """Two settings on the same questions.

    Attributes:
        only_first, only_second: the questions that one of them alone got right: all that the test looks at.
        p: two-sided and exact: how probable a split at least as uneven is if both are equally good.
    """

    only_first: int
    only_second: int
    p: float


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a share, without continuity correction; all of 0 to 1 where nothing was tried.

    Raises ValueError where there are more successes than trials.
    """
    if n == 0:
        return Interval(0.0, 1.0)
    low, high = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(float(low), float(high))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """McNemar's test in its exact form: the binomial test of the questions on which the two differ.

    first, second: whether each question was right, in the same order. Raises ValueError where they are not as many.
    """
    pairs = list(zip(first, second, strict=True))
    only_first = sum(one and not other for one, other in pairs)
    only_second = sum(other and not one for one, other in pairs)
    return McNemar(only_first, only_second, sign_test(only_first, only_second))


def sign_test(wins: int, losses: int, alternative: Literal["two-sided", "greater"] = "two-sided") -> float:
    """How probable so uneven a split is if wins and losses are equally likely, exactly; "greater": in favour of wins.

    Raises ValueError where one of them is negative.
    """
    tried = wins + losses
    return float(stats.binomtest(wins, tried, alternative=alternative).pvalue) if tried else 1.0


def agresti_min(differences: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Of the mean difference of two settings, each from -1 to 1, one for each question.

    Agresti and Min's interval for pairs (2005): Wald's after half a question was added to each of the four cells. It
    holds for few questions too, and where not one differs.
    """
    z = float(stats.norm.ppf((1 + confidence) / 2))
    count = len(differences) + 2
    mean = sum(differences) / count
    error = math.sqrt(((sum(one * one for one in differences) + 1) / count - mean * mean) / count)
    return Interval(max(-1.0, mean - z * error), min(1.0, mean + z * error))


def paired_difference(first: Sequence[bool], second: Sequence[bool], confidence: float = CONFIDENCE) -> Interval | None:
    """The interval of the difference of two shares of the same questions; None where there are fewer than two.

    `agresti_min`: where few questions tell the two apart a bootstrap draws hardly any of them, and is too narrow; where
    none does, it says that the two are equal. Raises ValueError where they are not as many.
    """
    pairs = list(zip(first, second, strict=True))
    if len(pairs) < 2:
        return None
    return agresti_min([one - other for one, other in pairs], confidence)


def paired_bootstrap(
    statistic: Callable[..., Means],
    *samples: Sequence[float],
    seed: int,
    confidence: float = CONFIDENCE,
    draws: int = DRAWS,
) -> Interval | None:
    """The percentile interval of a figure of several settings, whose questions are drawn together.

    statistic: of the means of the samples, arrays of one value for each draw; it gives an array as long.
    samples: a figure for each question, in the same order for all.
    seed: the same seed and samples give the same interval.

    None where there are fewer than two questions; where the statistic is no number for one of the draws, as a share
    of something that may be 0 is not; and where all draws agree, for that a sample shows no difference does not show
    that there is none. Raises ValueError where the samples are not of one length.
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
            confidence_level=confidence,
            n_resamples=draws,
            batch=_BATCH,
            rng=np.random.default_rng(seed),
        )
    drawn = found.bootstrap_distribution
    if not np.isfinite(drawn).all() or np.ptp(drawn) == 0:
        return None
    low, high = found.confidence_interval
    return Interval(float(low), float(high))


def share(first: Means, second: Means) -> Means:
    """For `paired_bootstrap`: the first as a part of the second."""
    return first / second


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: each p as it is to be read beside the others, in the order given.

    Where one of them is at most 0.05, the chance that any of those called different is not stays at most 5 %.
    """
    adjusted = [math.nan] * len(ps)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = least
    return adjusted
