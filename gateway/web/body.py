"""A request's bytes, and how long they may take to come."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.errors import BodyTooSlow, InvalidRequest
from gateway.web.connection import connection_of

if TYPE_CHECKING:
    from aiohttp import StreamReader

_BODY_WITHIN_S = 30.0
# A body that does not arrive at once must bring so much in each interval.
_INTERVAL_S = 5.0
_MIN_INTERVAL_BYTES = 5_000
# The scheduler's cost of decoding a body: one step, and one more for each part of this size.
_STEP_BYTES = 65_536
_ONLY_CHUNKED = "Transfer-Encoding can only be 'chunked'. Name a compression in Content-Encoding."


async def read_body(request: web.Request) -> bytes:
    """Return the decoded body, when it is the tenant's turn to have it decoded.

    Raises:
        BodyTooSlow: the body did not arrive in time.
        InvalidRequest: the body cannot be decoded. aiohttp rejects a body over the limit.
        Overloaded: other requests of the tenant keep the worker busy.
    """
    coding = request.headers.get("Transfer-Encoding")
    if coding is not None and coding.strip().lower() != "chunked":
        raise InvalidRequest(_ONLY_CHUNKED)
    connection = connection_of(request)
    try:
        if request.content.is_eof():
            body = await request.read()  # all of it came with the head, as short bodies do
        else:
            # The rest of it stays in the socket until the tenant has its turn.
            if connection is not None and (step := connection.step()) is not None:
                await connection.park(step)
            body = await _read_rest(request)
    except (ClientPayloadError, HttpProcessingError, web.RequestPayloadError):
        raise InvalidRequest("The body cannot be read: its encoding or its length is wrong.") from None
    if connection is not None and (step := connection.step(1.0 + len(body) / _STEP_BYTES)) is not None:
        await connection.park(step)
    return body


async def _read_rest(request: web.Request) -> bytes:
    """Read a body that has not arrived yet. Raises BodyTooSlow."""
    connection = connection_of(request)
    try:
        async with asyncio.timeout(None) as limit:
            rate = _ReadRate(request.content, limit)
            if connection is None:
                with rate:
                    return await request.read()
            connection.expect_body(rate.drop)
            try:
                with rate:
                    return await request.read()
            finally:
                connection.body_ended()
    except TimeoutError:
        raise BodyTooSlow(rate.problem) from None


class _ReadRate:
    """Expires `limit` when a body arrives too slowly.

    Attributes:
        problem: why the limit expired, for the caller.
    """

    def __init__(self, content: StreamReader, limit: asyncio.Timeout) -> None:
        self._content = content
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + _BODY_WITHIN_S
        self._seen = content.total_bytes
        self.problem = f"The body did not arrive within {_BODY_WITHIN_S:g} s."

    def _check(self) -> None:
        received = self._content.total_bytes
        if received - self._seen < _MIN_INTERVAL_BYTES:
            self.problem = f"Less than {_MIN_INTERVAL_BYTES} bytes of the body arrived in {_INTERVAL_S:g} s."
            self._expire()
        elif self._loop.time() >= self._end:
            self._expire()
        else:
            self._seen = received
            self._timer = self._loop.call_later(_INTERVAL_S, self._check)

    def drop(self) -> None:
        """End the body early: other tenants need what it holds."""
        self.problem = "Too many bodies of this tenant are unfinished. Send each request's body at once."
        self._expire()

    def _expire(self) -> None:
        if not self._limit.expired():
            self._limit.reschedule(self._loop.time())

    def __enter__(self) -> None:
        self._timer = self._loop.call_later(_INTERVAL_S, self._check)

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
