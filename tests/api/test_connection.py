"""Requests that never reach a handler get errors in OpenAI's shape too."""

from __future__ import annotations

import asyncio
import resource
import threading
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import orjson
import pytest
from aiohttp import web

from gateway.api import keys
from gateway.api.body import read_body
from gateway.api.connection import MAX_HEAD_BYTES, MAX_HEADERS, MAX_LINE_BYTES, ListenerTimes, connection_of
from gateway.api.decoding import BODY_DECODER, BodyDecoder, read_parsed
from gateway.api.error_body import render_errors
from gateway.api.loop_scheduler import LoopScheduler
from gateway.api.runner import Runner
from gateway.pipeline.admission import Admission
from gateway.policy.book import Caller
from gateway.policy.schema import TenantPolicy
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def hello(request: web.Request) -> web.Response:
    return web.Response(body=await read_body(request))


GATE = web.AppKey("gate", threading.Event)


async def holds(_: web.Request) -> web.Response:
    await asyncio.sleep(60)
    return web.Response()


async def reads_no_body(_: web.Request) -> web.Response:
    return web.Response()


@asynccontextmanager
async def serving(
    *, max_connections: int = 100, times: ListenerTimes = ListenerTimes(head_within_s=60.0), **options: Any
) -> AsyncIterator[int]:
    app = web.Application(middlewares=[render_errors], client_max_size=1_000_000)
    app[keys.METRICS] = metrics = Metrics()
    app[keys.ADMISSION] = Admission(1, None, metrics)  # type: ignore[arg-type]
    app.router.add_post("/", hello)
    app.router.add_post("/holds", holds)
    app.router.add_get("/open", reads_no_body)
    app.router.add_post("/tenant", of_tenant)
    app.router.add_post("/decoded", decoded)
    app[BODY_DECODER] = BodyDecoder()
    app[GATE] = gate = threading.Event()
    runner = Runner(
        app,
        metrics=metrics,
        listener="public",
        max_connections=max_connections,
        scheduler=LoopScheduler(metrics),
        times=times,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=0.1,
        **options,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        gate.set()
        await runner.cleanup()


Reply = tuple[int, dict[str, str], bytes]


async def exchange(raw: bytes, *, hung_up: bool = False) -> Reply:
    """Send the bytes and read the reply. If it is the last reply, wait for the end of the connection."""
    async with serving() as port:
        return await ask(port, raw, hung_up=hung_up)


async def ask(port: int, raw: bytes, *, hung_up: bool = False) -> Reply:
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(raw)
            reply = await read_reply(reader)
            if hung_up:
                assert await reader.read() == b""
        finally:
            writer.close()
    return reply


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines) if name}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
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
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: canary\r\n\r\n",
    ],
)
async def test_invalid_http_is_a_400_without_a_quote(raw: bytes) -> None:
    """The line may hold a key. Nothing after it can be parsed, so the connection ends."""
    status, headers, body = await exchange(raw, hung_up=True)
    assert status == 400
    assert "HTTP" in openai_error(headers, body)["message"]
    assert b"canary" not in body


@pytest.mark.parametrize("path", ["/", "/nothing"])
async def test_an_unknown_expectation_is_417_and_not_quoted(path: str) -> None:
    """Any path gets the 417."""
    raw = f"POST {path} HTTP/1.1\r\nHost: x\r\nExpect: canary\r\nContent-Length: 0\r\n\r\n"
    status, headers, body = await exchange(raw.encode())
    assert status == 417
    assert "100-continue" in openai_error(headers, body)["message"]
    assert b"canary" not in body


