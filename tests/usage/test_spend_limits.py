"""Limits of hourly spend: weekly patterns, growth, gaps and rare peaks raise no alert; doubled spend does."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from gateway.usage.spend_limits import HOUR_S, WEEK_S, SpendRule, neighbors, usual_share

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = 1_790_000_000 // HOUR_S * HOUR_S
RULE = SpendRule(min_usd=5.0, factor=1.5, min_history_s=14 * 86_400)


def pico(usd: float) -> int:
    return round(usd * 1e12)


def history(usd: Callable[[int], float | None], days: int = 28) -> dict[int, int]:
    """Return the spend of the hours before NOW. `usd` gets the hours until NOW; None: a gap."""
    values = {NOW - back * HOUR_S: usd(back) for back in range(1, days * 24 + 1)}
    return {start: pico(value) for start, value in values.items() if value is not None}


def is_alert(spend: float, earlier: dict[int, int], rule: SpendRule = RULE) -> bool:
    limit = rule.limit(earlier, NOW)
    assert limit is not None
    return pico(spend) > limit.limit_pico


def noisy(level: float, seed: int = 3) -> Callable[[int], float]:
    rng = random.Random(seed)
    return lambda _: level * rng.lognormvariate(0, 0.1)


def test_doubled_spend_is_unusual_and_the_usual_spend_is_not() -> None:
    earlier = history(noisy(20.0))
    limit = RULE.limit(earlier, NOW)
    assert limit is not None
    assert pico(18) < limit.expected_pico < pico(22)
    assert limit.expected_pico < limit.calm_pico < limit.limit_pico
    assert [is_alert(spend, earlier) for spend in (20.0, 25.0, 40.0)] == [False, False, True]


def test_a_weekly_peak_is_usual_and_the_same_spend_an_hour_of_the_week_later_is_not() -> None:
    """The peak of each week is at the hour that is judged."""
    assert not is_alert(200.0, history(lambda back: 200.0 if back % 168 == 0 else 10.0))
    wide = history(lambda back: 200.0 if back % 168 in {0, 1, 167} else 10.0)
    assert not is_alert(200.0, wide)
    elsewhere = history(lambda back: 200.0 if back % 168 in {50, 51, 52} else 10.0)
    assert is_alert(200.0, elsewhere)


def test_nights_without_spend_are_expected_to_stay_without() -> None:
    nights = history(lambda back: 0.0 if back % 24 in {22, 23, 0, 1, 2} else 40.0)
    assert is_alert(30.0, nights)
    assert not is_alert(4.9, nights), "below the least amount"


def test_growth_by_a_tenth_each_week_is_usual() -> None:
    assert not is_alert(20.0, history(lambda back: 20.0 / 1.1 ** (back / 168)))


def test_a_level_that_lasted_a_week_is_usual() -> None:
    raised = history(lambda back: 50.0 if back <= 168 + 1 else 20.0)
    assert not is_alert(50.0, raised)
    two_days = history(lambda back: 50.0 if back <= 48 else 20.0)
    assert is_alert(200.0, two_days)


def test_a_tenant_with_irregular_batches_has_a_higher_limit() -> None:
    rng = random.Random(5)
    batches = history(lambda _: 100.0 * rng.uniform(0.5, 1) if rng.random() < 0.05 else 0.0)
    assert not is_alert(90.0, batches)
    assert is_alert(5_000.0, batches)


@pytest.mark.parametrize("days", [0, 1, 13])
def test_a_tenant_without_enough_history_has_no_limit(days: int) -> None:
    assert RULE.limit(history(noisy(20.0), days), NOW) is None


def test_the_history_is_counted_from_the_first_request() -> None:
    assert RULE.limit(history(noisy(20.0), 14), NOW) is not None


def test_gaps_are_no_zeros() -> None:
    """In two of four weeks no worker ran at this time: their hours are left out."""
    weeks = {1, 3}
    gaps = history(lambda back: None if round(back / 168) in weeks and min(back % 168, 168 - back % 168) < 12 else 20.0)
    zeros = history(lambda back: 0.0 if round(back / 168) in weeks and min(back % 168, 168 - back % 168) < 12 else 20.0)
    limit, of_zeros = RULE.limit(gaps, NOW), RULE.limit(zeros, NOW)
    assert limit is not None
    assert of_zeros is not None
    assert limit.expected_pico == pytest.approx(pico(20), rel=1e-6)
    assert of_zeros.expected_pico < limit.expected_pico
    assert RULE.limit(history(lambda back: None if back % 168 in {0, 1, 167} else 20.0), NOW) is None


def test_older_hours_do_not_count() -> None:
    old = {NOW - 5 * WEEK_S - step * HOUR_S: pico(500) for step in range(100)}
    assert RULE.limit(old, NOW) is None
    assert RULE.limit(history(noisy(20.0)) | old, NOW) == RULE.limit(history(noisy(20.0)), NOW)


def test_the_least_amount_and_the_least_ratio_are_settings() -> None:
    earlier = history(lambda _: 20.0)
    assert is_alert(33.0, earlier)
    assert not is_alert(33.0, earlier, RULE._replace(min_usd=20.0))
    assert not is_alert(33.0, earlier, RULE._replace(factor=2.0))
    assert not is_alert(0.5, history(lambda _: 0.01))
    assert is_alert(0.5, history(lambda _: 0.01), RULE._replace(min_usd=0.1))


def test_the_least_limit_is_never_above_the_limit() -> None:
    """Both limits have the same expected spend if all hours that decide the level are known."""
    rng = random.Random(11)
    for _ in range(60):
        gaps, level, noise = rng.choice([0.0, 0.05, 0.5]), rng.choice([0.1, 5.0, 300.0]), rng.uniform(0, 1)
        values = [level * rng.lognormvariate(0, noise) * (rng.random() < 0.8) for _ in range(29 * 24 + 1)]
        gap = {back for back in range(len(values)) if rng.random() < gaps}
        spend = {back: None if back in gap else value for back, value in enumerate(values)}
        earlier = history(spend.__getitem__, rng.randint(14, 29))
        near = {start: earlier[start] for start in neighbors(NOW) if start in earlier}
        limit, least = RULE.limit(earlier, NOW), RULE.least(near, NOW)
        if limit is not None:
            assert least.limit_pico <= limit.limit_pico
            assert least.expected_pico <= limit.expected_pico
            if len(near) == len(neighbors(NOW)):
                assert least.expected_pico == limit.expected_pico


def test_the_usual_share_is_the_median_of_hours_with_enough_requests() -> None:
    hours = [(100, 10)] * 20 + [(100, 90)] * 9 + [(2, 2)] * 100
    assert usual_share(hours) == 0.1
    assert usual_share([(100, 10)] * 23) is None
