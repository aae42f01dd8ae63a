"""A request's bytes, and how long they may take to come."""

from __future__ import annotations

import asyncio

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.errors import BodyTooSlow, InvalidRequest

_BODY_WITHIN_S = 30.0


async def read_body(request: web.Request) -> bytes:
    """The body. Raises BodyTooSlow and InvalidRequest; a body over the bound is aiohttp's to refuse."""
    try:
        if request.content.is_eof():
            return await request.read()  # all of it came with the head, as short bodies do
        async with asyncio.timeout(_BODY_WITHIN_S):
            return await request.read()
    except TimeoutError:
        raise BodyTooSlow(f"The body did not arrive within {_BODY_WITHIN_S:g} s.") from None
    except (ClientPayloadError, HttpProcessingError, web.RequestPayloadError):
        raise InvalidRequest("The body cannot be read: its encoding or its length is wrong.") from None
