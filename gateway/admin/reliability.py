"""GET /reliability: state, failures and latency of each engine, and answers without guidance by reason."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web
from redis.exceptions import RedisError

from gateway.accounting.request_log import EXPECTED_REASONS
from gateway.accounting.savings import STUDENT_BY_POLICY, savings_class
from gateway.admin.period import filters_of, period_of
from gateway.admin.problems import detail_of
from gateway.admin.replies import json_reply, time_shown
from gateway.admin.summary import requests_of, share_of
from gateway.admin.usage import check_tenant
from gateway.api.keys import ENGINES, METRICS, REDIS, USAGE, WORKER
from gateway.api.probes import warnings_of
from gateway.telemetry.engine_figures import EngineFigures
from gateway.usage.rejections import RejectionCounts, Rejections
from gateway.usage.rollup import SumRow, merge_in
from gateway.usage.usage import UsageQuery, figures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.admin.period import ReportPeriod
    from gateway.usage.usage import UsageResult

REJECTED = web.AppKey("rejected", Rejections)

_BY = ("mode", "teacher", "student")
_STAGES = {"teacher": ("teacher",), "student": ("first_token", "total")}


class _Sums(NamedTuple):
    """The sum of all requests, and the sums by role and engine, without shadows."""

    total: SumRow
    by_engine: dict[tuple[str, str], SumRow]


async def show_reliability(request: web.Request) -> web.Response:
    """GET /reliability: the last 24 hours by default, for all requests or those of a tenant, route or key."""
    only, app = filters_of(request), request.app
    reader = app[USAGE]
    period = period_of(request, reader.retention, app[REDIS].now(), since="24h")
    sums = await reader.read(UsageQuery(period.sums, None, _BY, only), _sums)
    fleet = await asyncio.to_thread(app[METRICS].engine_figures)
    rejected = await _read_rejections(app[REJECTED], period)
    counts = requests_of(sums.total)
    if not counts["total"]:
        check_tenant(request, only.get("tenant"))
    return json_reply(
        {
            "object": "reliability",
            "period": {**period.shown(), "month": period.month},
            "filters": only,
            "worker": app[WORKER],
            "engines": [_engine(app, name, sums, fleet.get(name, EngineFigures())) for name in app[ENGINES].by_name],
            "requests": counts["total"],
            "answers": counts["answers"],
            "disconnected": counts["disconnected"],
            "shadows": counts["shadows"],
            "guided": counts["guided"],
            "errors": _errors(sums.total),
            "error_share": counts["error_share"],
            "unguided": _unguided(sums.total),
            "unguided_share": counts["unguided_share"],
            "threshold": counts["threshold"],
            "rejections": None if rejected is None else _rejections(rejected, only),
        }
    )


async def _read_rejections(rejections: Rejections, period: ReportPeriod) -> RejectionCounts | None:
    """Return the rejections of the period, or None while Redis is unavailable."""
    try:
        return await rejections.read(period.sums.since, period.sums.until, period.now)
    except (RedisError, OSError):
        return None


def _rejections(counts: RejectionCounts, only: Mapping[str, str]) -> dict[str, Any]:
    """Return the rejections of all callers or of a tenant, the most frequent first."""
    rows = [
        {"status": row.status, "error": row.error, "tenant": row.tenant, "requests": number}
        for row, number in counts.rows.most_common()
        if only.get("tenant") in {None, row.tenant}
    ]
    return {
        "since": time_shown(counts.since),
        "until": time_shown(counts.until),
        "total": sum(row["requests"] for row in rows),
        "rows": rows,
        "ignored": [name for name in ("route", "key") if name in only],
    }


def _sums(usage: UsageResult) -> _Sums:
    total, by_engine = SumRow(), dict[tuple[str, str], SumRow]()
    for group, row in usage.rows():
        mode, *engines = group.names
        total.merge(row)
        if mode != "shadow":
            for role, engine in zip(_STAGES, engines, strict=True):
                merge_in(by_engine, (role, engine), row)
    return _Sums(total, by_engine)


def _engine(app: web.Application, name: str, sums: _Sums, fleet: EngineFigures) -> dict[str, Any]:
    """Return the state of an engine as this worker sees it, and its calls over all workers."""
    engine = app[ENGINES].by_name[name]
    return {
        "name": name,
        "up": engine.state.up,
        "since": time_shown(engine.state.since),
        "detail": detail_of(engine.state),
        "breaker": engine.breaker,
        "in_flight": fleet.in_flight,
        "warnings": warnings_of(app, name),
        "failed_calls": fleet.failed_calls,
        **{role: _role(role, sums.by_engine.get((role, name))) for role in _STAGES},
    }


def _role(role: str, row: SumRow | None) -> dict[str, Any] | None:
    if row is None or not row.requests:
        return None
    errors, latency = _errors(row), figures(row, money=False)["latency_ms"]
    return {
        "requests": row.requests,
        "errors": errors,
        "error_share": share_of(sum(errors.values()), row.requests),
        "latency_ms": {stage: latency[stage] for stage in _STAGES[role]},
    }


def _errors(row: SumRow) -> dict[str, int]:
    return dict(sorted(row.errors.items()))


def _unguided(row: SumRow) -> list[dict[str, Any]]:
    """Return the reasons, the most frequent first."""
    whole = row.guided + sum(row.unguided.values())
    reasons = sorted(row.unguided.items(), key=lambda item: (-item[1], item[0]))
    return [
        {"reason": reason, "cause": _cause(reason), "requests": number, "share": share_of(number, whole)}
        for reason, number in reasons
    ]


def _cause(reason: str) -> str:
    """Return whether a failure, the policy or the request itself is the cause of an unguided answer."""
    if reason not in EXPECTED_REASONS:
        return "failure"
    by = savings_class(mode="student", status="ok", unguided=reason, shadow_of=None)
    return "policy" if by == STUDENT_BY_POLICY else "request"
