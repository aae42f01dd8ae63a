"""The verdict on quality: it names a fall only where the data show one, and holds only where they exclude one."""

from __future__ import annotations

import random

import pytest

from gateway.quality.comparison import MIN_SAMPLES, SCALE
from gateway.quality.trend import AgreementSums, RouteScope, assess, change_of

CHAT = RouteScope("acme", "chat", "words")
CODE = RouteScope("acme", "code", "words")


def sums(*agreements: float) -> AgreementSums:
    units = [round(one * SCALE) for one in agreements]
    return AgreementSums(len(units), sum(units), sum(one * one for one in units))


def around(mean: float, count: int) -> AgreementSums:
    """Return agreements with a standard deviation of 0.1."""
    return sums(*[mean - 0.1, mean + 0.1] * (count // 2))


def verdict(now: object, before: object, bound: float | None = None, *, switched_off: bool = False) -> tuple[str, str]:
    found = assess(now, before, lambda _: bound, switched_off=switched_off)  # type: ignore[arg-type]
    return found.verdict, found.reason


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        ({}, {}, ("not_measured", "no_samples")),
        ({CHAT: around(0.7, 400)}, {}, ("not_measured", "too_few")),
        ({CHAT: around(0.7, 8)}, {CHAT: around(0.7, 400)}, ("not_measured", "too_few")),
        ({CHAT: around(0.7, 10)}, {CHAT: around(0.7, 10)}, ("not_measured", "too_few")),
        ({CHAT: around(0.7, 400)}, {CHAT: around(0.7, 400)}, ("holding", "change")),
        ({CHAT: around(0.8, 400)}, {CHAT: around(0.5, 400)}, ("holding", "change")),
        ({CHAT: around(0.65, 400)}, {CHAT: around(0.7, 400)}, ("falling", "change")),
    ],
)
def test_the_change_decides_without_a_bound(now: object, before: object, expected: tuple[str, str]) -> None:
    assert verdict(now, before) == expected


@pytest.mark.parametrize(
    ("mean", "bound", "expected"),
    [
        (0.7, 0.8, ("falling", "below_bound")),
        (0.7, 0.6, ("holding", "above_bound")),
        (0.7, 0.7, ("not_measured", "too_few")),
    ],
)
def test_the_bound_decides_without_a_period_before(mean: float, bound: float, expected: tuple[str, str]) -> None:
    assert verdict({CHAT: around(mean, 400)}, {}, bound) == expected


def test_guidance_switched_off_is_a_fall_without_samples() -> None:
    assert verdict({}, {}, switched_off=True) == ("falling", "switched_off")


def test_another_mix_of_routes_is_no_change() -> None:
    """Pooled, the agreement would fall from 0.86 to 0.54."""
    before = {CHAT: around(0.9, 900), CODE: around(0.5, 100)}
    now = {CHAT: around(0.9, 100), CODE: around(0.5, 900)}
    found = change_of(now, before)
    assert found is not None
    assert found.value == pytest.approx(0)
    assert verdict(now, before) == ("holding", "change")


def test_one_of_several_routes_below_its_bound_is_a_fall() -> None:
    now = {CHAT: around(0.9, 400), CODE: around(0.5, 400)}
    found = assess(now, now, {CHAT: 0.8, CODE: 0.6}.__getitem__, switched_off=False)
    assert (found.verdict, found.reason, found.bound) == ("falling", "below_bound", None)


def test_a_few_equal_grades_are_not_certain() -> None:
    found = sums(*[1.0] * MIN_SAMPLES).estimate()
    assert found is not None
    assert found.low is not None
    assert found.low < 0.9
    assert found.high == 1


def test_the_interval_of_the_change_covers_the_true_change_as_often_as_it_says() -> None:
    dice, covered, rounds = random.Random(11), 0, 400

    def drawn(mean: float, count: int) -> AgreementSums:
        return sums(*(float(dice.random() < mean) for _ in range(count)))

    for _ in range(rounds):
        found = change_of({CHAT: drawn(0.7, 60)}, {CHAT: drawn(0.8, 40)})
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= -0.1 <= found.high
    assert covered / rounds > 0.92
