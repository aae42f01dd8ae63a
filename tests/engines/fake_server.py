"""Model servers of a few lines on real sockets. They record requests and send the replies of the test."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from aiohttp import web

from gateway.engines.http import END_TIMEOUT_S, EngineDeadlines, EngineHttp
from gateway.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
    Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

NAME = "the-engine"
KEY = "sk-very-secret"


@dataclass
class FakeServer:
    """A running server: its URL, and the JSON bodies and headers that it received, by path."""

    url: str = ""
    bodies: list[Any] = field(default_factory=list)
    requests: list[web.Request] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.requests]

    @property
    def connections(self) -> int:
        """The number of connections with requests."""
        return len({id(request.protocol) for request in self.requests})


@asynccontextmanager
async def serving(routes: dict[str, Handler]) -> AsyncIterator[FakeServer]:
    """Serve handlers by path on a free port. A disconnect of the client cancels the handler."""
    fake = FakeServer()

    async def answer(request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        fake.requests.append(request)
        fake.bodies.append(orjson.loads(raw) if raw else None)
        handler = routes.get(request.path)
        return await handler(request) if handler is not None else web.json_response({"error": "no route"}, status=404)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        fake.url = f"http://{host}:{port}"
        yield fake
    finally:
        await runner.cleanup()


@asynccontextmanager
async def listening(talk: Talk) -> AsyncIterator[str]:
    """Listen on a free port, and call `talk` with each connection."""
    open_now: set[asyncio.Task[Any] | None] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        open_now.add(task)
        try:
            await talk(reader, writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            open_now.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        server.close()
        while open_now:
            await asyncio.sleep(0.001)


def talking(talk: Talk) -> AbstractAsyncContextManager[str]:
    """Serve raw bytes: call `talk` with each connection after one request was read."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = re.search(rb"content-length: *([0-9]+)", head)
        await reader.readexactly(int(size[1]) if size else 0)
        await talk(reader, writer)

    return listening(answer)


def reset(writer: asyncio.StreamWriter) -> None:
    """Reset the connection (RST)."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def replying(body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Handler:
    """Return a handler that answers JSON. Text and bytes are sent unchanged."""
    raw = body.encode() if isinstance(body, str) else body if isinstance(body, bytes) else orjson.dumps(body)

    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(body=raw, status=status, headers={"Content-Type": "application/json", **(headers or {})})

    return handler


def streaming(*events: Any, status: int = 200, pause_s: float = 0.0) -> Handler:
    """Return a handler that sends server-sent events in separate writes: bytes unchanged, other values as JSON."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            data = event if isinstance(event, bytes) else orjson.dumps(event)
            await response.write(b"data: " + data + b"\n\n")
            await asyncio.sleep(pause_s)
        await response.write_eof()
        return response

    return handler


@asynccontextmanager
async def engine_http(
    url: str,
    *,
    api_key: str | None = KEY,
    max_reply_bytes: int = 1_000_000,
    end_timeout_s: float = END_TIMEOUT_S,
    **deadlines: float,
) -> AsyncIterator[EngineHttp]:
    """Return the HTTP client of an engine at `url`, with timeouts that only tests that set them reach."""
    http = EngineHttp(
        NAME,
        url,
        api_key=api_key,
        max_reply_bytes=max_reply_bytes,
        end_timeout_s=end_timeout_s,
        deadlines=EngineDeadlines(**{"connect_s": 5, "first_token_s": 5, "idle_s": 5, "total_s": 10, **deadlines}),
    )
    try:
        yield http
    finally:
        await http.close()


async def failure(call: Awaitable[Any], url: str) -> EngineError:
    """Return the error of a call. Assert that it names the engine, and contains neither its address nor its key."""
    with pytest.raises(EngineError) as caught:
        await call
    error = caught.value
    assert NAME in error.message
    assert error.engine == NAME
    for hidden in (url, url.split("/")[2], "127.0.0.1", KEY):
        assert hidden not in error.message
    return error
