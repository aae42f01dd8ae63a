"""GET /queue: what waits for each teacher, and what is in flight."""

from __future__ import annotations

from dataclasses import dataclass

import orjson
from aiohttp import web

from gateway.batching.view import QueueView  # noqa: TC001  the command decodes by these annotations
from gateway.web.keys import BATCHER, POLICIES, REDIS, WORKER


@dataclass(frozen=True, slots=True)
class Queues:
    """The answer, and what `gkt-gateway queue` reads.

    Attributes:
        worker: the number of the worker that answered.
        redis_up: whether that worker reaches Redis.
        teachers: by the names of config.yaml, those that a policy asks for guidance.
    """

    worker: int
    redis_up: bool
    teachers: dict[str, QueueView]


async def queue(request: web.Request) -> web.Response:
    """GET /queue: every teacher's queue over the fleet; while Redis is away, of the worker that answers."""
    app = request.app
    teachers = await app[BATCHER].look(app[POLICIES].book.teachers())
    body = Queues(app[WORKER], app[REDIS].up, teachers)
    return web.Response(
        body=orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE),
        content_type="application/json",
    )
