"""Liveness and readiness probes.

A process that starts or drains is not ready. An engine or a Redis that is down is `degraded`, with status 200:
otherwise one failed engine would remove all gateways from their load balancer. `Readiness` decides when the startup is
complete. Before, the gateway does not know whether a student continues answers, and limits might not be counted.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import orjson
from aiohttp import web

from gateway.api import keys
from gateway.engines.watch import wait_until_probed
from gateway.keys.identity.issuer import IssuerState
from gateway.protocol.capabilities.continuation import Continuation

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.engines.base import Engine
    from gateway.keys.identity.issuers import Issuers
    from gateway.policy.policies import Policies
    from gateway.policy.reload import Reloader
    from gateway.redis.client import RedisClient

_NOT_READY = frozenset({"starting", "draining"})
_MAX_ISSUES = 50
_FIRST_PROBES_S = 5.0
"""An engine that does not answer its first probe delays readiness by no more than this."""


class Readiness:
    """The startup of one process: every engine is probed, and Redis answers afterwards. `finished` is
    set when it is complete.

    Redis must answer after all startup work is done: that work may block the event loop for longer than Redis' timeout.
    """

    def __init__(self, redis: RedisClient, engines: Iterable[Engine]) -> None:
        self._redis, self._engines, self.finished = redis, tuple(engines), asyncio.Event()

    async def run(self, first_probes_s: float = _FIRST_PROBES_S) -> None:
        """Wait until the startup is complete. An unavailable Redis delays it."""
        await wait_until_probed(self._engines, first_probes_s)
        await self._redis.wait_answered()
        self.finished.set()


STARTUP = web.AppKey("startup", Readiness)


async def healthz(_: web.Request) -> web.Response:
    """GET /healthz: the process runs."""
    return web.Response(text="ok\n")


async def readyz(request: web.Request) -> web.Response:
    """GET /readyz: the status of the process, in one word."""
    status = status_of(request.app)
    return web.Response(text=status + "\n", status=503 if status in _NOT_READY else 200)


async def readyz_in_detail(request: web.Request) -> web.Response:
    """GET /readyz on the admin listener: the status of one worker, with details."""
    status, redis = status_of(request.app), request.app[keys.REDIS]
    engines = {}
    for name, engine in request.app[keys.ENGINES].by_name.items():
        state, known = engine.state, engine.state.continuation
        engines[name] = {
            "up": state.up,
            "detail": state.detail,
            "breaker": engine.breaker,
            "paused_tenants": engine.paused_tenants,
            "warnings": warnings_of(request.app, name),
            "continuation": {"mode": known.mode, "echo": known.echo} if isinstance(known, Continuation) else None,
            "facts": state.facts,
        }
    board, ago_s = request.app[keys.USAGE_BOARD], request.app[keys.KEYRING].age_s()
    body = {
        "status": status,
        "worker": request.app[keys.WORKER],
        "process": request.app[keys.PROCESS_ID],
        "in_flight": request.app[keys.ADMISSION].in_flight,
        "redis": {"up": redis.up, "problems": redis.problems, "clock_skew_s": round(redis.clock_skew_s, 1)},
        "usage": {"where": board.database, **msgspec.to_builtins(board.state)},
        "policies": policies_shown(request.app[keys.POLICIES]),
        "config": config_shown(request.app.get(keys.RELOADER)),
        "keys": {"in_redis": len(request.app[keys.KEYRING]), "read_ago_s": None if ago_s is None else round(ago_s, 1)},
        "issuers": issuers_shown(request.app[keys.ISSUERS]),
        "engines": engines,
    }
    raw = orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return web.Response(body=raw, status=503 if status in _NOT_READY else 200, content_type="application/json")


def warnings_of(app: web.Application, engine: str) -> list[str]:
    """Return the warnings of an engine, and the routes that miss its guidance too often."""
    return [*app[keys.ENGINES].by_name[engine].state.warnings, *app[keys.DEADLINES].warnings(engine)]


def policies_shown(policies: Policies) -> dict[str, object]:
    """Return the edition of the policies in use, and the issues of a newer edition that is not used."""
    edition = policies.edition
    return {
        "version": edition.version,
        "loaded_at": time_to_ms(edition.loaded_at),
        "files": edition.files,
        "stale": bool(policies.issues),
        "error": _first(policies.issues),
    }


def config_shown(reloader: Reloader | None) -> dict[str, object]:
    """Return the version of config.yaml in use, and the issues of a newer file that is not used."""
    if reloader is None:
        return {"version": None, "loaded_at": None, "stale": False, "error": []}
    return {
        "version": reloader.files.version,
        "loaded_at": time_to_ms(reloader.loaded_at),
        "stale": bool(reloader.config_issues),
        "error": _first(reloader.config_issues),
    }


def issuers_shown(issuers: Issuers) -> dict[str, dict[str, object]]:
    """Return the state of each issuer of tokens, by name: its number of keys, and why they could not be read."""
    return {
        issuer.name: {
            "up": None if issuer.state == IssuerState() else issuer.state.error is None,
            "keys": issuer.state.keys,
            "read_at": None if issuer.state.read_at is None else time_to_ms(issuer.state.read_at),
            "error": issuer.state.error,
        }
        for issuer in issuers.all()
    }


def time_to_ms(unix_s: float) -> str:
    """Return a time in RFC 3339, in UTC, to the millisecond."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds")


def _first(issues: Sequence[str]) -> list[str]:
    more = len(issues) - _MAX_ISSUES
    return [*issues[:_MAX_ISSUES], *([f"and {more} more: gkt-gateway check lists all"] if more > 0 else ())]


def status_of(app: web.Application) -> str:
    """Return `starting`, `ready`, `degraded` or `draining`."""
    if app[keys.ADMISSION].draining:
        return "draining"
    if not app[STARTUP].finished.is_set():
        return "starting"
    down = any(engine.state.up is False for engine in app[keys.ENGINES].by_name.values())
    return "degraded" if down or not app[keys.REDIS].is_whole else "ready"