async def test_a_request_that_can_be_read_is_the_handlers() -> None:
    """A valid request gets the handler's reply."""
    status, headers, body = await exchange(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nHello")
    assert (status, headers["server"], body) == (200, "gkt-gateway", b"Hello")


def request(*headers: bytes, line: bytes = b"POST / HTTP/1.1", body: bytes = b"") -> bytes:
    return b"\r\n".join([line, b"Host: x", *headers, b"", body])


CHUNKED = b"5\r\nHello\r\n0\r\n\r\n"
HEADERS = [b"X-%d: canary" % number for number in range(MAX_HEADERS)]
LONG = b"canary" + b"x" * MAX_LINE_BYTES


@pytest.mark.parametrize(
    ("raw", "limit"),
    [
        (request(line=b"POST /" + LONG + b" HTTP/1.1"), MAX_LINE_BYTES),
        (request(b"X-Long: " + LONG), MAX_LINE_BYTES),
        (request(LONG + b": x"), MAX_LINE_BYTES),
        (request(*HEADERS), MAX_HEADERS),
    ],
    ids=["request-line", "value", "name", "headers"],
)
async def test_a_head_beyond_its_limits_is_431_and_not_quoted(raw: bytes, limit: int) -> None:
    """The error names the limit."""
    status, headers, body = await exchange(raw, hung_up=True)
    error = openai_error(headers, body)
    assert (status, error["code"]) == (431, "request_too_large")
    assert str(limit) in error["message"]
    assert b"canary" not in body


async def test_a_head_of_many_long_lines_is_431_before_its_end() -> None:
    """Each line and their number are within the limits, but the size of an unfinished head is bounded."""
    line = b"X-Long: " + b"x" * 8000 + b"\r\n"
    async with serving() as port, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\n")
        sent = 0
        while sent < 4 * MAX_HEAD_BYTES:
            writer.write(line)
            sent += len(line)
            await asyncio.sleep(0.001)  # or it comes as one
            if reader._buffer:  # type: ignore[attr-defined]
                break
        status, headers, body = await read_reply(reader)
        writer.close()
    assert status == 431
    assert str(MAX_HEAD_BYTES) in openai_error(headers, body)["message"]
    assert sent < 2 * MAX_HEAD_BYTES


@pytest.mark.parametrize("rest", [0, 16_000])
@pytest.mark.parametrize(
    ("first", "requests"),
    [
        (b"", 0),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 1),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" * 40, 40),
    ],
    ids=["alone", "second", "behind_more_than_aiohttp_parses_at_once"],
)
async def test_a_head_that_arrives_at_once_is_431_as_well(first: bytes, requests: int, rest: int) -> None:
    """A head that is complete after one read from the socket has the same limit, also if a small read completes it.

    Behind another request the connection ends after that request's reply.
    """
    lines = [b"X-%d: %s" % (number, b"x" * 8000) for number in range(9)]
    received: list[bytes] = []
    app = web.Application()
    app[keys.METRICS] = metrics = Metrics()
    app[keys.ADMISSION] = Admission(1, None, metrics)  # type: ignore[arg-type]

    async def reached(_: web.Request) -> web.Response:
        received.append(b"")
        return web.Response()

    app.router.add_post("/", reached)
    runner = Runner(app, metrics=metrics, listener="public", max_connections=1, access_log=None)
    await runner.setup()
    server = runner.server
    assert server is not None
    transport = Mock(asyncio.Transport)
    transport.is_closing.return_value = False
    connection = server()
    connection.connection_made(transport)
    data = first + request(*lines, b"Content-Length: 0")
    connection.data_received(data[: len(data) - rest])
    if rest:
        if requests > 1:
            async with asyncio.timeout(10):
                while len(received) < requests:
                    await asyncio.sleep(0)
        connection.data_received(data[len(data) - rest :])
    async with asyncio.timeout(10):
        while not transport.close.called:
            await asyncio.sleep(0)
    written = b"".join(bytes(part) for call in transport.writelines.call_args_list for part in call.args[0])
    written += b"".join(call.args[0] for call in transport.write.call_args_list)
    await runner.cleanup()
    if first:
        assert written.startswith(b"HTTP/1.1 200")
    else:
        assert b" 431 " in written
        assert str(MAX_HEAD_BYTES).encode() in written
    assert min(requests, 1) <= len(received) <= requests


async def test_a_pipelined_head_has_the_same_limit() -> None:
    """The bytes count while the first request runs. The connection ends after that request's reply."""
    async with serving() as port, asyncio.timeout(10):
        reader, writer = await send(port, "acme", "/tenant?seconds=0.5")
        writer.write(b"POST /tenant HTTP/1.1\r\nHost: x\r\nX-Tenant: acme\r\nContent-Length: 0\r\n")
        for _ in range(4):
            await asyncio.sleep(0.01)  # or it comes as one
            writer.write((b"X-Long: " + b"x" * 8000 + b"\r\n") * 4)
        writer.write(b"\r\n")
        assert (await read_reply(reader))[0] == 200
        assert b" 200 " not in await reader.readline()
        writer.close()


