"""GET /reconciliation: the hourly cost of engines, compared with the charges of requests."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from gateway.admin.bodies import only_query
from gateway.admin.replies import json_reply, needs_redis
from gateway.api.keys import SUMS, UPTIME
from gateway.errors import InvalidRequest
from gateway.usage.reconcile import engine_view, reconciled_day, totals
from gateway.usage.sums import Period
from gateway.usage.uptime import DAY_S

if TYPE_CHECKING:
    from aiohttp import web

_MAX_DAYS = 92


@needs_redis
async def reconciliation(request: web.Request) -> web.Response:
    """GET /reconciliation: one `day`, or the days from `since` to `until`, in UTC. The default is today."""
    only_query(request, "day", "since", "until")
    uptime = request.app[UPTIME]
    now = uptime.clock()
    starts = _selected_days(request, now, uptime.kept_s)
    sums = await request.app[SUMS].totals([Period("day", start) for start in starts])
    uptimes = await uptime.read(starts)
    days = [
        reconciled_day(period.start, now, row.engines, of_day)
        for (period, row), of_day in zip(sums, uptimes, strict=True)
    ]
    return json_reply(
        {
            "object": "reconciliation",
            "since": _name(starts[0]),
            "until": _name(starts[-1]),
            "days": [
                {
                    "day": _name(day.start),
                    "complete": day.complete,
                    "engines": [engine_view(one) for one in day.engines],
                    "total": totals([day]),
                }
                for day in days
            ],
            "total": totals(days),
        }
    )


def _selected_days(request: web.Request, now: float, kept_s: float) -> list[int]:
    """Return the start of each selected day, in Unix seconds. Raises InvalidRequest."""
    today = int(now) // DAY_S * DAY_S
    query = request.query
    if "day" in query and ("since" in query or "until" in query):
        raise InvalidRequest("'day': cannot be combined with 'since' or 'until'. Send one or the other.", param="day")
    first = "day" if "day" in query else "since"
    until = _day(request, "day" if "day" in query else "until", today, today)
    since = _day(request, first, today, until)
    oldest = today - int(kept_s) // DAY_S * DAY_S
    if since < oldest:
        raise InvalidRequest(f"'{first}': must not be before {_name(oldest)}, the first day that is kept.", param=first)
    if since > until:
        raise InvalidRequest("'since': must not be after 'until'.", param="since")
    if until - since >= _MAX_DAYS * DAY_S:
        raise InvalidRequest(f"'since': the range has more than {_MAX_DAYS} days. Send a shorter range.", param="since")
    return list(range(since, until + 1, DAY_S))


def _day(request: web.Request, name: str, today: int, default: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if re.fullmatch(r"[1-9][0-9]{0,3}d", text) and name == "since":
        return today - (int(text[:-1]) - 1) * DAY_S
    try:
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII):
            raise ValueError(text)
        start = int(datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC).timestamp())
    except ValueError:
        more = ", or a number of days, like 7d" if name == "since" else ""
        raise InvalidRequest(f"'{name}': expected a day of UTC like 2026-12-01{more}.", param=name) from None
    if start > today:
        raise InvalidRequest(f"'{name}': is in the future; today is {_name(today)} in UTC.", param=name)
    return start


def _name(start: int) -> str:
    return f"{datetime.fromtimestamp(start, UTC):%Y-%m-%d}"
