"""Number formats of tables, captions and alternative texts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from gateway.evaluation.reporting.comparison import ShareInterval
    from gateway.evaluation.statistics import Interval

    Plain = Mapping[str, Any]

NONE = "-"
PERCENT = "\u00a0%"
"""Percent sign after a no-break space."""
_MINUS = "\u2212"


def unbroken(text: str) -> str:
    """Replace spaces before a percent sign with no-break spaces."""
    return text.replace(" %", PERCENT)


def percent(share: float | None) -> str:
    return NONE if share is None else f"{_number(share)}{PERCENT}"


def percents(interval: Interval | None) -> str:
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
    return usd(amount * 1000)


def plain(amount: Decimal) -> str:
    """Format USD with all digits and without an exponent, for machines."""
    return f"{amount.normalize():f}" if amount else "0"


def seconds(spent: float | None) -> str:
    """Format seconds with three significant digits."""
    if spent is None:
        return NONE
    return f"{spent:,.0f}" if spent >= 100 else f"{spent:.1f}" if spent >= 10 else f"{spent:.2f}"


def times(factor: float | None) -> str:
    return NONE if factor is None else f"{factor:.2f}\u00d7"


def mean(total: float, n: int) -> str:
    return f"{total / n:,.1f}"


def counted(counts: Mapping[str, int]) -> str:
    """Format counts, the largest first."""
    found = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{name} {count:,}" for name, count in found) or "0"


def _number(share: float) -> str:
    return _sign(f"{share * 100:.1f}")


def _sign(text: str) -> str:
    return text.replace("-", _MINUS)


def label(setting: Plain, others: Sequence[Plain]) -> str:
    """Return a label that is unique among `others`, settings as dicts, without parameters that never differ."""
    return ", ".join([answered_by(setting, others), *_request_parts(setting, others)])


def answered_by(setting: Plain, others: Sequence[Plain]) -> str:
    """Return the models and the guidance, without the request form."""
    if setting["mode"] != "guided":
        return f"{setting['mode']} alone"
    return f"{line(setting, others)}, m={setting['tokens']}"


def without_exemplars(label: str) -> str:
    """Return the label of a setting without its number of exemplars."""
    return re.sub(r" with \d+ exemplars?", "", label)


def line(setting: Plain, others: Sequence[Plain]) -> str:
    """Return the kind of guidance without its length, as joined by a line of a figure."""
    guided = [one for one in others if one["mode"] == "guided"]
    words = [setting["projection"]]
    if (count := setting.get("exemplar_count")) is not None:
        words.append(f"with {count} exemplar{'' if count == 1 else 's'}")
    if _differ("placement", guided):
        words.append(f"as {setting['placement']}")
    if _differ("boundary", guided):
        words.append(f"cut at a {setting['boundary']}")
    return " ".join(words)


def request_in_words(setting: Plain) -> str:
    """Return the request form: format, exemplars, limit, sampling."""
    return ", ".join(_request_parts(setting, None))


def _request_parts(setting: Plain, others: Sequence[Plain] | None) -> list[str]:
    words = {
        "form": "raw prompt" if setting["form"] == "completion" else "chat",
        "shots": f"{setting['shots'] or 'no'} exemplars",
        "max_tokens": f"at most {setting['max_tokens']} tokens",
        "temperature": f"temperature {setting['temperature']:g}" if setting["temperature"] else "greedy",
        "top_p": None if setting.get("top_p") is None else f"top_p {setting['top_p']:g}",
        "seed": None if setting.get("seed") is None else f"seed {setting['seed']}",
    }
    return [text for name, text in words.items() if text and (others is None or _differ(name, others))]


def _differ(name: str, others: Sequence[Plain]) -> bool:
    return len({one.get(name) for one in others}) > 1