async def test_a_request_pipelined_after_a_large_body_is_answered() -> None:
    """The body's bytes do not count as the next head's."""
    async with serving() as port, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(request(b"Content-Length: 600000"))
            for _ in range(12):
                await asyncio.sleep(0.001)
                writer.write(b"x" * 50_000)
        assert [(await read_reply(reader))[0] for _ in range(2)] == [200, 200]
        writer.close()


@pytest.mark.parametrize("part", [b"POST /", b"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: canary"])
async def test_a_head_that_does_not_come_to_its_end_is_408(part: bytes) -> None:
    """The limit applies to any size, and to a head that arrives byte by byte."""
    async with serving(times=ListenerTimes(head_within_s=0.3)) as port, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(part)
        while not reader._buffer:  # type: ignore[attr-defined]
            writer.write(b"x")
            await asyncio.sleep(0.02)
        # A byte that is sent after the reply resets the connection. The reader would raise that in place of the reply.
        while not (reader._eof or reader.exception()):  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
        received = asyncio.StreamReader()
        received.feed_data(bytes(reader._buffer))  # type: ignore[attr-defined]
        received.feed_eof()
        status, headers, body = await read_reply(received)
        assert await received.read() == b""
        writer.close()
    assert (status, orjson.loads(body)["error"]["code"]) == (408, "request_timeout")
    assert "x-should-retry" not in headers
    assert b"canary" not in body


async def test_the_second_head_of_a_connection_has_its_time_too() -> None:
    """The first head's timer has stopped; an idle connection has none."""
    async with serving(times=ListenerTimes(head_within_s=0.3)) as port, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\n")
            await asyncio.sleep(0.05)
            writer.write(b"Content-Length: 0\r\n\r\n")
            assert (await read_reply(reader))[0] == 200
            await asyncio.sleep(0.4)
        writer.write(b"POST ")
        assert (await read_reply(reader))[0] == 408
        writer.close()


async def test_idle_connections_do_not_block_new_ones() -> None:
    """The oldest waiting connection is closed for a new one; the number of connections never exceeds the limit."""
    async with serving(max_connections=3) as port, asyncio.timeout(10):
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for _, writer in idle:
            writer.write(b"POST / HTTP/1.1\r\n")
        await asyncio.sleep(0.05)
        assert (await ask(port, request(b"Content-Length: 0")))[0] == 200
        assert await idle[0][0].read() == b""
        for _, writer in idle[1:]:
            writer.write(b"Host: x\r\nContent-Length: 0\r\n\r\n")
        assert [(await read_reply(reader))[0] for reader, _ in idle[1:]] == [200, 200]
        for _, writer in idle:
            writer.close()


async def test_a_connection_too_many_is_503_while_all_others_are_at_work() -> None:
    """No active connection is closed for the new one."""
    async with serving(max_connections=2) as port, asyncio.timeout(10):
        busy = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for _, writer in busy:
            writer.write(request(b"Content-Length: 0", line=b"POST /holds HTTP/1.1"))
        await asyncio.sleep(0.05)
        status, headers, body = await ask(port, b"", hung_up=True)
        assert (status, headers["x-should-retry"]) == (503, "true")
        assert int(headers["retry-after"]) >= 1
        assert orjson.loads(body)["error"]["code"] == "overloaded"
        for reader, writer in busy:
            assert not reader.at_eof()
            writer.close()
        await asyncio.sleep(0.05)
        assert (await ask(port, request(b"Content-Length: 0")))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: chunked", b"Content-Length: 5"],
        [b"Content-Length: 5", b"Content-Length: 6"],
        [b"Content-Length: 5", b"Content-Length: 5"],
        [b"Content-Length: 5, 5"],
        [b"Content-Length: +5"],
        [b"Content-Length: 0x5"],
        [b"Content-Length : 5"],
        [b"Transfer-Encoding: chunked, identity"],
        [b"Transfer-Encoding: xchunked"],
        [b"Transfer-Encoding: chunked, chunked"],
        [b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"],
        [b"Content-Length: 5\nX: y"],
        [b"X: y\rContent-Length: 5"],
        [b" X: folded"],
        [b"Host: y"],
    ],
    ids=lambda headers: b"; ".join(headers).decode(),
)
async def test_a_request_that_two_servers_could_read_differently_is_refused(headers: list[bytes]) -> None:
    """No request can hide in the body of another one; bytes after it are not parsed as the next request."""
    hidden = b"0\r\n\r\nPOST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    status, _, _ = await exchange(request(*headers, body=hidden), hung_up=True)
    assert status == 400


