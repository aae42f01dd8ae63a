"""Decode request bodies without blocking the event loop."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

from aiohttp import web

from gateway.api.body import read_parts
from gateway.api.connection import connection_of
from gateway.errors import Overloaded
from gateway.protocol.structure import INLINE_BYTES, is_light

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.api.connection import Connection
    from gateway.policy.book import Caller

T = TypeVar("T")
_WAIT_S = 30.0


class BodyDecoder:
    """Decodes light bodies on the event loop and others in one thread, which tenants take turns to use.

    A tenant that floods the gateway with large bodies waits for its own bodies. Other tenants wait for one of them.
    The decoder holds the interpreter lock, which the event loop needs. While tenants contend, a tenant's next body
    therefore waits as long as its last one took.
    """

    def __init__(self) -> None:
        # More threads would compete with the event loop for the interpreter lock.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decode-body")
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def decode(self, tenant: str, parts: list[bytes], parse: Callable[[bytes], T], connection: Connection) -> T:
        """Decode a body of a connection with `parse`, and return the result. The list of parts is emptied.

        Raises InvalidRequest as `parse` does; Overloaded if other bodies of the tenant take too long.
        """
        size = sum(map(len, parts))
        if size <= INLINE_BYTES:
            parts[:] = [b"".join(parts)]
            if is_light(parts[0]):
                return parse(parts[0])
        if (turn := self._turns.get(tenant)) is None:
            turn = self._turns[tenant] = asyncio.Lock()
        try:
            async with asyncio.timeout(_WAIT_S) as limit:
                connection.expect_body(lambda: limit.reschedule(0.0), size)
                await turn.acquire()
        except TimeoutError:
            parts.clear()
            raise Overloaded("Other large bodies of this tenant are being decoded. Try again shortly.") from None
        connection.body_ended()
        loop, took_s = asyncio.get_running_loop(), 0.0

        def decode() -> T:
            nonlocal took_s
            began = time.perf_counter()
            try:
                return parse(_taken(parts))
            finally:
                took_s = time.perf_counter() - began

        def decoded(future: asyncio.Future[T]) -> None:
            if not future.cancelled():
                future.exception()  # mark the error as read, since the caller may have disconnected
            if connection.contended():
                loop.call_later(took_s, turn.release)
            else:
                turn.release()

        decoding = loop.run_in_executor(self._thread, decode)
        # The thread continues after the caller disconnected, and the tenant's turn ends with the thread's work.
        decoding.add_done_callback(decoded)
        try:
            await asyncio.wait([decoding])
            return decoding.result()
        finally:
            # An error's traceback refers to this frame: as a cycle, body and error would stay until a collection.
            del decoding


BODY_DECODER = web.AppKey("body_decoder", BodyDecoder)


async def read_parsed(request: web.Request, caller: Caller, parse: Callable[[bytes], T]) -> T:
    """Read the body of a request and return the result of `parse`. Raises GatewayErrors."""
    connection = connection_of(request)
    try:
        parts = await read_parts(request, connection)
        if len(parts) == 1 and is_light(parts[0]):  # most bodies, without a coroutine
            return parse(parts[0])
        return await request.app[BODY_DECODER].decode(caller.policy.tenant, parts, parse, connection)
    finally:
        connection.body_ended()


def _taken(parts: list[bytes]) -> bytes:
    """Join the parts and empty the list, so that only `parse` holds the body."""
    raw = b"".join(parts)
    parts.clear()
    return raw
