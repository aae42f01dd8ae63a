"""Intervals and tests, compared with published values and calculations by hand."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.evaluation.statistics import holm, paired_bootstrap, paired_difference, sign_test, wilson


# Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3.
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_as_published(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_without_trials_is_0_to_1() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def pairs(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[bool], list[bool]]:
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


def test_mcnemars_p_is_two_tails_of_the_discordant_questions() -> None:
    """1 against 9: two tails of (1 + 10) / 1024."""
    assert sign_test(9, 1) == pytest.approx(22 / 1024)


def test_mcnemar_of_equal_counts_has_p_value_1() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(3, 3) == 1.0


def test_settings_must_have_answered_the_same_questions() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([True, False], [True])


def test_a_bootstrap_comes_near_the_normal_interval() -> None:
    """60 differences: 12 of +1, 6 of -1. Mean 0.1, standard error sqrt((18/60 - 0.01) / 60) = 0.0695."""
    found = paired_bootstrap(lambda mean: mean, [1.0] * 12 + [-1.0] * 6 + [0.0] * 42, seed=7)
    assert found is not None
    assert found == pytest.approx((0.1 - 1.96 * 0.0695, 0.1 + 1.96 * 0.0695), abs=0.02)


def test_the_difference_of_pairs_is_walds_with_half_a_question_more_in_each_cell() -> None:
    """12.5 and 6.5 of 62 differ: mean 6 / 62, standard error sqrt((19 / 62 - (6 / 62) ** 2) / 62) = 0.06922."""
    found = paired_difference(*pairs(20, 12, 6, 22))
    assert found is not None
    assert found == pytest.approx((6 / 62 - 1.96 * 0.06922, 6 / 62 + 1.96 * 0.06922), abs=1e-4)


def test_a_sample_without_a_difference_does_not_show_that_there_is_none() -> None:
    first, second = pairs(61, 0, 0, 39)
    found = paired_difference(first, second)
    assert found is not None
    assert found.low < -0.015
    assert found.high > 0.015
    assert paired_bootstrap(lambda one, other: one / other, first, second, seed=1) is None


@pytest.mark.parametrize(("n", "only_first", "only_second"), [(40, 0.0, 0.02), (100, 0.01, 0.01), (200, 0.03, 0.1)])
def test_the_interval_of_paired_differences_has_its_coverage(n: int, only_first: float, only_second: float) -> None:
    """A percentile bootstrap contains the first value in 55 of 100 samples. No interval of small shares is exact."""
    drawn = np.random.default_rng(3).random((1000, n))
    held = 0
    for sample in drawn:
        first, second = sample < only_first, (sample >= only_first) & (sample < only_first + only_second)
        found = paired_difference(first.tolist(), second.tolist())
        held += found is not None and found.low <= only_first - only_second <= found.high
    assert held > 930


def test_a_bootstrap_is_the_same_under_a_seed() -> None:
    first, second = pairs(20, 12, 6, 22)
    found = [paired_bootstrap(lambda one, other: one / other, first, second, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1]
    assert found[0] is not None
    assert found[2] is not None
    assert found[2] == pytest.approx(found[0], abs=0.05)


def test_a_ratio_with_a_possibly_zero_denominator_has_no_interval() -> None:
    assert paired_bootstrap(lambda one, other: one / other, [1, 1, 0, 0], [1, 0, 0, 0], seed=1) is None


def test_one_question_has_no_interval() -> None:
    assert paired_bootstrap(lambda one, other: one / other, [1], [1], seed=1) is None
    assert paired_difference([True], [False]) is None


def test_holm_steps_down() -> None:
    """0.005 * 4, 0.01 * 3, 0.03 * 2; 0.04 is raised to the previous value."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_stays_a_probability() -> None:
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
