"""What the handlers of the admin API share: replies in JSON, and what becomes of a Redis that fails."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from redis.exceptions import RedisError

from gateway.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    _Handler = Callable[[web.Request], Awaitable[web.Response]]

_ENCODER = msgspec.json.Encoder(decimal_format="number")


def needs_redis(handler: _Handler) -> _Handler:
    """Turn what Redis fails with into StoreUnavailable."""

    @wraps(handler)
    async def guarded(request: web.Request) -> web.Response:
        try:
            return await handler(request)
        except (RedisError, OSError) as error:
            # The client is not told of it: no caller's request is to go without Redis because an operator's was slow.
            # Whether a script ran whose answer did not come is not known.
            raise StoreUnavailable(
                "Redis is away, and what you asked for is kept there. Look whether it was done before you ask again."
            ) from error

    return guarded


def json_reply(body: object, *, status: int = 200) -> web.Response:
    """A reply that nobody on the way keeps: it may hold a key."""
    return web.Response(
        body=_ENCODER.encode(body) + b"\n",
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