@pytest.mark.parametrize("line", [b"POST / HTTP/1.1", b"GET /open HTTP/1.1"])
async def test_a_transfer_coding_that_is_not_decoded_is_refused(line: bytes) -> None:
    """The handler may or may not read the body. aiohttp accepts any coding before `chunked` and does not decode it."""
    raw = request(b"Transfer-Encoding: gzip, chunked", line=line, body=CHUNKED)
    status, headers, body = await exchange(raw, hung_up=True)
    assert status == 400
    assert "Content-Encoding" in openai_error(headers, body)["message"]


async def test_a_chunked_body_is_read() -> None:
    status, _, body = await exchange(request(b"Transfer-Encoding: Chunked", body=CHUNKED))
    assert (status, body) == (200, b"Hello")


async def test_requests_that_come_together_are_answered_in_order() -> None:
    """The number of queued requests is bounded; the rest stays in the socket."""
    count = 300
    async with serving() as port, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"".join(request(b"Content-Length: 3", body=b"%03d" % number) for number in range(count)))
        bodies = [(await read_reply(reader))[2] for _ in range(count)]
        writer.close()
    assert bodies == [b"%03d" % number for number in range(count)]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_the_limit_of_a_compressed_body_applies_to_its_decoded_size(encoding: str) -> None:
    """200 MB in 200 kB are rejected at the limit, and are never in memory."""
    wbits = zlib.MAX_WBITS | 16 if encoding == "gzip" else zlib.MAX_WBITS
    packer = zlib.compressobj(wbits=wbits)
    bomb = b"".join(packer.compress(bytes(1_000_000)) for _ in range(200)) + packer.flush()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    heads = b"Content-Encoding: " + encoding.encode(), b"Content-Length: %d" % len(bomb)
    status, _, body = await exchange(request(*heads, body=bomb))
    assert (status, orjson.loads(body)["error"]["code"]) == (413, "request_too_large")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


async def test_a_body_in_an_unknown_encoding_is_not_decoded() -> None:
    """The undecoded bytes are parsed as JSON."""
    status, _, body = await exchange(request(b"Content-Encoding: canary", b"Content-Length: 5", body=b"Hello"))
    assert (status, body) == (200, b"Hello")


def policy(tenant: str) -> TenantPolicy:
    route = {"model": "chat", "mode": "student", "student": "small", "baseline": "small"}
    return TenantPolicy.model_validate({"tenant": tenant, "routes": [route]})


async def of_tenant(request: web.Request) -> web.Response:
    """Answer `size` bytes to the tenant named in the request; wait if requested."""
    connection = connection_of(request)
    assert connection is not None
    connection.authenticated(policy(request.headers["X-Tenant"]))
    await read_body(request)
    await asyncio.sleep(float(request.query.get("seconds", 0)))
    return web.Response(body=bytes(int(request.query.get("size", 0))))


async def decoded(request: web.Request) -> web.Response:
    """Decode the body of the tenant named in the request. Decoding lasts until the listener ends."""
    connection, tenant = connection_of(request), policy(request.headers["X-Tenant"])
    assert connection is not None
    connection.authenticated(tenant)
    await read_parsed(request, Mock(Caller, policy=tenant), lambda _: request.app[GATE].wait(20))
    return web.Response()


Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def send(port: int, tenant: str, path: str, length: int = 0, body: bytes = b"") -> Opened:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    heads = [b"X-Tenant: " + tenant.encode(), b"Content-Length: %d" % length]
    writer.write(request(*heads, line=f"POST {path} HTTP/1.1".encode(), body=body))
    await writer.drain()
    return reader, writer


def close(opened: list[Opened]) -> None:
    for _, writer in opened:
        writer.close()


