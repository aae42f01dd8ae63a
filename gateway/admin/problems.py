"""The answer to "is anything broken?": recent failures with their main cause in words, and the engines in use.

All words come from `CAUSES`, by error label. Messages of exceptions may contain addresses and class names, so pages
and their API never show them.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.admin.replies import time_shown
from gateway.api.keys import ENGINES, USAGE_DATABASE
from gateway.usage.rollup import SumRow
from gateway.usage.search import ReceiptSearch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aiohttp import web

    from gateway.engines.base import EngineState
    from gateway.policy.book import PolicySet
    from gateway.usage.span import UsageSpan
    from gateway.usage.usage import UsageResult

CAUSES = {
    # After "engine NAME":
    "engine_unreachable": "unreachable",
    "engine_timeout": "silent for longer than its timeout",
    "engine_overloaded": "overloaded",
    "engine_circuit_open": "paused after failures",
    "engine_rejected": "rejecting requests",
    "engine_failed": "failing",
    "engine_protocol_error": "sending invalid replies",
    "engine_error": "failing",
    "engine_asleep": "asleep until POST /wake_up",
    # Without an engine:
    "guidance_unavailable": "no guidance, which the policy requires",
    "queue_full": "too many requests waiting for guidance",
    "ticket_unreadable": "unreadable tickets in Redis",
    "store_unavailable": "Redis unavailable",
    "overloaded": "gateway full or shutting down",
    "shutdown": "gateway stopped before the answer",
    "abandoned": "gateway process killed before the answer",
    "internal": "internal error; the log has the details",
}
"""Words for the error labels of failed requests and probes."""
RECENT_BY = ("tenant", "route", "mode")
_EXAMPLES = 50
"""The newest failed requests whose engines are counted."""
_WITH_TEACHER, _WITH_STUDENT = {"guided", "teacher", "shadow"}, {"guided", "student", "shadow", "embeddings"}


class RecentRequests(NamedTuple):
    """The sum of recent requests, the sum without shadows, and the tenants and routes that had any."""

    total: SumRow
    answers: SumRow
    routes: frozenset[tuple[str, str]]


class _Call(msgspec.Struct):
    model: str = ""


class _Attempt(msgspec.Struct):
    engine: str


class _Failed(msgspec.Struct):
    """The fields of a failed receipt that name its engine."""

    attempts: list[_Attempt] = []
    student: _Call | None = None
    teacher: _Call | None = None

    @property
    def engine(self) -> str | None:
        if self.attempts:
            return self.attempts[-1].engine
        call = self.student or self.teacher
        return None if call is None else call.model


_FAILED_DECODER = msgspec.json.Decoder(_Failed)


def words_of(error: str | None) -> str:
    """Return the words for an error label."""
    return CAUSES.get(error or "internal") or (error or "").replace("_", " ")


def detail_of(state: EngineState) -> str:
    """Return the result of the last probe of an engine in words."""
    return words_of(state.problem) if state.up is False else state.detail


def recent_requests(usage: UsageResult) -> RecentRequests:
    """Return the sums of a query by `RECENT_BY`. Call it in a thread."""
    answers, routes = SumRow(), set[tuple[str, str]]()
    for group, row in usage.rows():
        tenant, route, mode = group.names
        routes.add((tenant, route))
        if mode != "shadow":
            answers.merge(row)
    return RecentRequests(usage.total(), answers, frozenset(routes))


def engines_in_use(policy_set: PolicySet, recent: RecentRequests) -> frozenset[str]:
    """Return the engines that recent requests used: those of their routes, for the modes of these routes."""
    in_use: set[str] = set()
    for tenant, name in recent.routes:
        policy = policy_set.policy_of(tenant)
        for route in () if policy is None else policy.all_routes:
            if route.model != name:
                continue
            modes = {route.mode, *policy.overrides_of(route).modes} if policy is not None else set()
            if modes & _WITH_TEACHER and route.teacher is not None:
                in_use.add(route.teacher)
            if modes & _WITH_STUDENT:
                in_use.update(student.model for student in route.all_students)
    return frozenset(in_use)


async def failures_shown(
    app: web.Application, recent: RecentRequests, sums: UsageSpan, only: Mapping[str, str]
) -> dict[str, Any]:
    """Return the failed part of recent requests, its main cause, and both as a sentence."""
    row = recent.answers
    requests, failed = row.requests, sum(row.errors.values())
    shown = {
        "since": time_shown(sums.since),
        "requests": requests,
        "failed": failed,
        "share": round(failed / requests, 6) if requests else None,
        "cause": None,
        "text": f"0 of {requests} failed" if requests else "no requests",
    }
    if not failed:
        return shown
    ((error, _),) = Counter(row.errors).most_common(1)
    where = ReceiptSearch(sums.since, None, only.get("tenant"), only.get("route"), only.get("key"), status=error)
    page = await app[USAGE_DATABASE].search(where, _EXAMPLES)
    engine = _most_common(_FAILED_DECODER.decode(found.receipt).engine for found in page.found)
    if not error.startswith("engine_"):
        engine = None
    known = None if engine is None else app[ENGINES].by_name.get(engine)
    since: float | None = None
    if known is not None and known.state.up is False:
        error, since = known.state.problem or error, known.state.since
    cause = words_of(error) if engine is None else f"engine {engine} {words_of(error)}"
    return shown | {
        "cause": {"error": error, "engine": engine, "since": time_shown(since)},
        "text": f"{failed} of {requests} failed: {cause}{_since(since)}",
    }


def _most_common(names: Iterable[str | None]) -> str | None:
    counted = Counter(name for name in names if name)
    return max(counted, key=counted.__getitem__, default=None)


def _since(unix_s: float | None) -> str:
    """Return the start of a problem in UTC, with the date if it is not today."""
    if unix_s is None:
        return ""
    start = datetime.fromtimestamp(unix_s, UTC)
    is_today = start.date() == datetime.now(UTC).date()
    return f" since {start:%H:%M} UTC" if is_today else f" since {start:%Y-%m-%d %H:%M} UTC"
