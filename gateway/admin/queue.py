"""GET /queue: waiting tickets and calls in flight of each teacher."""

from __future__ import annotations

import orjson
from aiohttp import web

from gateway.api.keys import BATCHER, POLICIES, REDIS, WORKER
from gateway.batching.view import QueuesReply


async def queue(request: web.Request) -> web.Response:
    """GET /queue: every teacher's queue over all processes. While Redis is down, the queue of this process."""
    app = request.app
    teachers = await app[BATCHER].views(app[POLICIES].policy_set.teachers())
    body = QueuesReply(app[WORKER], app[REDIS].up, teachers)
    return web.Response(
        body=orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE),
        content_type="application/json",
    )
