"""Liveness and readiness, for whoever runs the process.

A dead engine or an absent Redis is `degraded`, with 200: taking a gateway out of its load balancer for it would let one
engine unload the whole fleet. Only a process that is starting or draining is not ready. `Startup` decides when a start
is complete: before, a student would not be known to continue an answer, and a limit might not be counted.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import orjson
from aiohttp import web

from gateway.api.keys import (
    ADMISSION,
    DEADLINES,
    ENGINES,
    KEYRING,
    OWNER,
    POLICIES,
    REDIS,
    RELOADER,
    STARTUP,
    USAGE_BOARD,
    WORKER,
)
from gateway.capabilities.continuation import Continuation, Known
from gateway.policy.reload import ConfigEdit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.keys.ring import Keyring
    from gateway.policy.policies import Policies
    from gateway.policy.reload import Reloader
    from gateway.usage.state import WorkerStateReader

_NOT_READY = frozenset({"starting", "draining"})
_MOST_MISTAKES = 50


async def healthz(_: web.Request) -> web.Response:
    """GET /healthz: the process lives."""
    return web.Response(text="ok\n")


async def readyz(request: web.Request) -> web.Response:
    """GET /readyz: whether to send requests here, in one word."""
    status = status_of(request.app)
    return web.Response(text=status + "\n", status=503 if status in _NOT_READY else 200)


async def readyz_in_detail(request: web.Request) -> web.Response:
    """GET /readyz on the admin listener: the same, and why. It speaks for one worker and names it."""
    status = status_of(request.app)
    engines = {
        name: {
            "up": engine.state.up,
            "detail": engine.state.detail,
            "breaker": engine.breaker,
            "warnings": warnings_of(request.app, name),
            "continuation": _continuation(engine.state.continuation),
            "facts": engine.state.facts,
        }
        for name, engine in request.app[ENGINES].items()
    }
    body = {
        "status": status,
        "worker": request.app[WORKER],
        "process": request.app[OWNER],
        "in_flight": request.app[ADMISSION].in_flight,
        "redis": {"up": request.app[REDIS].up},
        "usage": _usage(request.app[USAGE_BOARD]),
        "policies": policies_shown(request.app[POLICIES]),
        "config": config_shown(request.app.get(RELOADER)),
        "keys": _keys(request.app[KEYRING]),
        "engines": engines,
    }
    return web.Response(
        body=orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE),
        status=503 if status in _NOT_READY else 200,
        content_type="application/json",
    )


def warnings_of(app: web.Application, engine: str) -> list[str]:
    """Return what is wrong with an engine that is up, and which routes miss its guidance too often."""
    return [*app[ENGINES][engine].state.warnings, *app[DEADLINES].warnings(engine)]


def _usage(board: WorkerStateReader) -> object:
    return {"where": board.database, **msgspec.to_builtins(board.state)}


def policies_shown(policies: Policies) -> dict[str, object]:
    """Which edition of the policies folder holds, and whether the folder is another one by now."""
    edition = policies.edition
    return {
        "version": edition.version,
        "loaded_at": datetime.fromtimestamp(edition.loaded_at, UTC).isoformat(timespec="milliseconds"),
        "files": edition.files,
        "stale": bool(policies.mistakes),
        "error": _some(policies.mistakes),
    }


def config_shown(reloader: Reloader | None) -> dict[str, object]:
    """Whether config.yaml is what the process was started with."""
    edit = reloader.config if reloader is not None else ConfigEdit()
    return {"changed": edit.changed, "needs": "a restart" if edit.changed else None, "error": _some(edit.mistakes)}


def _some(mistakes: Sequence[str]) -> list[str]:
    more = len(mistakes) - _MOST_MISTAKES
    return [*mistakes[:_MOST_MISTAKES], *([f"and {more} more: gkt-gateway check names all"] if more > 0 else ())]


def _keys(ring: Keyring) -> object:
    ago_s = ring.age_s()
    return {"in_redis": len(ring), "read_ago_s": None if ago_s is None else round(ago_s, 1)}


def _continuation(known: Known) -> object:
    return {"mode": known.mode, "echo": known.echo} if isinstance(known, Continuation) else None


def status_of(app: web.Application) -> str:
    """starting, ready, degraded or draining."""
    if app[ADMISSION].draining:
        return "draining"
    if not app[STARTUP].done:
        return "starting"
    down = any(engine.state.up is False for engine in app[ENGINES].values())
    return "degraded" if down or not app[REDIS].up else "ready"
