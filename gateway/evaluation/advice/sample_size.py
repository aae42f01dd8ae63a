"""The number of questions that a recommendation needs, before anything is measured, without the extra `eval`."""

from __future__ import annotations

import math
from statistics import NormalDist

POWER = 0.8
"""Probability of showing a difference with the estimated number of questions."""


def questions_to_show(difference: float, differing: float, confidence: float, settings: int) -> int:
    """Return the questions that show with probability POWER that each of several settings is more accurate by this.

    A part `differing` of the questions has only one correct answer. `confidence` is that of all settings together.
    """
    variance = differing - difference**2
    quantiles = NormalDist().inv_cdf(1 - (1 - confidence) / settings) + NormalDist().inv_cdf(POWER)
    return math.ceil(quantiles**2 * variance / difference**2)


def loss_within(questions: int, differing: float) -> float:
    """Return half of the width of the 95 % interval of a loss of accuracy."""
    return NormalDist().inv_cdf(0.975) * math.sqrt(differing / questions)
