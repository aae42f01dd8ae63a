"""The period and the filters that the routes of the dashboard have in common, and the period to compare with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.admin.bodies import only_query
from gateway.admin.replies import time_shown
from gateway.errors import InvalidRequest
from gateway.usage.span import RequestedRange, UsageSpan, requested_range, span
from gateway.usage.usage import UsageQuery, UsageResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from gateway.usage.reader import UsageReader
    from gateway.usage.rollup import SumRow
    from gateway.usage.sums import Retention

FILTERS = ("tenant", "route", "key")


class ReportPeriod(NamedTuple):
    """A range of time in Unix seconds, and the sums that cover it.

    `month` is the calendar month, like 2026-11, if the range is the whole month or its part until now, the time `now`.
    """

    since: float
    until: float
    sums: UsageSpan
    now: float
    month: str | None = None

    @property
    def seconds(self) -> float:
        """Return the time that the sums cover, without the future."""
        return max(1.0, min(self.now, self.sums.until) - self.sums.since)

    def shown(self) -> dict[str, Any]:
        """Return the range of the sums for a reply."""
        return {
            "since": time_shown(self.sums.since),
            "until": time_shown(self.sums.until),
            "seconds": round(self.seconds),
        }


def filters_of(request: web.Request, *more: str) -> dict[str, str]:
    """Return the filters of the query, without empty ones. `more` are parameters that the handler reads itself.

    Raises InvalidRequest if the query has an unknown parameter.
    """
    only_query(request, "since", "until", *FILTERS, *more)
    return {name: value for name in FILTERS if (value := request.query.get(name))}


def period_of(request: web.Request, retention: Retention, now: float, *, since: str) -> ReportPeriod:
    """Return the period of the query. `since` is its default. Raises InvalidRequest."""
    query = request.query
    requested = requested_range(query.get("since") or since, query.get("until", ""), now)
    first = datetime.fromtimestamp(requested.since, UTC)
    is_month = first == _month_of(first) and requested.until == min(now, _next_month(first).timestamp())
    month = f"{first:%Y-%m}" if is_month else None
    return ReportPeriod(*requested, span(requested, None, retention, now), now, month)


def previous_of(period: ReportPeriod, retention: Retention, now: float) -> ReportPeriod | None:
    """Return the period of equal length before; for a month the same part of the month before.

    None: its sums have expired.
    """
    until = period.sums.since
    since = until - period.seconds
    if period.month is not None:
        first = datetime.fromtimestamp(period.since, UTC)
        since = _month_of(first - timedelta(days=1)).timestamp()
        whole = period.until >= _next_month(first).timestamp()
        until = until if whole else min(until, round(since + period.seconds))
    requested = RequestedRange(since, until)
    try:
        return ReportPeriod(*requested, span(requested, None, retention, now), now)
    except InvalidRequest:
        return None


async def total_of(reader: UsageReader, sums: UsageSpan, only: Mapping[str, str]) -> SumRow:
    """Return the sum over a period with these filters. Raises the errors of `UsageReader.read`."""
    return await reader.read(UsageQuery(sums, None, (), only), UsageResult.total)


def _month_of(moment: datetime) -> datetime:
    """Return the start of the month."""
    return moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _next_month(first: datetime) -> datetime:
    return _month_of(first + timedelta(days=31))
