"""GET /reconciliation: the hourly cost of engines, compared with the charges of requests, by day.

Requests are charged at token rates. An engine that is paid by the hour also costs money while it is idle. The
difference is reported, and never distributed over requests.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.admin.bodies import only_query
from gateway.admin.replies import day_shown, json_reply, needs_redis
from gateway.api.keys import REDIS, USAGE, USAGE_DATABASE
from gateway.errors import InvalidRequest
from gateway.pricing import dollars, quantized
from gateway.usage.sums import Period
from gateway.usage.uptime import DAY_S, MINUTES_A_DAY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiohttp import web

    from gateway.usage.uptime import EngineUptime

_MAX_DAYS = 92


@needs_redis
async def reconciliation(request: web.Request) -> web.Response:
    """GET /reconciliation: one `day`, or the days from `since` to `until`, in UTC. The default is today."""
    only_query(request, "day", "since", "until")
    now, database = request.app[REDIS].now(), request.app[USAGE_DATABASE]
    starts = _selected_days(request, now, request.app[USAGE].retention.day)
    sums = await database.totals([Period("day", start) for start in starts])
    uptimes = await database.uptime(starts)
    days: list[dict[str, Any]] = []
    every: list[EngineDay] = []
    for (period, row), of_day in zip(sums, uptimes, strict=True):
        complete, engines = reconciled_day(period.start, now, row.engines, of_day)
        views = [engine_view(one) for one in engines]
        days.append({"day": day_shown(period.start), "complete": complete, "engines": views, "total": totals(engines)})
        every += engines
    since, until = day_shown(starts[0]), day_shown(starts[-1])
    return json_reply(
        {"object": "reconciliation", "since": since, "until": until, "days": days, "total": totals(every)}
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
        raise InvalidRequest(
            f"'{first}': must not be before {day_shown(oldest)}, the first day that is kept.", param=first
        )
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
        raise InvalidRequest(f"'{name}': is in the future; today is {day_shown(today)} in UTC.", param=name)
    return start


class EngineDay(NamedTuple):
    """An engine on one day: its charges in receipts, and its uptime if it is paid by the hour."""

    engine: str
    charged_usd: Decimal
    uptime: EngineUptime | None
    elapsed_minutes: int
    """Minutes of the day that have begun."""

    @property
    def wall_usd(self) -> Decimal | None:
        """Return the cost of the minutes in which the engine was up, or None if it is not paid by the hour."""
        if self.uptime is None:
            return None
        return quantized(self.uptime.hourly_usd * self.uptime.up_minutes / 60)


def reconciled_day(
    start: int, now: float, charged_pico: Mapping[str, int], uptimes: Mapping[str, EngineUptime]
) -> tuple[bool, list[EngineDay]]:
    """Return whether the day that starts at `start` is over, and its engines. Times are in Unix seconds."""
    # The current minute counts, because an engine may have been checked in it.
    elapsed = min(MINUTES_A_DAY, int(now - start) // 60 + 1)
    names = sorted(charged_pico.keys() | uptimes.keys())
    engines = [EngineDay(name, dollars(charged_pico.get(name, 0)), uptimes.get(name), elapsed) for name in names]
    return now >= start + DAY_S, engines


def engine_view(day: EngineDay) -> dict[str, Any]:
    """Return the JSON of the admin API. Money is text."""
    usd_per_hour = minutes = None
    if day.uptime is not None:
        up, seen, usd_per_hour = day.uptime.up_minutes, day.uptime.seen_minutes, _text(day.uptime.hourly_usd)
        minutes = {"up": up, "down": max(0, seen - up), "unseen": max(0, day.elapsed_minutes - seen)}
    sides = _sides(day.wall_usd, day.charged_usd)
    return {"engine": day.engine, "usd_per_hour": usd_per_hour, "minutes": minutes} | sides


def totals(entries: Sequence[EngineDay]) -> dict[str, Any]:
    """Return totals: both sides of engines paid by the hour, and the charges of other engines."""
    hourly = [entry for entry in entries if entry.wall_usd is not None]
    wall = sum((entry.wall_usd for entry in hourly if entry.wall_usd is not None), Decimal(0))
    charged = sum((entry.charged_usd for entry in entries), Decimal(0))
    by_hour = sum((entry.charged_usd for entry in hourly), Decimal(0))
    return {"by_hour": _sides(wall, by_hour), "by_token_usd": _text(charged - by_hour), "charged_usd": _text(charged)}


def _sides(wall_usd: Decimal | None, charged_usd: Decimal) -> dict[str, Any]:
    return {
        "wall_usd": None if wall_usd is None else _text(wall_usd),
        "charged_usd": _text(charged_usd),
        "difference_usd": None if wall_usd is None else _text(wall_usd - charged_usd),
        "utilization": round(float(charged_usd / wall_usd), 4) if wall_usd else None,
    }


def _text(amount: Decimal) -> str:
    return f"{amount.normalize():f}" if amount else "0"
