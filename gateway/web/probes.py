"""Liveness and readiness, for whoever runs the process.

A dead engine or an absent Redis is `degraded`, with 200: taking a gateway out of its load balancer for it would let one
engine unload the whole fleet. Only a process that is starting or draining is not ready.
"""

from __future__ import annotations

import orjson
from aiohttp import web

from gateway.web.keys import ADMISSION, ENGINES, REDIS, WORKER


async def healthz(_: web.Request) -> web.Response:
    """GET /healthz: the process lives."""
    return web.Response(text="ok\n")


async def readyz(request: web.Request) -> web.Response:
    """GET /readyz: whether to send requests here, in one word."""
    status = _status(request.app)
    return web.Response(text=status + "\n", status=503 if status == "draining" else 200)


async def readyz_in_detail(request: web.Request) -> web.Response:
    """GET /readyz on the admin listener: the same, and why. It speaks for one worker and names it."""
    status = _status(request.app)
    engines = {
        name: {
            "up": engine.state.up,
            "detail": engine.state.detail,
            "warnings": engine.state.warnings,
            "continuation": _continuation(engine.state.continuation),
            "facts": engine.state.facts,
        }
        for name, engine in request.app[ENGINES].items()
    }
    body = {
        "status": status,
        "worker": request.app[WORKER],
        "in_flight": request.app[ADMISSION].in_flight,
        "redis": {"up": request.app[REDIS].up},
        "engines": engines,
    }
    return web.Response(
        body=orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE),
        status=503 if status == "draining" else 200,
        content_type="application/json",
    )


def _continuation(continuation: object) -> object:
    return None if continuation is None else {field: getattr(continuation, field) for field in ("mode", "echo")}


def _status(app: web.Application) -> str:
    if app[ADMISSION].draining:
        return "draining"
    down = any(engine.state.up is False for engine in app[ENGINES].values())
    return "degraded" if down or not app[REDIS].up else "ready"
