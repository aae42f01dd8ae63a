"""The periods of the calendar, in UTC, as exchange.lua counts them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
_SHIFT_S = {"h": 0, "d": 0, "w": 3 * 86_400}  # 1970 began on a Thursday, weeks on a Monday


def period_id(unit: str, count: int, now_s: int) -> str:
    """The name of the period in which `now_s` lies, in Unix seconds: what a budget's hash says of its spending."""
    return f"{unit}{count}:{_passed(unit, now_s) // count}"


def period_end(unit: str, count: int, now_s: int) -> int:
    """When the period ends in which `now_s` lies, in Unix seconds."""
    following = (_passed(unit, now_s) // count + 1) * count
    if unit == "mo":
        return int(datetime(following // 12, following % 12 + 1, 1, tzinfo=UTC).timestamp())
    return following * _SECONDS[unit] - _SHIFT_S[unit]


def _passed(unit: str, now_s: int) -> int:
    """How many whole units are past."""
    if unit == "mo":
        now = datetime.fromtimestamp(now_s, UTC)
        return now.year * 12 + now.month - 1
    return (now_s + _SHIFT_S[unit]) // _SECONDS[unit]
