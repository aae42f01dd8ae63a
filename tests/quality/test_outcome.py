"""Means and differences of outcomes, with intervals over conversations or callers."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from gateway.quality.comparison import SCALE
from gateway.quality.outcome import (
    HIGHER,
    LOWER,
    MIN_UNITS,
    TOO_FEW,
    UNDECIDED,
    Estimate,
    OutcomeSums,
    compare_variants,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def sums_of(units: Iterable[Sequence[float]]) -> OutcomeSums:
    """Return the sums of units, each with the scores of its outcomes."""
    total = OutcomeSums()
    for scores in units:
        number, score = len(scores), sum(round(one * SCALE) for one in scores)
        total += OutcomeSums(1, number, score, number**2, number * score, score**2)
    return total


def drawn(rng: random.Random, units: int, share: float) -> OutcomeSums:
    """Return units of several outcomes, most of which equal the first of their unit."""
    drawn_units = []
    for _ in range(units):
        first = float(rng.random() < share)
        drawn_units.append(
            [first if rng.random() < 0.8 else float(rng.random() < share) for _ in range(rng.randint(1, 9))]
        )
    return sums_of(drawn_units)


def test_an_interval_of_depending_outcomes_covers_the_mean() -> None:
    """An interval over the outcomes, as if they did not depend on each other, would cover it in about 70 %."""
    rng = random.Random(7)
    covered = differences = 0
    for _ in range(600):
        first, second = drawn(rng, 40, 0.7), drawn(rng, 30, 0.7)
        estimate, difference = second.estimate(), second.difference(first)
        assert estimate is not None
        assert difference is not None
        assert estimate.low is not None and estimate.high is not None  # noqa: PT018  for the type checker
        assert difference.low is not None and difference.high is not None  # noqa: PT018
        assert estimate.low <= estimate.value <= estimate.high
        covered += estimate.low <= 0.7 <= estimate.high
        differences += difference.low <= 0 <= difference.high
    assert 0.92 < covered / 600 < 0.995
    assert 0.92 < differences / 600 < 0.995


def test_equal_scores_leave_room_for_doubt() -> None:
    estimate = sums_of([[1.0]] * 12).estimate()
    assert estimate is not None
    assert estimate.value == estimate.high == 1
    assert estimate.low is not None
    assert 0.6 < estimate.low < 0.9


def test_few_units_have_no_interval_however_many_outcomes() -> None:
    few = sums_of([[1.0] * 100] * (MIN_UNITS - 1))
    assert few.estimate() == Estimate(1.0)
    assert verdict(few.difference(sums_of([[0.0]] * 50))) == TOO_FEW
    assert OutcomeSums().estimate() is None
    assert verdict(OutcomeSums().difference(few)) == TOO_FEW


@pytest.mark.parametrize(("scores", "words"), [(1.0, HIGHER), (0.5, UNDECIDED), (0.0, LOWER)])
def test_a_verdict_says_what_the_interval_shows(scores: float, words: str) -> None:
    first = sums_of([[0.5]] * 40)
    assert verdict(sums_of([[scores]] * 40).difference(first)) == words


def test_each_source_of_outcomes_is_compared_by_itself() -> None:
    good, bad = sums_of([[1.0]] * 30), sums_of([[0.0]] * 30)
    compared = compare_variants(
        ["control", "long", "new"],
        {("control", "judge"): good, ("long", "judge"): bad, ("control", "feedback"): bad, ("long", "feedback"): good},
    )
    assert [(row["source"], row["outcomes"]) for row in compared["control"]] == [("feedback", 30), ("judge", 30)]
    assert all("difference" not in row for row in compared["control"])
    assert [(row["source"], row["verdict"]) for row in compared["long"]] == [("feedback", HIGHER), ("judge", LOWER)]
    assert [(row["mean"], row["difference"], row["verdict"]) for row in compared["new"]] == [(None, None, TOO_FEW)] * 2