async def test_a_tenant_that_holds_all_connections_makes_room_for_another_one() -> None:
    """The flood's idle connection is closed; the quiet tenant's older one is not."""
    async with serving(max_connections=8) as port, asyncio.timeout(10):
        opened = [await send(port, "quiet", "/tenant")]
        assert (await read_reply(opened[0][0]))[0] == 200
        for _ in range(7):
            opened.append(await send(port, "flood", "/tenant"))
            assert (await read_reply(opened[-1][0]))[0] == 200
        opened.append(await send(port, "other", "/tenant"))
        assert (await read_reply(opened[-1][0]))[0] == 200
        assert await opened[1][0].read() == b""
        opened[0][1].write(request(b"X-Tenant: quiet", b"Content-Length: 0", line=b"POST /tenant HTTP/1.1"))
        assert (await read_reply(opened[0][0]))[0] == 200
        close(opened)


async def test_unfinished_bodies_do_not_take_all_connections() -> None:
    """Beyond a quarter of the connections the largest tenant's oldest body gets a 408; another tenant's stays."""
    async with serving(max_connections=8) as port, asyncio.timeout(10):
        opened = [await send(port, "quiet", "/tenant", 3, b"a")]
        for _ in range(6):
            opened.append(await send(port, "flood", "/tenant", 3, b"a"))
            await asyncio.sleep(0.02)
        status, headers, body = await read_reply(opened[1][0])
        assert (status, orjson.loads(body)["error"]["code"]) == (408, "request_timeout")
        assert "unfinished" in orjson.loads(body)["error"]["message"]
        assert headers["connection"] == "close"
        opened[0][1].write(b"bc")
        assert (await read_reply(opened[0][0]))[0] == 200
        close(opened)


async def test_unfinished_bodies_do_not_fill_the_memory() -> None:
    """Beyond a number of bytes the largest tenant's oldest body gets a 408. Another tenant's and a newer one stay."""
    async with serving(unfinished_bytes=600_000) as port, asyncio.timeout(10):
        opened = [await send(port, "quiet", "/tenant", 200_001, b"x" * 200_000)]
        await asyncio.sleep(0.1)
        for _ in range(2):
            opened.append(await send(port, "flood", "/tenant", 300_001, b"x" * 300_000))
            await asyncio.sleep(0.1)
        status, _, body = await read_reply(opened[1][0])
        assert (status, orjson.loads(body)["error"]["code"]) == (408, "request_timeout")
        for reader, writer in (opened[0], opened[2]):
            writer.write(b"x")
            assert (await read_reply(reader))[0] == 200
        close(opened)


MANY_VALUES = b"1," * 20_000
"""A body that arrives with its head and is decoded in the thread."""


async def waiting(port: int, tenant: str, body: bytes = MANY_VALUES) -> Opened:
    """Send a body that waits to be decoded."""
    opened = await send(port, tenant, "/decoded", len(body), body)
    await asyncio.sleep(0.05)
    return opened


async def is_not_decoded(opened: Opened) -> None:
    status, _, body = await read_reply(opened[0])
    assert (status, orjson.loads(body)["error"]["code"]) == (503, "overloaded")
    assert await opened[0].read() == b""


async def test_a_body_that_waits_to_be_decoded_makes_room_for_another_tenant() -> None:
    """The waiting request holds no slot of another limit. A body that is being decoded continues."""
    async with serving(max_connections=8) as port, asyncio.timeout(10):
        opened = [await waiting(port, "flood") for _ in range(2)]
        opened += [await send(port, "flood", "/tenant?seconds=60") for _ in range(6)]
        await asyncio.sleep(0.05)
        opened.append(await send(port, "quiet", "/tenant"))
        assert (await read_reply(opened[-1][0]))[0] == 200
        await is_not_decoded(opened[1])
        close(opened)


async def test_bodies_that_wait_to_be_decoded_are_bounded_as_unfinished_ones() -> None:
    """The largest tenant's oldest waiting body gets a 503; another tenant's stays."""
    async with serving(max_connections=16) as port, asyncio.timeout(10):
        quiet = [await waiting(port, "quiet") for _ in range(2)]
        flood = [await waiting(port, "flood") for _ in range(5)]
        await is_not_decoded(flood[1])
        assert not any(reader._buffer for reader, _ in [*quiet, flood[0], *flood[2:]])  # type: ignore[attr-defined]
        close(quiet + flood)


