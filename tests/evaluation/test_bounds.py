"""Simultaneous claims about many settings hold at the requested confidence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.evaluation.advice.target import Contrast, claims

CELLS = np.array([0.0, 1.0, -1.0, 0.0])


def test_the_bound_of_one_contrast_is_the_normals() -> None:
    values = np.array([1.0, 0.0, 0.0, -1.0] * 50 + [1.0] * 20)
    (found,) = claims([Contrast(values)], 0.8, 0)
    assert found.point == pytest.approx(20 / 220)
    # The 80 % quantile of a normal is 0.8416; the maximum of one sampled normal is near it, and never below.
    assert found.bound == pytest.approx(20 / 220 - 0.8416 * values.std() / np.sqrt(220), abs=2e-3)
    assert found.shown
    assert found.more == 0


def test_agreement_on_all_questions_does_not_prove_equality() -> None:
    few, many = (claims([Contrast(np.full(n, 0.02), CELLS + 0.02)], 0.8, 0)[0] for n in (20, 400))
    assert few.point == pytest.approx(many.point)
    assert not few.shown
    assert many.shown


def test_a_constant_figure_is_shown_if_not_negative() -> None:
    found = claims([Contrast(np.full(30, value)) for value in (0.1, 0.0, -0.1)], 0.8, 0)
    assert [one.shown for one in found] == [True, True, False]


def test_rounding_errors_of_zero_are_zero() -> None:
    values = np.array([0.1 + 0.2, -0.3] * 10)
    assert values.mean() != 0
    assert Contrast(values).point == 0
    assert claims([Contrast(values)], 0.8, 0)[0].more is None


def test_the_stated_number_of_further_questions_has_the_power() -> None:
    """With the stated number of additional questions, the claim is shown about as often as the power."""
    rng = np.random.default_rng(5)

    def drawn(n: int) -> Contrast:
        return Contrast(rng.choice([-1.0, 0.0, 1.0], n, p=[0.1, 0.8, 0.1]) + 0.04, CELLS)

    estimates = [more for _ in range(200) if (more := claims([drawn(60)], 0.8, 0)[0].more)]
    assert estimates
    assert np.mean([claims([drawn(260)], 0.8, 0)[0].shown for _ in range(200)]) == pytest.approx(0.76, abs=0.12)


@pytest.mark.long
@pytest.mark.parametrize("k", [1, 4, 12])
def test_the_rate_of_false_claims_is_at_most_the_level(k: int) -> None:
    """Each mean is 0, so each claim is false."""
    rng = np.random.default_rng(k)
    wrong = 0
    runs = 150
    for _ in range(runs):
        hard = rng.standard_normal((120, 1))
        right = (hard + rng.standard_normal((120, k + 1)) < 0.3).astype(float)
        found = claims([Contrast(right[:, j] - right[:, k], CELLS) for j in range(k)], 0.8, 0)
        wrong += any(one.shown for one in found)
    assert wrong / runs <= 0.2 + 3 * np.sqrt(0.2 * 0.8 / runs)


def test_settings_that_are_hopeless_do_not_widen_the_others_bounds() -> None:
    rng = np.random.default_rng(1)
    good = Contrast(rng.standard_normal(100) + 0.2)
    bad = [Contrast(rng.standard_normal(100) - 2) for _ in range(20)]
    assert claims([good, *bad], 0.8, 0)[0].bound == pytest.approx(claims([good], 0.8, 0)[0].bound, abs=3e-3)


@settings(max_examples=25, deadline=None)
@given(shift=st.floats(-0.5, 0.5), n=st.integers(20, 200), seed=st.integers(0, 10_000))
def test_a_lower_bound_determines_the_claim(shift: float, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    contrasts = [Contrast(rng.standard_normal(n) + shift * j) for j in range(4)]
    found = claims(contrasts, 0.9, seed)
    assert all(one.bound < one.point for one in found)
    assert [one.shown for one in found] == [one.bound > 0 for one in found]
    assert found == claims(contrasts, 0.9, seed)
