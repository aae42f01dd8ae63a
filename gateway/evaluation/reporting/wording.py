"""Number formats of tables, captions and alternative texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from gateway.evaluation.reporting.comparison import ShareInterval
    from gateway.evaluation.statistics import Interval

NONE = "-"
PERCENT = "\u00a0%"
"""Percent sign after a no-break space."""
_MINUS = "\u2212"
_THOUSAND = 1000


def unbroken(text: str) -> str:
    """Replace spaces before a percent sign with no-break spaces."""
    return text.replace(" %", PERCENT)


def percent(share: float | None) -> str:
    """Format a share as a percentage."""
    return NONE if share is None else f"{_number(share)}{PERCENT}"


def percents(interval: Interval | None) -> str:
    """Format an interval of shares as percentages."""
    return NONE if interval is None else f"{_number(interval.low)} to {_number(interval.high)}"


def points(difference: float | None) -> str:
    """Format a difference of two shares in percentage points."""
    return NONE if difference is None else _sign(f"{difference * 100:+.1f}")


def point_range(interval: Interval | None) -> str:
    """Format an interval in percentage points."""
    return NONE if interval is None else f"{points(interval.low)} to {points(interval.high)}"


def part(of: ShareInterval | None) -> str:
    """Format a share with its interval, if it has one."""
    if of is None:
        return NONE
    return percent(of.value) if of.interval is None else f"{percent(of.value)} ({percents(of.interval)})"


def p(value: float | None) -> str:
    """Format a p-value with two significant digits."""
    if value is None:
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def usd(amount: Decimal) -> str:
    """Format USD with four significant digits and without an exponent."""
    if not amount:
        return "0"
    decimals = max(2, 3 - amount.adjusted())
    return _sign(f"{amount:,.{decimals}f}")


def per_thousand(amount: Decimal) -> str:
    """Format the USD of one answer as that of 1,000 answers."""
    return usd(amount * _THOUSAND)


def plain(amount: Decimal) -> str:
    """Format USD with all digits and without an exponent, for machines."""
    return f"{amount.normalize():f}" if amount else "0"


def seconds(spent: float | None) -> str:
    """Format seconds with three significant digits."""
    if spent is None:
        return NONE
    return f"{spent:,.0f}" if spent >= 100 else f"{spent:.1f}" if spent >= 10 else f"{spent:.2f}"


def times(factor: float | None) -> str:
    """Format a speed-up."""
    return NONE if factor is None else f"{factor:.2f}\u00d7"


def mean(total: float, n: int) -> str:
    """Format a mean number of tokens."""
    return f"{total / n:,.1f}"


def counted(counts: Mapping[str, int]) -> str:
    """Format counts, the largest first."""
    found = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{name} {count:,}" for name, count in found) or "0"


def _number(share: float) -> str:
    return _sign(f"{share * 100:.1f}")


def _sign(text: str) -> str:
    return text.replace("-", _MINUS)
