"""A JSON reply is sent as aiohttp sends it."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import pytest
from aiohttp import web

from gateway.api.connection import ListenerTimes
from gateway.api.direct_reply import DirectReply
from tests.api.test_completions import serving

HEADERS = {"x-gkt-mode": "student", "x-gkt-total-ms": "1.2"}


async def answer(request: web.Request) -> web.Response:
    body = b'"' + b"x" * int(request.headers["X-Size"]) + b'"'
    if request.headers["X-Kind"] == "gateway":
        return DirectReply(body, dict(HEADERS))
    return web.Response(body=body, content_type="application/json", headers=HEADERS)


async def exchange(port: int, kind: str, line: str, fields: str, size: int) -> list[str]:
    """Send a request twice, or once if the connection ends. Return the lines of the replies without ids and times."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST / {line}\r\nHost: x\r\nX-Kind: {kind}\r\nX-Size: {size}\r\nContent-Length: 0\r\n{fields}\r\n"
    lines: list[str] = []
    try:
        async with asyncio.timeout(10):
            for _ in range(2):
                writer.write(head.encode())
                while (text := (await reader.readline()).decode().rstrip()) != "":
                    lines.append(text)
                    if text.lower().startswith("content-length"):
                        length = int(text.split()[1])
                lines.append((await reader.readexactly(length)).decode())
                if not fields.startswith("Connection: keep") and fields + line != "HTTP/1.1":
                    assert await reader.read() == b""
                    break
    finally:
        writer.close()
    assert lines[0].endswith("200 OK")
    return [line for line in lines if not line.lower().startswith(("date:", "x-request-id:"))]


@pytest.mark.parametrize("size", [0, 100_000, 3_000_000])
@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("HTTP/1.1", ""),
        ("HTTP/1.1", "Connection: close\r\n"),
        ("HTTP/1.0", ""),
        ("HTTP/1.0", "Connection: keep-alive\r\n"),
    ],
)
async def test_a_json_reply_has_the_bytes_of_aiohttp(line: str, fields: str, size: int) -> None:
    async with serving(answer) as port:
        ours, theirs = [await exchange(port, kind, line, fields, size) for kind in ("gateway", "aiohttp")]
    assert ours == theirs


async def test_the_usual_reply_is_sent_without_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DirectReply, "prepare", None)
    async with serving(answer) as port:
        lines = await exchange(port, "gateway", "HTTP/1.1", "", 10)
    assert lines[-1] == f'"{"x" * 10}"'


async def test_a_caller_who_does_not_read_a_json_reply_is_disconnected() -> None:
    handled = asyncio.Event()

    async def long(_: web.Request) -> web.Response:
        handled.set()
        return DirectReply(b"x" * 30_000_000, {})

    async with serving(long, times=ListenerTimes(read_within_s=0.2)) as port:
        with socket.create_connection(("127.0.0.1", port)) as caller:
            caller.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            async with asyncio.timeout(10):
                await handled.wait()
                await asyncio.sleep(0.5)
            received = 0
            caller.settimeout(10)
            with suppress(ConnectionError):
                while part := caller.recv(1_000_000):
                    received += len(part)
    assert received < 30_000_000
