"""Calendar periods in UTC, computed as in exchange.lua. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
_SHIFT_S = {"h": 0, "d": 0, "w": 3 * 86_400}  # 1970 began on a Thursday, and weeks begin on Monday


def period_id(unit: str, count: int, now_s: int) -> str:
    """Return the id of the period that contains `now_s` (Unix seconds), as stored in a budget's hash."""
    return f"{unit}{count}:{_units_since_epoch(unit, now_s) // count}"


def period_end(unit: str, count: int, now_s: int) -> int:
    """Return the end of the period that contains `now_s`, in Unix seconds."""
    following = (_units_since_epoch(unit, now_s) // count + 1) * count
    if unit == "mo":
        return int(datetime(following // 12, following % 12 + 1, 1, tzinfo=UTC).timestamp())
    return following * _SECONDS[unit] - _SHIFT_S[unit]


def _units_since_epoch(unit: str, now_s: int) -> int:
    """Return the number of whole units since 1970."""
    if unit == "mo":
        now = datetime.fromtimestamp(now_s, UTC)
        return now.year * 12 + now.month - 1
    return (now_s + _SHIFT_S[unit]) // _SECONDS[unit]
