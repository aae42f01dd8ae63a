"""Slow callers: a process does not wait without limit for them."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

from gateway.api import body, events, keys
from gateway.api.connection import ListenerTimes, connection_of
from gateway.api.error_body import render_errors
from gateway.api.runner import Runner
from gateway.pipeline.admission import Admission
from gateway.telemetry.metrics import Metrics
from tests.accounting import receipt_builders

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.protocol.content_run import ChunkGroup


@asynccontextmanager
async def serving(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]], **options: Any
) -> AsyncIterator[int]:
    """Run one handler behind the gateway's middleware; yield the port."""
    app = web.Application(middlewares=[render_errors])
    app[keys.METRICS] = metrics = Metrics()
    app[keys.ADMISSION] = Admission(1, None, metrics)  # type: ignore[arg-type]
    app.router.add_post("/", handler)
    runner = Runner(app, metrics=metrics, listener="public", max_connections=9, access_log=None,
                    handler_cancellation=True, shutdown_timeout=0.1, **options)  # fmt: skip
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("last", [False, True])
async def test_large_events_are_written_in_parts(*, last: bool) -> None:
    """Large writes block the event loop. Events of /v1/responses repeat the request's instructions."""
    sizes: list[int] = []

    class LargeEvents(events.CompletionWriter):
        def events(self, group: ChunkGroup) -> bytes:
            return b"a" if last else b"x" * 3_000_000

        def end(self) -> bytes:
            return b"x" * 3_000_000 if last else b"a"

    async def parts() -> AsyncGenerator[ReceiptBuilder | ChunkGroup, None]:
        yield receipt_builders.guided()
        yield []

    async def large(request: web.Request) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        write = transport.write

        def noted(data: bytes) -> None:
            sizes.append(len(data))
            write(data)

        with pytest.MonkeyPatch.context() as patch, events.reads(request) as reading:
            patch.setattr(transport, "write", noted)
            patch.setattr(transport, "writelines", lambda parts: noted(b"".join(parts)))
            return await events.as_events(request, parts(), reading, LargeEvents())

    async with (
        serving(large) as port,
        aiohttp.ClientSession() as session,
        session.post(f"http://127.0.0.1:{port}/") as response,
    ):
        sent = await response.read()
    assert (sent.count(b"x"), sent.count(b"a")) == (3_000_000, 1)
    assert max(sizes) < 300_000


@pytest.mark.parametrize("framed", [False, True])
async def test_a_connection_of_a_caller_who_does_not_read_is_closed(*, framed: bool) -> None:
    """The connection is aborted, and the handler is canceled as at a disconnect."""
    ended: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def flood(request: web.Request) -> web.StreamResponse:
        response = events.EventStream()
        response.enable_chunked_encoding()
        response.writer = await response.prepare(request)
        try:
            with events.reads(request) as reading:
                while framed:
                    await response.send(b"x" * 1_000_000, connection_of(request), reading, within_s=0.2)
                while True:
                    await events.send(response, b"x" * 1_000_000, reading, within_s=0.2)
        except BaseException as error:
            ended.set_result(error)
            raise

    async with serving(flood) as port:
        with socket.create_connection(("127.0.0.1", port)) as caller:
            caller.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            async with asyncio.timeout(10):
                assert isinstance(await ended, ConnectionError | asyncio.CancelledError)


async def test_a_body_that_does_not_arrive_is_408() -> None:
    """The error has OpenAI's shape, so that the SDK handles it.

    The connection ends, since the rest may still arrive.
    """

    async def read(request: web.Request) -> web.StreamResponse:
        return web.Response(body=await body.read_body(request))

    async with serving(read, times=ListenerTimes(body_within_s=0.2)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
        await writer.drain()
        async with asyncio.timeout(10):
            assert await reader.readline() == b"HTTP/1.1 408 Request Timeout\r\n"
            assert b"\r\nConnection: close\r\n" in await reader.readuntil(b"\r\n\r\n")
            assert b'"code":"request_timeout"' in await reader.read(1000)
        writer.close()
        await writer.wait_closed()
