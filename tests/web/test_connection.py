"""What never reaches a handler is answered in OpenAI's shape too."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from aiohttp import web

from gateway.admission import Admission
from gateway.metrics import Metrics
from gateway.web import keys
from gateway.web.connection import Runner
from gateway.web.error_body import errors_as_openai

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def hello(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    app = web.Application(middlewares=[errors_as_openai])
    app[keys.ADMISSION] = Admission(1, None, Metrics())  # type: ignore[arg-type]
    app.router.add_post("/", hello)
    runner = Runner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def exchange(raw: bytes, *, hung_up: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Send the bytes, read the reply and, where it is to be the last one, the end of the connection."""
    async with serving() as port, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(raw)
        head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines) if name}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if hung_up:
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
    return int(head.split()[1]), headers, body


def openai_error(headers: dict[str, str], body: bytes) -> dict[str, Any]:
    assert headers["content-type"].startswith("application/json")
    assert headers["x-request-id"].startswith("req_")
    assert headers["x-should-retry"] == "false"
    assert headers["server"] == "gkt-gateway"
    error: dict[str, Any] = orjson.loads(body)["error"]
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize(
    "raw",
    [
        b"canary\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer canary\x01\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\ncanary\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nX-Long: canary" + b"x" * 20_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: canary\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_400_and_not_quoted(raw: bytes) -> None:
    """The line may hold a key. Nothing after it can be read, so the connection ends."""
    status, headers, body = await exchange(raw, hung_up=True)
    assert status == 400
    assert "HTTP" in openai_error(headers, body)["message"]
    assert b"canary" not in body


@pytest.mark.parametrize("path", ["/", "/nothing"])
async def test_an_unknown_expectation_is_417_and_not_quoted(path: str) -> None:
    """Whatever the path."""
    raw = f"POST {path} HTTP/1.1\r\nHost: x\r\nExpect: canary\r\nContent-Length: 0\r\n\r\n"
    status, headers, body = await exchange(raw.encode())
    assert status == 417
    assert "100-continue" in openai_error(headers, body)["message"]
    assert b"canary" not in body


async def test_a_request_that_can_be_read_is_the_handlers() -> None:
    """With the handler's own reply."""
    status, headers, body = await exchange(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nHello")
    assert (status, headers["server"], body) == (200, "gkt-gateway", b"Hello")
