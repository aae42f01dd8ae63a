"""GET /reconciliation: what engines cost by the hour, against what requests were charged for them."""

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

_MOST_DAYS = 92


@needs_redis
async def reconciliation(request: web.Request) -> web.Response:
    """GET /reconciliation: of `day`, or from `since` to `until`, in days of UTC; without any, of today."""
    only_query(request, "day", "since", "until")
    uptime = request.app[UPTIME]
    now = uptime.clock()
    starts = _asked(request, now, uptime.kept_s)
    sums = await request.app[SUMS].totals([Period("day", start) for start in starts])
    watched = await uptime.read(starts)
    days = [
        reconciled_day(period.start, now, row.engines, of_day)
        for (period, row), of_day in zip(sums, watched, strict=True)
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


def _asked(request: web.Request, now: float, kept_s: float) -> list[int]:
    """The days that are asked for, in Unix seconds of their beginnings. Raises InvalidRequest."""
    today = int(now) // DAY_S * DAY_S
    query = request.query
    if "day" in query and ("since" in query or "until" in query):
        raise InvalidRequest("'day': is a range of its own: leave it out, or 'since' and 'until'.", param="day")
    first = "day" if "day" in query else "since"
    until = _day(request, "day" if "day" in query else "until", today, today)
    since = _day(request, first, today, until)
    oldest = today - int(kept_s) // DAY_S * DAY_S
    if since < oldest:
        raise InvalidRequest(f"'{first}': days are kept from {_name(oldest)} on.", param=first)
    if since > until:
        raise InvalidRequest("'since': must not lie after 'until'.", param="since")
    if until - since >= _MOST_DAYS * DAY_S:
        raise InvalidRequest(f"'since': asks for more than {_MOST_DAYS} days: ask for fewer at a time.", param="since")
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
        more = ", or how many days, like 7d" if name == "since" else ""
        raise InvalidRequest(f"'{name}': expected a day of UTC like 2026-12-01{more}.", param=name) from None
    if start > today:
        raise InvalidRequest(f"'{name}': lies in the future; today is {_name(today)} in UTC.", param=name)
    return start


def _name(start: int) -> str:
    return f"{datetime.fromtimestamp(start, UTC):%Y-%m-%d}"
