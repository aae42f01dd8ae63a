"""Read request bodies, with limits on size and duration."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.api.connection import connection_of
from gateway.errors import BodyTooSlow, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import StreamReader

    from gateway.api.connection import Connection, ListenerTimes

# Minimum number of bytes in each interval, for a body that does not arrive at once.
_MIN_INTERVAL_BYTES = 5_000
# A body costs one step of the scheduler, and one more for each part of this size.
_STEP_BYTES = 65_536


async def read_body(request: web.Request) -> bytes:
    """Return the decoded body, when it is the tenant's turn to have it decoded. Raises as `read_parts`."""
    connection = connection_of(request)
    try:
        return b"".join(await read_parts(request, connection))
    finally:
        connection.body_ended()


async def read_parts(request: web.Request, connection: Connection) -> list[bytes]:
    """Return the parts of a decoded body, when it is the tenant's turn to have it decoded.

    Call `body_ended` of the connection afterwards. Raises BodyTooSlow; InvalidRequest if the body cannot be decoded;
    Overloaded if the tenant keeps the worker busy.
    """
    content = request.content
    try:
        if content.is_eof():
            part = content.read_nowait()  # all of it came with the head, as short bodies do
            parts, size = [part], len(part)
            if size > (limit := request.client_max_size):
                raise web.HTTPRequestEntityTooLarge(limit, size)
        else:
            # The rest of it stays in the socket until the tenant has its turn.
            await _take_step(connection, 1.0)
            parts = await _read_rest(request, connection)
            size = sum(map(len, parts))
    except (ClientPayloadError, HttpProcessingError, web.RequestPayloadError):
        raise InvalidRequest("The body cannot be read: its encoding or its length is wrong.") from None
    if (step := connection.step(1.0 + size % _STEP_BYTES / _STEP_BYTES)) is not None:
        await connection.park(step)
    return parts


async def _parts(request: web.Request, connection: Connection, rate: _ReadRate) -> list[bytes]:
    """Read a body to its end. While it arrives, the tenant takes a step for each _STEP_BYTES of it."""
    limit = request.client_max_size
    parts: list[bytes] = []
    size = steps = 0
    while part := await request.content.readany():
        parts.append(part)
        size += len(part)
        if size > limit:
            raise web.HTTPRequestEntityTooLarge(limit, size)
        if due := size // _STEP_BYTES - steps:
            steps += due
            connection.body_grew(due * _STEP_BYTES)
            with rate.paused():
                await _take_step(connection, due)
    return parts


async def _take_step(connection: Connection, cost: float) -> None:
    """Wait for the tenant's next step, without reading from the socket. Raises Overloaded."""
    if (step := connection.step(cost)) is not None:
        await connection.park(step)


async def _read_rest(request: web.Request, connection: Connection) -> list[bytes]:
    try:
        async with asyncio.timeout(None) as limit:
            rate = _ReadRate(request.content, limit, connection.times)
            connection.expect_body(rate.drop)
            try:
                with rate:
                    return await _parts(request, connection, rate)
            finally:
                connection.body_arrived()
    except TimeoutError:
        raise BodyTooSlow(rate.problem) from None


class _ReadRate:
    """Expires `limit` when a body arrives too slowly. `problem` states for the caller why the limit expired."""

    def __init__(self, content: StreamReader, limit: asyncio.Timeout, times: ListenerTimes) -> None:
        self._content, self._limit, self._interval_s = content, limit, times.body_interval_s
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + times.body_within_s
        self._seen = content.total_bytes
        self.problem = f"The body did not arrive within {times.body_within_s:g} s."

    def _check(self) -> None:
        received = self._content.total_bytes
        if received - self._seen < _MIN_INTERVAL_BYTES:
            self.problem = f"Less than {_MIN_INTERVAL_BYTES} bytes of the body arrived in {self._interval_s:g} s."
            self._expire()
        elif self._loop.time() >= self._end:
            self._expire()
        else:
            self._seen = received
            self._timer = self._loop.call_later(self._interval_s, self._check)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the `with` block, in which the gateway reads nothing."""
        self._timer.cancel()
        began = self._loop.time()
        try:
            yield
        finally:
            self._end += self._loop.time() - began
            self._timer = self._loop.call_later(self._interval_s, self._check)

    def drop(self) -> None:
        """Reject the body because other tenants need its memory."""
        self.problem = "Too many bodies of this tenant are unfinished. Send each request's body at once."
        self._expire()

    def _expire(self) -> None:
        if not self._limit.expired():
            self._limit.reschedule(self._loop.time())

    def __enter__(self) -> None:
        self._timer = self._loop.call_later(self._interval_s, self._check)

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
