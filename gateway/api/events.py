"""Replies in server-sent events."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import orjson
import structlog
from aiohttp import ClientConnectionResetError, HttpVersion11, web

from gateway.accounting.receipt_builder import ReceiptBuilder
from gateway.api.connection import SERVER, connection_of
from gateway.api.error_body import error_body, internal_error
from gateway.api.headers import fact_headers, name_reply
from gateway.api.keys import ADMISSION, INFO
from gateway.errors import GatewayError
from gateway.protocol.content_run import ContentRun
from gateway.runtime.timeouts import Watchdog

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from aiohttp.abc import AbstractStreamWriter

    from gateway.api.connection import Connection
    from gateway.api.keys import RequestInfo
    from gateway.protocol.body import Json
    from gateway.protocol.content_run import ChunkGroup
    from gateway.protocol.reply import ReplyWriter

log = structlog.get_logger()

_READ_WITHIN_S = 30.0  # of a write, before the caller is disconnected
PART_BYTES = 1 << 18
"""Largest write. A larger one would block the event loop."""

DONE = b"data: [DONE]\n\n"
"""The last event of a stream that was not cut short."""


class EventStream(web.StreamResponse):
    """A reply in server-sent events. Its head is sent with the first events, in one write."""

    _send_headers_immediately = False
    _head_sent = False
    writer: AbstractStreamWriter | None = None

    async def send(
        self, data: bytes, connection: Connection, reading: Watchdog, *, within_s: float = _READ_WITHIN_S
    ) -> None:
        """Write events as `send` does. After the head, they are framed here: in one call instead of aiohttp's five."""
        if len(data) > PART_BYTES:
            for start in range(0, len(data), PART_BYTES):
                await self.send(data[start : start + PART_BYTES], connection, reading, within_s=within_s)
            return
        if not data:
            return
        if not (self._head_sent and self.chunked):
            self._head_sent = True
            await send(self, data, reading)
            return
        transport = connection.transport
        if transport is None or transport.is_closing():
            raise ClientConnectionResetError("Cannot write to closing transport")
        transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        if connection.writing_paused and self.writer is not None:
            reading.watch(asyncio.get_running_loop().time() + within_s)
            await self.writer.drain()
            reading.disarm()


async def begin(
    request: web.Request, builder: ReceiptBuilder, before_events: Callable[[], Awaitable[None]] | None = None
) -> EventStream:
    """Prepare the head of the reply, with the facts that are known by now. It is sent with the first events."""
    if before_events is not None:
        await before_events()
    headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    headers |= {"X-Accel-Buffering": "no", "Server": SERVER, **fact_headers(builder.facts())}
    response = EventStream(headers=headers)
    name_reply(request, request[INFO], response)
    if request.version == HttpVersion11:
        response.enable_chunked_encoding()
    response.writer = await response.prepare(request)
    return response


async def send(
    response: web.StreamResponse, data: bytes, reading: Watchdog, *, within_s: float = _READ_WITHIN_S
) -> None:
    """Write data. `reading` disconnects a caller that does not read it in time."""
    reading.watch(asyncio.get_running_loop().time() + within_s)
    await response.write(data)
    reading.disarm()


async def send_last(response: web.StreamResponse, data: bytes, reading: Watchdog) -> web.StreamResponse:
    """Write the last data, and end the reply."""
    *starts, last = range(0, max(1, len(data)), PART_BYTES)
    for start in starts:
        await send(response, data[start : start + PART_BYTES], reading)
    reading.watch(asyncio.get_running_loop().time() + _READ_WITHIN_S)
    await response.write_eof(data[last:])
    reading.disarm()
    return response


def reads(request: web.Request) -> Watchdog:
    """Return a timeout that disconnects a caller that does not read. The disconnect ends the handler."""

    def disconnect() -> None:
        if request.transport is not None:
            request.transport.abort()

    return Watchdog(disconnect)


def require_caller(info: RequestInfo) -> None:
    """Raise ConnectionResetError if the caller disconnected and the request ran to its end without it."""
    if info.state is not None and info.state.abandoned:
        raise ConnectionResetError("The caller disconnected.")


def event(part: Json | ContentRun) -> bytes:
    """Return a server-sent event without a name, or the events of a run."""
    return part.events() if isinstance(part, ContentRun) else b"data: " + orjson.dumps(part) + b"\n\n"


class CompletionWriter:
    """Writes chat and text completions, which the pipeline returns. No [DONE] follows an error."""

    __slots__ = ()

    def reply(self, completion: Json) -> Json:
        return completion

    def events(self, group: ChunkGroup) -> bytes:
        return event(group[0]) if len(group) == 1 else b"".join(map(event, group))

    def end(self) -> bytes:
        return DONE

    def failed(self, error: GatewayError) -> bytes:
        return event(error_body(error))


COMPLETION_WRITER = CompletionWriter()


async def as_events(
    request: web.Request,
    parts: AsyncGenerator[ReceiptBuilder | ChunkGroup, None],
    reading: Watchdog,
    writer: ReplyWriter = COMPLETION_WRITER,
    before_events: Callable[[], Awaitable[None]] | None = None,
) -> web.StreamResponse:
    """Send the parts as server-sent events in the writer's format. After the head, an error ends the events.

    `before_events` is awaited before the head.
    """
    response: EventStream | None = None
    connection = connection_of(request)
    async with aclosing(parts):
        try:
            with request.app[ADMISSION].cancel_on_drain():
                async for part in parts:
                    if (step := connection.next_step()) is not None:
                        await step
                    try:
                        if isinstance(part, ReceiptBuilder):
                            response = await begin(request, part, before_events)
                        elif response is not None:
                            await response.send(writer.events(part), connection, reading)
                    except ConnectionError:
                        if not connection.reads_on():
                            raise
                    except Exception as error:
                        await parts.athrow(error)  # the receipt states it
                        raise
        except ConnectionError:
            raise  # the caller has disconnected
        except Exception as error:
            if response is None:
                raise
            last = writer.failed(_stated(error, request[INFO].id))
        else:
            assert response is not None, "the path yields the receipt builder first"
            last = writer.end()
    require_caller(request[INFO])
    return await send_last(response, last, reading)


def _stated(error: Exception, request_id: str) -> GatewayError:
    """Return the error that the caller gets. Other exceptions than the gateway's are logged."""
    if isinstance(error, GatewayError):
        return error
    log.error("stream_broke", id=request_id, exc_info=error)
    return internal_error(request_id)
