"""A request's bytes, and how long they may take to come."""

from __future__ import annotations

import asyncio

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.errors import BodyTooSlow, InvalidRequest

_BODY_WITHIN_S = 30.0
_ONLY_CHUNKED = "Transfer-Encoding can only be 'chunked'. Name a compression in Content-Encoding."


async def read_body(request: web.Request) -> bytes:
    """Return the decoded body.

    Raises:
        BodyTooSlow: the body did not arrive in time.
        InvalidRequest: the body cannot be decoded. aiohttp rejects a body over the limit.
    """
    coding = request.headers.get("Transfer-Encoding")
    if coding is not None and coding.strip().lower() != "chunked":
        raise InvalidRequest(_ONLY_CHUNKED)
    try:
        if request.content.is_eof():
            return await request.read()  # all of it came with the head, as short bodies do
        async with asyncio.timeout(_BODY_WITHIN_S):
            return await request.read()
    except TimeoutError:
        raise BodyTooSlow(f"The body did not arrive within {_BODY_WITHIN_S:g} s.") from None
    except (ClientPayloadError, HttpProcessingError, web.RequestPayloadError):
        raise InvalidRequest("The body cannot be read: its encoding or its length is wrong.") from None
