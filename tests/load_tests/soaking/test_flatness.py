"""The rule for leaks: rises are detected despite noise, and other changes are no leak."""

from __future__ import annotations

import math
from random import Random

import pytest

from load_tests.soaking.flatness import FEWEST_BLOCKS, MOST_BLOCKS, Measure, trend

BYTES = Measure("memory", "MB", 1e6, part=0.05, plus=3e6)
WARM_UP_S = 300


def samples(rise: float, *, noise: float = 0.0, jump: float = 0.0, count: int = 240) -> list[tuple[float, float]]:
    """Return twenty minutes of samples of a process of 200 MB with a rise after its warm-up.

    Args:
        jump: additional bytes for half a minute of every three.
    """
    random = Random(7)
    found = []
    for number in range(count):
        at = number * 1200 / count
        warm = 60e6 * (1 - math.exp(-at / 60))
        more = max(0.0, at - WARM_UP_S) / (1200 - WARM_UP_S) * rise
        found.append((at, 140e6 + warm + more + random.gauss(0, noise) + jump * (at % 180 < 30)))
    return found


def test_a_process_that_only_warms_up_is_flat() -> None:
    verdict = trend(BYTES, "one", samples(0, noise=1e6), WARM_UP_S)
    assert verdict.holds
    assert verdict.judged_s == pytest.approx(900, abs=20)
    assert verdict.first == pytest.approx(200e6, rel=0.01)


def test_a_leak_is_detected_despite_noise_and_jumps() -> None:
    """The rise is 20 MB in 15 minutes, with 13 MB allowed: 22 kB per second."""
    verdict = trend(BYTES, "one", samples(20e6, noise=2e6, jump=40e6), WARM_UP_S)
    assert not verdict.holds
    assert verdict.allowed == pytest.approx(13e6, rel=0.02)
    assert verdict.rise == pytest.approx(20e6, rel=0.15)
    assert verdict.allowed < verdict.least_rise < verdict.rise


def test_temporary_jumps_are_no_leak() -> None:
    """The last jump lasts until the end."""
    found = samples(0, noise=1e6, jump=60e6)
    assert trend(BYTES, "one", found, WARM_UP_S).holds
    assert trend(BYTES, "one", [one for one in found if one[0] < 1105], WARM_UP_S).holds


def test_an_insignificant_rise_is_no_leak() -> None:
    """The slope exceeds the allowed rise, but the lower end of its interval does not."""
    found = samples(15e6, noise=30e6, count=40)
    verdict = trend(BYTES, "one", found, WARM_UP_S)
    assert verdict.rise > verdict.allowed > verdict.least_rise
    assert verdict.holds


def test_a_falling_measure_is_flat() -> None:
    assert trend(BYTES, "one", samples(-60e6), WARM_UP_S).holds


def test_too_few_samples_have_no_verdict() -> None:
    steep = [(float(at), 1e9 * at) for at in range(20)]
    assert trend(BYTES, "one", steep[:FEWEST_BLOCKS], 0).judged_s > 0
    for few in (steep[: FEWEST_BLOCKS - 1], steep[:1], []):
        verdict = trend(BYTES, "one", few, 0)
        assert (verdict.judged_s, verdict.holds) == (0, True)


def test_a_measure_is_not_judged_before_it_settles() -> None:
    """Receipts are stored for a minute, so their number grows during the first minute."""
    keys = Measure("keys", "", 1, part=0.1, plus=50, settles_s=90)
    found = [(float(at), 20.0 * min(at, 60)) for at in range(0, 120, 2)]
    assert trend(keys, "Redis", found, 10).holds
    assert not trend(Measure("keys", "", 1, 0.1, 50), "Redis", found, 10).holds


def test_hours_of_samples_are_judged_by_their_blocks() -> None:
    """All pairs of all samples would be too many."""
    leaks = [(float(at), 200e6 + 1e3 * at) for at in range(43_200)]
    verdict = trend(BYTES, "one", leaks, 10_800)
    assert not verdict.holds
    assert verdict.rise == pytest.approx(32.4e6, rel=2 / MOST_BLOCKS)
