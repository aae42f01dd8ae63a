"""GET /quality: agreement of guided and of student-only answers with the teacher, by route and length."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

from aiohttp import web

from gateway.admin.bodies import number_of
from gateway.admin.guidance import GUIDANCE, shown_switches
from gateway.admin.period import filters_of
from gateway.admin.replies import day_shown, json_reply, needs_redis
from gateway.api.keys import USAGE_DATABASE
from gateway.errors import InvalidRequest
from gateway.quality.book import DAY_S, KEPT_DAYS, ComparisonScope, QualityStore
from gateway.quality.comparison import LENGTHS, QualityTally
from gateway.usage.span import requested_range

if TYPE_CHECKING:
    from collections.abc import Mapping

QUALITY = web.AppKey("quality", QualityStore)
ALL = "all"
"""The `length` of a row that sums all lengths."""
_DAYS = 7
_ORDER = (*map(str, LENGTHS), "more", ALL)
_DIGITS = 6


@needs_redis
async def show_quality(request: web.Request) -> web.Response:
    """GET /quality: the last `days` days in UTC, including today, or the days of a range; 7 days by default."""
    only = filters_of(request, "days")
    book = request.app[QUALITY]
    await request.app[GUIDANCE].try_to_catch_up()
    today = book.today()
    since, until = _days(request, today)
    scope = only.get("tenant"), only.get("route")
    tallies = await request.app[USAGE_DATABASE].comparisons(since // DAY_S, until // DAY_S, *scope)
    spent = await book.spent_today()
    return json_reply(
        {
            "object": "quality",
            "since": day_shown(since),
            "until": day_shown(until),
            "rows": [_row(compared, tally) for compared, tally in _with_sums(tallies)],
            "guidance_off": shown_switches(request.app[GUIDANCE].switches.off),
            "spent_today": [
                {"tenant": tenant, "route": route, "usd": f"{usd:f}"} for (tenant, route), usd in sorted(spent.items())
            ],
        }
    )


def _days(request: web.Request, today: int) -> tuple[int, int]:
    """Return the starts of the first and the last day. Raises InvalidRequest."""
    query = request.query
    if not (query.get("since") or query.get("until")):
        return today - (number_of(request, "days", default=_DAYS, maximum=KEPT_DAYS - 1) - 1) * DAY_S, today
    if "days" in query:
        raise InvalidRequest("'days': cannot be combined with 'since' or 'until'. Send one or the other.", param="days")
    requested = requested_range(query.get("since") or f"{_DAYS}d", query.get("until", ""), today + DAY_S - 1)
    return int(requested.since) // DAY_S * DAY_S, (ceil(requested.until) - 1) // DAY_S * DAY_S


def _with_sums(tallies: Mapping[ComparisonScope, QualityTally]) -> list[tuple[ComparisonScope, QualityTally]]:
    """Return the rows sorted by route and length, each route's rows followed by their sum."""
    found = dict(tallies)
    for compared, tally in tallies.items():
        whole = compared._replace(length=ALL)
        found[whole] = found.get(whole, QualityTally()) + tally
    return sorted(found.items(), key=lambda one: _sort_key(one[0]))


def _sort_key(scope: ComparisonScope) -> tuple[str, str, str, int]:
    position = _ORDER.index(scope.length) if scope.length in _ORDER else len(_ORDER)
    return scope.tenant, scope.route, scope.compare, position


def _row(compared: ComparisonScope, tally: QualityTally) -> dict[str, Any]:
    low, high = tally.interval() or (None, None)
    return {
        **compared._asdict(),
        "samples": tally.samples,
        "guided_teacher": _rounded(tally.mean(tally.guided)),
        "student_teacher": _rounded(tally.mean(tally.student)),
        "difference": _rounded(tally.mean(tally.difference)),
        "low": _rounded(low),
        "high": _rounded(high),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