async def test_bodies_that_wait_to_be_decoded_do_not_fill_the_memory() -> None:
    """A body's bytes count from the first one that arrived."""
    async with serving(unfinished_bytes=1_000_000) as port, asyncio.timeout(10):
        opened = [await waiting(port, "flood", b" " * 400_000) for _ in range(4)]
        await is_not_decoded(opened[1])
        assert not any(reader._buffer for reader, _ in [opened[0], *opened[2:]])  # type: ignore[attr-defined]
        close(opened)


async def test_a_body_that_trickles_is_408() -> None:
    """Each interval requires its number of bytes, also after the first."""
    async with serving(times=ListenerTimes(body_interval_s=0.2)) as port, asyncio.timeout(10):
        reader, writer = await send(port, "acme", "/tenant", 100_000, b"x" * 10_000)
        await asyncio.sleep(0.1)
        writer.write(b"x" * 10_000)
        while not reader._buffer:  # type: ignore[attr-defined]
            writer.write(b"x")
            await asyncio.sleep(0.02)
        status, _, body = await read_reply(reader)
        assert (status, orjson.loads(body)["error"]["code"]) == (408, "request_timeout")
        assert "bytes of the body" in orjson.loads(body)["error"]["message"]
        writer.close()


async def test_a_reply_that_is_not_read_ends_its_connection() -> None:
    """A caller that reads later gets a truncated reply."""
    async with serving(times=ListenerTimes(read_within_s=0.2)) as port, asyncio.timeout(10):
        reader, writer = await send(port, "acme", "/tenant?size=50000000")
        await asyncio.sleep(0.5)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(50_000_000)
        writer.close()


async def test_replies_that_are_not_read_are_bounded_and_the_tenant_with_most_pays() -> None:
    """The flood's oldest reply is dropped; a quiet tenant's slow reader gets its whole reply."""
    async with serving(max_connections=32) as port, asyncio.timeout(20):
        quiet, writer = await send(port, "quiet", "/tenant?size=20000000")
        await asyncio.sleep(0.1)
        flood = [await send(port, "flood", "/tenant?size=20000000")]
        await asyncio.sleep(0.1)
        flood += [await send(port, "flood", "/tenant?size=20000000") for _ in range(3)]
        await asyncio.sleep(0.1)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await flood[0][0].readexactly(20_000_000)
        status, _, body = await read_reply(quiet)
        assert (status, len(body)) == (200, 20_000_000)
        close([*flood, (quiet, writer)])


async def test_a_large_body_takes_a_step_for_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another tenant's step runs between the parts. The total cost follows the size."""
    costs: list[float] = []
    enter = LoopScheduler.enter

    def counted(scheduler: LoopScheduler, tenant: str, weight: float, cost: float = 1.0) -> Any:
        costs.append(cost)
        return enter(scheduler, tenant, weight, cost)

    monkeypatch.setattr(LoopScheduler, "enter", counted)
    async with serving() as port, asyncio.timeout(10):
        reader, writer = await send(port, "acme", "/tenant", 900_000, b"x" * 900_000)
        assert (await read_reply(reader))[0] == 200
        writer.close()
    before, *parts, after = costs
    assert (before, 1.0 <= after < 2.0) == (1.0, True)
    assert len(parts) >= 3
    assert before + sum(parts) + after == pytest.approx(2 + 900_000 / 65_536)


async def test_the_time_that_the_gateway_does_not_read_is_not_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that waits for other tenants' steps does not time out."""

    def slow(_: LoopScheduler, __: str, ___: float, cost: float = 1.0) -> asyncio.Future[None] | None:
        if cost == 1.0:
            return None
        loop = asyncio.get_running_loop()
        step = loop.create_future()
        loop.call_later(0.25, step.set_result, None)
        return step

    monkeypatch.setattr(LoopScheduler, "enter", slow)
    async with serving(times=ListenerTimes(body_within_s=0.1, body_interval_s=0.1)) as port, asyncio.timeout(20):
        reader, writer = await send(port, "acme", "/tenant", 600_000, b"x" * 600_000)
        assert (await read_reply(reader))[0] == 200
        writer.close()
