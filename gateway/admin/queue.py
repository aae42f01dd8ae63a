"""GET /queue: what waits for each teacher, and what is in flight."""

from __future__ import annotations

import orjson
from aiohttp import web

from gateway.api.keys import BATCHER, POLICIES, REDIS, WORKER
from gateway.batching.view import QueuesReply


async def queue(request: web.Request) -> web.Response:
    """GET /queue: every teacher's queue over the fleet; while Redis is away, of the worker that answers."""
    app = request.app
    teachers = await app[BATCHER].look(app[POLICIES].book.teachers())
    body = QueuesReply(app[WORKER], app[REDIS].up, teachers)
    return web.Response(
        body=orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE),
        content_type="application/json",
    )
