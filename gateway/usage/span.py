"""Read the range of a question about usage, and find the sums that cover it. Pure: told the time. UTC throughout.

Rows are kept the longer the coarser they are. So a range is widened to whole periods of rows that are still kept, and
who asked is told what it came to. A long one is covered by whole days and hours, and by finer rows at its edges.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from gateway.config.scalars import duration_s
from gateway.config.yaml_messages import nearest
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
"""What may be said for a range's ends."""

# A row that is about to go is not counted on.
_MARGIN_S = 2.0
_UNITS = {86_400: "d", 3600: "h", 60: "m", 1: "s"}
_WORDS = ("now", "today", "yesterday", "this_month", "last_month")


class RequestedRange(NamedTuple):
    """A range as it was asked for, in Unix seconds: from `since` to before `until`."""

    since: float
    until: float


class UsageSpan(NamedTuple):
    """What a question covers: [since, until) in whole Unix seconds, and the rows that add up to it."""

    since: int
    until: int
    periods: list[Period]


def requested_range(since: str, until: str, now: float) -> RequestedRange:
    """Read both ends; an empty `until` is now. A date lasts its whole day, a word for a time all of that.

    Raises InvalidRequest, which names the end that is wrong.
    """
    start = _moment(since, "since", now)[0]
    end = _moment(until, "until", now)[1] if until else now
    if start > now:
        raise InvalidRequest(f"'since' lies in the future: it is {rfc3339(now)} now.", param="since")
    if start >= end:
        raise InvalidRequest(
            f"'since' ({rfc3339(start)}) must be before 'until' ({rfc3339(end)}). Exchange them, or omit 'until': "
            "the default is now.",
            param="since",
        )
    return RequestedRange(start, min(end, now))


def span(asked: RequestedRange, granularity: Granularity | None, retention: Retention, now: float) -> UsageSpan:
    """Which rows to add up; with a granularity, rows of that alone. Raises InvalidRequest where they are not kept."""
    kept = _Kept(retention, now)
    among: tuple[Granularity, ...] = GRANULARITIES if granularity is None else (granularity,)
    if not kept.reach(asked.since, among):
        raise kept.refusal(asked.since, granularity)
    # Nothing is later than now, so periods that have begun may be taken whole.
    open_end = asked.until >= now
    since = start = kept.floor(asked.since, among)
    found = []
    while start < asked.until:
        one = kept.widest(start, math.inf if open_end else asked.until, among)
        found.append(one)
        start += SECONDS[one.granularity]
    if not found:  # all of it is about to be forgotten
        raise kept.refusal(asked.since, granularity)
    return UsageSpan(since, _ceiling(now, SECONDS[among[0]]) if open_end else start, found)


class _Kept:
    """Which rows are still there."""

    def __init__(self, retention: Retention, now: float) -> None:
        self._retention = retention
        self._now = now

    def reach(self, since: float, among: Sequence[Granularity]) -> bool:
        """Whether they go back so far, or but for the part of one period."""
        return any(since >= self._now - self._retention.of(one) - SECONDS[one] for one in among)

    def refusal(self, since: float, granularity: Granularity | None) -> InvalidRequest:
        """What to say of a range that they do not reach: what is kept."""
        kept = ", ".join(f"by the {one} for {duration_text(self._retention.of(one))}" for one in GRANULARITIES)
        finest = next((one for one in GRANULARITIES if since >= self._now - self._retention.of(one)), None)
        if finest is None:
            oldest = rfc3339(self._now - max(self._retention.of(one) for one in GRANULARITIES))
            fix = f"ask since {oldest} at the earliest"
        else:
            oldest = rfc3339(self._now - self._retention.of(granularity or finest))
            fix = f"ask with granularity={finest}, or since {oldest} at the earliest"
        return InvalidRequest(
            f"'since' ({rfc3339(since)}) is older than what is kept. Usage is kept {kept}: {fix}.", param="since"
        )

    def floor(self, since: float, among: Sequence[Granularity]) -> int:
        """The beginning of the shortest period that is kept and in which a range begins; or of the next one."""
        for granularity in among:
            one = Period.of(granularity, since)
            if self._has(one):
                return one.start
        longest = max(among, key=self._retention.of)
        return Period.of(longest, since).start + SECONDS[longest]

    def widest(self, start: int, until: float, among: Sequence[Granularity]) -> Period:
        """The longest period that begins there and does not go beyond; where none does, the shortest that is kept."""
        begun = [Period(one, start) for one in among if start % SECONDS[one] == 0]
        kept = [one for one in begun if self._has(one)] or begun
        fit = [one for one in kept if start + SECONDS[one.granularity] <= until]
        return fit[-1] if fit else kept[0]

    def _has(self, one: Period) -> bool:
        return self._retention.ends(one.granularity, one.start) > self._now + _MARGIN_S


def duration_text(seconds: float) -> str:
    """A duration as settings say it: 400d, 36h, 90s."""
    unit_s = next((one for one in _UNITS if seconds >= one and seconds % one == 0), 1)
    return f"{seconds / unit_s:g}{_UNITS[unit_s]}"


def _moment(text: str, name: str, now: float) -> tuple[float, float]:
    """When what was said begins, and when it is over: for a time both are the same."""
    today = datetime.fromtimestamp(now, UTC).date()
    try:
        if text in _WORDS:
            return _word(text, today, now)
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
            day = date.fromisoformat(text)
            return _midnight(day), _midnight(day + timedelta(days=1))
        if text[:4].isdigit() and "-" in text:
            # In a query, a plus that was not written as %2B comes as a blank.
            moment = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
            at = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
            return at, at
        ago = now - duration_s(text)
    except (ValueError, OverflowError):
        close = nearest(text, _WORDS)
        hint = f" Did you mean '{close}'?" if close else ""
        raise InvalidRequest(f"'{name}' must be {TIMES}.{hint}", param=name) from None
    return ago, ago


def _word(word: str, today: date, now: float) -> tuple[float, float]:
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


def _ceiling(moment: float, unit_s: int) -> int:
    return math.ceil(moment / unit_s) * unit_s


def rfc3339(unix_s: float) -> str:
    """RFC 3339, to the second; of times that no calendar has, the nearest that one does."""
    if unix_s <= 0:
        return "1970-01-01T00:00:00Z"
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
