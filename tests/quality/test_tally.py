"""Sums of comparisons are exact, and the interval is that of the paired t test."""

from __future__ import annotations

import random

import pytest

from gateway.quality.comparison import MIN_SAMPLES, QualityTally, length_of


@pytest.mark.parametrize(
    ("tokens", "length"),
    [(0, "16"), (16, "16"), (17, "32"), (40, "64"), (64, "64"), (65, "128"), (128, "128"), (129, "more")],
)
def test_lengths_have_buckets(tokens: int, length: str) -> None:
    assert length_of(tokens) == length


def summed(pairs: list[tuple[float, float]]) -> QualityTally:
    return sum((QualityTally.of(*pair) for pair in pairs), QualityTally())


def test_sums_are_exact_in_any_order() -> None:
    dice = random.Random(3)
    pairs = [(dice.random(), dice.random()) for _ in range(200)]
    whole = summed(pairs)
    dice.shuffle(pairs)
    assert whole == summed(pairs) == summed(pairs[:70]) + summed(pairs[70:])
    assert whole.mean(whole.guided) == pytest.approx(sum(one for one, _ in pairs) / 200, abs=1e-4)
    assert whole.difference == whole.guided - whole.student


def test_without_comparisons_there_is_no_result() -> None:
    assert QualityTally().mean(0) is None
    assert summed([(1, 0)] * (MIN_SAMPLES - 1)).interval() is None


@pytest.mark.parametrize("count", [10, 30, 400])
def test_the_interval_is_that_of_the_paired_t_test(count: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    dice = random.Random(count)
    pairs = [(dice.random(), dice.random() / 2) for _ in range(count)]
    interval = summed(pairs).interval()
    assert interval is not None
    expected = stats.ttest_rel(*zip(*pairs, strict=True)).confidence_interval(0.95)
    assert interval == pytest.approx((expected.low, expected.high), abs=2e-3)


def test_an_interval_is_within_the_possible_differences() -> None:
    low, high = summed([(1, 0)] * 9 + [(0, 1)]).interval() or (None, None)
    assert low is not None
    assert -1 <= low <= 0.8 <= high <= 1
    assert summed([(1, 0)] * 20).interval() == (1, 1)
