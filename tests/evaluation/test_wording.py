"""Number formats."""

from __future__ import annotations

from decimal import Decimal

import pytest

from gateway.evaluation.reporting import wording as w
from gateway.evaluation.reporting.comparison import ShareInterval
from gateway.evaluation.statistics import Interval


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "0"),
        ("0.00001234567", "0.00001235"),
        ("0.1", "0.1000"),
        ("-0.25", "\u22120.2500"),
        ("12.5", "12.50"),
        ("123456.789", "123,456.79"),
        ("1E-7", "0.0000001000"),
    ],
)
def test_money_has_four_figures_that_matter(amount: str, text: str) -> None:
    assert w.usd(Decimal(amount)) == text


@pytest.mark.parametrize(
    ("amount", "text"), [("1E-7", "0.0000001"), ("0.0003000", "0.0003"), ("1E+2", "100"), ("0", "0")]
)
def test_money_for_machines_is_whole(amount: str, text: str) -> None:
    assert w.plain(Decimal(amount)) == text


@pytest.mark.parametrize(
    ("p", "text"), [(None, "-"), (0.00004, "< 0.001"), (0.0214, "0.021"), (0.4567, "0.46"), (1.0, "1.00")]
)
def test_ps_have_two_figures_that_matter(p: float | None, text: str) -> None:
    assert w.p(p) == text


def test_shares_and_differences() -> None:
    assert w.percent(0.5167) == "51.7\u00a0%"
    assert w.points(-0.05) == "\u22125.0"
    assert w.points(0.1) == "+10.0"
    assert w.percents(Interval(0.1, 0.25)) == "10.0 to 25.0"
    assert w.part(ShareInterval(0.95, Interval(0.9, 1.0))) == "95.0\u00a0% (90.0 to 100.0)"
    assert w.part(ShareInterval(0.95, None)) == "95.0\u00a0%"
    assert w.counted({"b": 2, "a": 2, "c": 5}) == "c 5, a 2, b 2"
