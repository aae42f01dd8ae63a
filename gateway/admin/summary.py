"""GET /summary: costs, savings, the verdict on quality and present problems, for the first lines of the dashboard."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from gateway.accounting.request_log import EXPECTED_REASONS
from gateway.accounting.savings import (
    GUIDED,
    NOT_GUIDABLE,
    REPORTED,
    STUDENT_BY_POLICY,
    TEACHER_UNAVAILABLE,
    is_about_zero,
)
from gateway.admin.budgets import budget_of
from gateway.admin.engine_states import engine_states
from gateway.admin.guidance import GUIDANCE
from gateway.admin.period import filters_of, period_of, previous_of, total_of
from gateway.admin.problems import (
    RECENT_BY,
    detail_of,
    engines_in_use,
    failures_shown,
    recent_requests,
    words_of,
)
from gateway.admin.quality_trend import trend_shown
from gateway.admin.replies import json_reply, time_shown
from gateway.admin.usage import check_tenant
from gateway.api.keys import ENGINES, POLICIES, REDIS, USAGE, USAGE_DATABASE
from gateway.pricing import dollars
from gateway.usage.counters import ClassSum
from gateway.usage.rollup import SumRow
from gateway.usage.span import RequestedRange, span
from gateway.usage.usage import UsageQuery, costs_of, usd_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from gateway.admin.engine_states import SharedEngineState
    from gateway.admin.period import ReportPeriod

UNGUIDED_THRESHOLD = 0.2
"""The unguided share from which a banner warns. The alert GktGuidanceFallingBack has the same."""
_RECENT_S = 900
_MIN_RECENT = 20
_DIGITS = 6
_NO_REQUESTS = SumRow()


async def show_summary(request: web.Request) -> web.Response:
    """GET /summary: the period and the one before, for all requests or those of a tenant, route or key."""
    only, app, now = filters_of(request), request.app, request.app[REDIS].now()
    reader, database = app[USAGE], app[USAGE_DATABASE]
    period = period_of(request, reader.retention, now, since="this_month")
    before = previous_of(period, reader.retention, now)
    recent = span(RequestedRange(now - _RECENT_S, now), None, reader.retention, now)
    scope = only.get("tenant"), only.get("route")
    await app[GUIDANCE].try_to_catch_up()
    row, last, row_before, agreements, agreements_before, budget, states = await asyncio.gather(
        total_of(reader, period.sums, only),
        reader.read(UsageQuery(recent, None, RECENT_BY, only), recent_requests),
        _total_before(request, before, only),
        database.agreements(period.sums.since, period.sums.until, *scope),
        _agreements_before(request, period, before, only),
        budget_of(app, only),
        engine_states(app),
    )
    if not row.requests:
        check_tenant(request, only.get("tenant"))
    failures = await failures_shown(app, last, recent, only)
    in_use = engines_in_use(app[POLICIES].policy_set, last)
    return json_reply(
        {
            "object": "summary",
            "period": {**period.shown(), "month": period.month},
            "previous": None if before is None else before.shown(),
            "filters": only,
            "spent": {**_spent(row, period, row_before, before), "budget": budget},
            "saved": _saved(row, row_before if before is not None else None),
            "quality": trend_shown(
                app[POLICIES].policy_set, app[GUIDANCE].switches.off, only, agreements, agreements_before
            ),
            "requests": {**requests_of(row), "previous_total": row_before.caller_requests if before else None},
            "failures": failures,
            "banners": [
                *_engine_banners(app, {name: one for name, one in states.items() if name in in_use}),
                *_unguided_banner(last.total, recent.since),
            ],
        }
    )


async def _total_before(request: web.Request, before: ReportPeriod | None, only: Mapping[str, str]) -> SumRow:
    return _NO_REQUESTS if before is None else await total_of(request.app[USAGE], before.sums, only)


async def _agreements_before(
    request: web.Request, period: ReportPeriod, before: ReportPeriod | None, only: Mapping[str, str]
) -> Any:
    if before is None:
        return {}
    # The sums before may reach into the period. No sample counts in both.
    bounds = before.sums.since, min(before.sums.until, period.sums.since)
    return await request.app[USAGE_DATABASE].agreements(*bounds, only.get("tenant"), only.get("route"))


def _spent(row: SumRow, period: ReportPeriod, row_before: SumRow, before: ReportPeriod | None) -> dict[str, Any]:
    change = None
    if before is not None and row_before.cost_pico > 0:
        # Costs per second: the previous sums may cover a longer time.
        per_second = row_before.cost_pico / before.seconds
        change = round(row.cost_pico / period.seconds / per_second - 1, _DIGITS)
    return {
        "usd": usd_text(row.cost_pico),
        "previous_usd": None if before is None else usd_text(row_before.cost_pico),
        "change": change,
        **{name: usd_text(cost) for name, cost in costs_of(row).items()},
    }


def _saved(row: SumRow, before: SumRow | None) -> dict[str, Any]:
    whole = _amount(row.savings_pico, row.savings_error_pico)
    earlier = None if before is None else _amount(before.savings_pico, before.savings_error_pico)
    classes = row.classes
    guided, by_policy, reported = (classes.get(name, ClassSum()) for name in (GUIDED, STUDENT_BY_POLICY, REPORTED))
    lost = sum(classes.get(name, ClassSum()).savings_pico for name in (TEACHER_UNAVAILABLE, NOT_GUIDABLE))
    is_known = row.baseline_pico > 0 and not whole["about_zero"]
    return {
        **whole,
        "previous_usd": None if earlier is None else earlier["usd"],
        "previous_error_usd": None if earlier is None else earlier["error_usd"],
        "guided": _amount(guided.savings_pico, guided.error_pico),
        "student_by_policy": _amount(by_policy.savings_pico, by_policy.error_pico),
        "unguided_usd": usd_text(lost),
        # The gateway measured all other savings.
        "reported": _amount(reported.savings_pico, reported.error_pico),
        "measured": _amount(row.savings_pico - reported.savings_pico, row.savings_error_pico - reported.error_pico),
        "baseline_usd": usd_text(row.baseline_pico),
        "share": round(row.savings_pico / row.baseline_pico, _DIGITS) if is_known else None,
    }


def _amount(savings_pico: int, error_pico: int) -> dict[str, Any]:
    error_pico = max(0, error_pico)
    about_zero = is_about_zero(dollars(savings_pico), dollars(error_pico))
    return {"usd": usd_text(savings_pico), "error_usd": usd_text(error_pico), "about_zero": about_zero}


def requests_of(row: SumRow) -> dict[str, Any]:
    """Return the number of requests, of those with and without guidance, of failures, and of shadows."""
    total, errors = row.caller_requests, sum(row.errors.values())
    failed = sum(number for reason, number in row.unguided.items() if reason not in EXPECTED_REASONS)
    unguided = sum(row.unguided.values())
    return {
        "total": total,
        "answers": row.answers,
        "disconnected": row.disconnected,
        "shadows": row.shadows,
        "guided": row.guided,
        "unguided": unguided,
        "unguided_by_failure": failed,
        "unguided_share": share_of(failed, row.guided + unguided),
        "threshold": UNGUIDED_THRESHOLD,
        "errors": errors,
        "error_share": share_of(errors, total),
    }


def share_of(part: int, whole: int) -> float | None:
    """Return the rounded share, or None of nothing."""
    return round(part / whole, _DIGITS) if whole > 0 else None


def _engine_banners(app: web.Application, states: Mapping[str, SharedEngineState]) -> list[dict[str, Any]]:
    """Return the engines in use that some worker cannot use. Times and reasons of failed probes are this worker's."""
    banners = []
    for name, one in states.items():
        if not (one.is_down or one.is_open):
            continue
        own = app[ENGINES].by_name[name].state
        if one.is_down_here:
            reason = detail_of(own)
        elif one.is_down:
            reason = "the last probe of another worker failed"
        else:
            reason = words_of("engine_circuit_open")
        since = time_shown(own.since) if one.is_down_here else None
        banners.append({"kind": "engine", "engine": name, "since": since, "reason": reason, "breaker": one.breaker})
    return banners


def _unguided_banner(row: SumRow, since: int) -> list[dict[str, Any]]:
    counts = requests_of(row)
    requests, share = counts["guided"] + counts["unguided"], counts["unguided_share"]
    if share is None or share <= UNGUIDED_THRESHOLD or requests < _MIN_RECENT:
        return []
    reasons = {name: number for name, number in row.unguided.items() if name not in EXPECTED_REASONS}
    return [
        {
            "kind": "unguided",
            "since": time_shown(since),
            "share": share,
            "threshold": UNGUIDED_THRESHOLD,
            "requests": requests,
            "reasons": dict(sorted(reasons.items())),
        }
    ]
