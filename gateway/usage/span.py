"""Parse the time range of a usage query, and find the sums that cover it. Pure. All times are UTC.

Coarser sums are retained longer. So a range is extended to whole periods that are still retained, and the response
contains the resulting range. Whole days and hours cover the middle of a long range, and finer periods its ends.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from gateway.config.scalars import duration_s, duration_text
from gateway.config.yaml_messages import suggestion
from gateway.errors import InvalidRequest
from gateway.usage.sums import SECONDS, Period

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.usage.sums import Granularity, Retention

GRANULARITIES: tuple[Granularity, ...] = ("minute", "hour", "day")
"""From the finest to the coarsest."""
TIMES = (
    "a time before now like 24h or 7d, a date like 2026-11-01, a time like 2026-11-01T12:00:00Z, or one of today, "
    "yesterday, this_month, last_month"
)
"""Description of accepted times, for error messages."""

# Rows that expire within this time are not used.
_MARGIN_S = 2.0
_WORDS = ("now", "today", "yesterday", "this_month", "last_month")


class RequestedRange(NamedTuple):
    """The range of a request: [since, until) in Unix seconds."""

    since: float
    until: float


class UsageSpan(NamedTuple):
    """The range of a response, [since, until) in whole Unix seconds, and the periods that cover it."""

    since: int
    until: int
    periods: list[Period]


def requested_range(since: str, until: str, now: float) -> RequestedRange:
    """Parse both ends of a range. `now` is Unix seconds.

    An empty `until` means now. A date or a word such as `yesterday` stands for its whole period: `since` is the start,
    and `until` the end. A start before the Unix epoch becomes the epoch. Raises InvalidRequest with the name of the
    invalid parameter.
    """
    start = max(0.0, _bounds(since, "since", now)[0])
    end = _bounds(until, "until", now)[1] if until else now
    if start > now:
        raise InvalidRequest(f"'since' is in the future: it is {rfc3339(now)} now.", param="since")
    if start >= end:
        raise InvalidRequest(
            f"'since' ({rfc3339(start)}) must be before 'until' ({rfc3339(end)}). Exchange them, or omit 'until': "
            "the default is now.",
            param="since",
        )
    return RequestedRange(start, min(end, now))


def span(requested: RequestedRange, granularity: Granularity | None, retention: Retention, now: float) -> UsageSpan:
    """Return the periods to add up, all of one granularity if it is given. `now` is Unix seconds.

    Raises InvalidRequest if sums that old have expired.
    """
    retained = _RetainedSums(retention, now)
    allowed: tuple[Granularity, ...] = GRANULARITIES if granularity is None else (granularity,)
    if not retained.reach(requested.since, allowed):
        raise retained.expired_error(requested.since, granularity)
    # No receipt is later than now, so current periods can be used whole.
    open_end = requested.until >= now
    since = start = retained.floor(requested.since, allowed)
    periods = []
    while start < requested.until:
        period = retained.widest(start, math.inf if open_end else requested.until, allowed)
        periods.append(period)
        start += SECONDS[period.granularity]
    if not periods:  # the whole range is about to expire
        raise retained.expired_error(requested.since, granularity)
    shortest_s = SECONDS[allowed[0]]
    return UsageSpan(since, math.ceil(now / shortest_s) * shortest_s if open_end else start, periods)


class _RetainedSums:
    """The periods whose sums have not expired."""

    def __init__(self, retention: Retention, now: float) -> None:
        self._retention = retention
        self._now = now

    def reach(self, since: float, allowed: Sequence[Granularity]) -> bool:
        """Return whether they go back to `since`, except for a part of one period."""
        return any(since >= self._now - self._retention.of(length) - SECONDS[length] for length in allowed)

    def expired_error(self, since: float, granularity: Granularity | None) -> InvalidRequest:
        """Return the error for a range that begins before the retained sums."""
        retention = ", ".join(f"by the {name} for {duration_text(self._retention.of(name))}" for name in GRANULARITIES)
        finest = next((name for name in GRANULARITIES if since >= self._now - self._retention.of(name)), None)
        if finest is None:
            oldest = rfc3339(self._now - max(self._retention.of(name) for name in GRANULARITIES))
            fix = f"set since to {oldest} or later"
        else:
            oldest = rfc3339(self._now - self._retention.of(granularity or finest))
            fix = f"set granularity={finest}, or set since to {oldest} or later"
        return InvalidRequest(
            f"'since' ({rfc3339(since)}) is older than the retained usage. Usage is kept {retention}: {fix}.",
            param="since",
        )

    def floor(self, since: float, allowed: Sequence[Granularity]) -> int:
        """Return the start of the shortest retained period that contains `since`, or of the next period."""
        for granularity in allowed:
            period = Period.of(granularity, since)
            if self._is_retained(period):
                return period.start
        longest = max(allowed, key=self._retention.of)
        return Period.of(longest, since).start + SECONDS[longest]

    def widest(self, start: int, until: float, allowed: Sequence[Granularity]) -> Period:
        """Return the longest retained period from `start` that ends by `until`; if none fits, the shortest."""
        aligned = [Period(name, start) for name in allowed if start % SECONDS[name] == 0]
        retained = [period for period in aligned if self._is_retained(period)] or aligned
        fitting = [period for period in retained if start + SECONDS[period.granularity] <= until]
        return fitting[-1] if fitting else retained[0]

    def _is_retained(self, period: Period) -> bool:
        return self._retention.expires(period.granularity, period.start) > self._now + _MARGIN_S


def _bounds(text: str, name: str, now: float) -> tuple[float, float]:
    """Return the start and the end of a date or word in Unix seconds; for a time, both are equal."""
    today = datetime.fromtimestamp(now, UTC).date()
    try:
        if text in _WORDS:
            return _word_bounds(text, today, now)
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
            day = date.fromisoformat(text)
            return _midnight(day), _midnight(day + timedelta(days=1))
        if text[:4].isdigit() and "-" in text:
            # In a query string, an unescaped plus arrives as a space.
            parsed = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
            moment = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
        else:
            moment = now - duration_s(text)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"'{name}' must be {TIMES}.{suggestion(text, _WORDS)}", param=name) from None
    return moment, moment


def _word_bounds(word: str, today: date, now: float) -> tuple[float, float]:
    if word == "now":
        return now, now
    if word in {"today", "yesterday"}:
        day = today if word == "today" else today - timedelta(days=1)
        return _midnight(day), _midnight(day + timedelta(days=1))
    first = today.replace(day=1)
    if word == "last_month":
        return _midnight((first - timedelta(days=1)).replace(day=1)), _midnight(first)
    return _midnight(first), _midnight((first + timedelta(days=31)).replace(day=1))


def _midnight(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()


def rfc3339(unix_s: float) -> str:
    """Return a time in RFC 3339, in seconds. Times before the Unix epoch become the epoch."""
    if unix_s <= 0:
        return "1970-01-01T00:00:00Z"
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
