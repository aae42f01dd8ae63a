"""GET /overview and GET /policies: the dashboard's live figures, and the policies in use.

The usage database has the sums of all processes. The state of engines, breakers and requests in flight is that of the
process that answers; the reply names it.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web
from redis.exceptions import RedisError

from gateway.admin.bodies import only_query
from gateway.admin.replies import json_reply, time_shown
from gateway.api.keys import ADMISSION, ENGINES, POLICIES, PROCESS_ID, REDIS, RELOADER, WORKER
from gateway.api.probes import config_shown, policies_shown, status_of, warnings_of
from gateway.errors import UsageUnavailable
from gateway.usage.rollup import SumRow, total
from gateway.usage.sums import Period, periods
from gateway.usage.usage import figures

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.policy.schema import TenantPolicy
    from gateway.usage.database_reader import DatabaseReader

_FRESH_S = 0.9
_PAST_FRESH_S = 60.0
_LIMIT_S = 2.0


class _Past(NamedTuple):
    """The sum of the month's past days. It hardly changes, so it is read once a minute."""

    read_at: float
    until: int
    month: SumRow


class Overview:
    """Sums of the last minutes, of today and of the month. Concurrent requests share one read.

    `clock` returns Unix seconds.
    """

    def __init__(self, database: DatabaseReader, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._reading = asyncio.Lock()
        self._read_at = 0.0
        self._read: dict[str, Any] = {}
        self._past: _Past | None = None

    async def sums(self) -> dict[str, Any]:
        """Return `at`, `live`, `today` and `month`. Raises UsageUnavailable."""
        async with self._reading:
            now = self._clock()
            if not 0 <= now - self._read_at < _FRESH_S:
                self._read, self._read_at = await self._load(now), now
            return self._read

    async def _load(self, now: float) -> dict[str, Any]:
        today = Period.of("day", now)
        first = datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()
        minutes = [Period.of("minute", now - 60), Period.of("minute", now)]
        selected = [*minutes, today]
        past = self._past
        if past is None or past.until != today.start or not 0 <= now - past.read_at < _PAST_FRESH_S:
            past = None
            selected += periods("day", first, today.start)
        found = dict(await self._database.totals(selected))
        if past is None:
            past = self._past = _Past(now, today.start, total([SumRow(), *(found[day] for day in selected[3:])]))
        month = total([found[today], past.month])
        return {
            "at": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "live": {
                "since": time_shown(minutes[0].start),
                "seconds": round(now - minutes[0].start, 3),
                **summary(total([found[minute] for minute in minutes])),
            },
            "today": {"since": time_shown(today.start), **summary(found[today])},
            "month": {"since": time_shown(first), **summary(month)},
        }


OVERVIEW = web.AppKey("overview", Overview)


async def show_overview(request: web.Request) -> web.Response:
    """GET /overview. Sums are null while the usage database cannot be read."""
    only_query(request)
    app = request.app
    sums: dict[str, Any] = {"live": None, "today": None, "month": None}
    with suppress(RedisError, OSError, UsageUnavailable):
        async with asyncio.timeout(_LIMIT_S):
            sums = await app[OVERVIEW].sums()
    engines = app[ENGINES].engine_set
    return json_reply(
        {
            "object": "overview",
            "at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "status": status_of(app),
            "worker": app[WORKER],
            "process": app[PROCESS_ID],
            "in_flight": app[ADMISSION].in_flight,
            "redis": {"up": app[REDIS].up},
            "usage": {"answered": sums["live"] is not None},
            **sums,
            "max_batch_size": max(
                (engines.models[name].batch.max_size for name in app[POLICIES].policy_set.teachers()), default=None
            ),
            "engines": [
                {
                    "name": name,
                    "up": engine.state.up,
                    "detail": engine.state.detail,
                    "breaker": engine.breaker,
                    "in_flight": engine.calls,
                    "warnings": warnings_of(app, name),
                }
                for name, engine in engines.by_name.items()
            ],
            "policies": policies_shown(app[POLICIES]),
            "config": config_shown(app.get(RELOADER)),
        }
    )


async def show_policies(request: web.Request) -> web.Response:
    """GET /policies: the policy in use of each tenant, and the issues that keep the folder's edits from being used."""
    only_query(request)
    policies = request.app[POLICIES]
    data = [_policy(one) for one in policies.policy_set.policies]
    return json_reply(policies_shown(policies) | {"object": "policies", "data": data})


def summary(row: SumRow) -> dict[str, Any]:
    """Return the fields of a row of GET /usage, and the number of guided answers."""
    return {**figures(row), "guided": row.guided}


def _policy(policy: TenantPolicy) -> dict[str, Any]:
    return {
        "tenant": policy.tenant,
        "keys": len(policy.keys),
        "budget": policy.budget is not None,
        "routes": [
            {"model": one.model, "mode": one.mode, "teacher": one.teacher, "student": one.student}
            for one in policy.routes
        ],
    }
