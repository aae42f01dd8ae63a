"""JSON replies of the admin API, their times, and the error for a Redis that fails."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import wraps
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from redis.exceptions import RedisError

from gateway.errors import StoreUnavailable
from gateway.usage.span import rfc3339

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    _Handler = Callable[[web.Request], Awaitable[web.Response]]

ENCODER = msgspec.json.Encoder(decimal_format="number")


def needs_redis(handler: _Handler) -> _Handler:
    """Decorate a handler: an error of Redis becomes StoreUnavailable."""

    @wraps(handler)
    async def guarded(request: web.Request) -> web.Response:
        try:
            return await handler(request)
        except (RedisError, OSError) as error:
            # The circuit breaker of Redis ignores this error: a slow admin request must not affect callers.
            message = "Redis is unavailable. Send the request again when Redis answers."
            if request.method not in {"GET", "HEAD"}:  # a script may have run although its reply was lost
                message = (
                    "Redis is unavailable. Check whether the change was applied before you send the request again."
                )
            raise StoreUnavailable(message) from error

    return guarded


def json_reply(body: object, *, status: int = 200) -> web.Response:
    """Return a JSON reply that no cache stores: it may contain a key."""
    return web.Response(
        body=ENCODER.encode(body) + b"\n",
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def time_shown(unix_s: float | None) -> str | None:
    """Return a time in RFC 3339, in UTC, to the second."""
    return None if unix_s is None else rfc3339(unix_s)


def day_shown(unix_s: float) -> str:
    """Return the date of a time in UTC."""
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d}"
