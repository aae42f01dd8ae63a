"""Minimal HTTP/1.1 for an engine: sequential requests on a persistent connection, whole bodies, raw bytes as output.

aiohttp's server takes several times as long for a request. The engine must cost less than the measured system.
"""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    Handle = Callable[["FakeConnection", bytes, bytes], None]

_MAX_HEAD_BYTES = 64_000
_MAX_BODY_BYTES = 2_000_000  # TGI's default
_HEAD_ENDS = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]{1,12})\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close\r\n", re.IGNORECASE)
_CONTINUE = re.compile(rb"\r\nexpect: *100-continue\r\n", re.IGNORECASE)

EVENTS_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
EVENTS_END = b"0\r\n\r\n"


def reply(body: bytes, status: int = 200, headers: bytes = b"", content_type: bytes = b"application/json") -> bytes:
    """Return a whole reply. `headers` are further lines with line ends."""
    return b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n%s\r\n%s" % (
        status,
        HTTPStatus(status).phrase.encode(),
        content_type,
        len(body),
        headers,
        body,
    )


def event(data: bytes) -> bytes:
    """Return a server-sent event as one chunk of a chunked body."""
    return b"%x\r\ndata: %s\n\n\r\n" % (len(data) + 8, data)


class FakeConnection(asyncio.Protocol):
    """A connection of a client.

    Args:
        handle: called with the connection, `METHOD /path` and the body of each request. It answers with `write`, then
            `end`, or passes the connection to another object that does so.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._transport: asyncio.Transport
        self._received = b""
        self._needed = 0  # size of the current request, once its head is parsed
        self._busy = False
        self._last = False  # whether the client wants the connection closed after this reply
        self.on_lost: Callable[[], None] | None = None
        """Called when the client disconnects before `end`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio.Transport.
        self._transport = cast("asyncio.Transport", transport)
        self.write = self._transport.write

    def data_received(self, data: bytes) -> None:
        self._received = self._received + data if self._received else data
        if not self._busy:
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._received = b""
        if self.on_lost is not None:
            lost, self.on_lost = self.on_lost, None
            lost()

    def end(self, *, close: bool = False) -> None:
        """End the reply: read the next request, or close."""
        self._busy = False
        self.on_lost = None
        if close or self._last:
            self._transport.close()
        elif self._received:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        if self._busy or self._transport.is_closing() or len(self._received) < self._needed:
            return
        received = self._received
        ends = received.find(_HEAD_ENDS)
        if ends < 0:
            if len(received) > _MAX_HEAD_BYTES:
                self._refuse(431)
            return
        head, begins = received[: ends + 2], ends + 4
        length = _LENGTH.search(head)
        size = int(length[1]) if length else 0
        if _CHUNKED.search(head):
            self._refuse(411)
        elif size > _MAX_BODY_BYTES:
            self._refuse(413)
        elif len(received) < begins + size:
            if not self._needed and _CONTINUE.search(head):
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._needed = begins + size
        else:
            line = head[: head.index(b"\r\n")]
            request_line, _, version = line.rpartition(b" ")
            if version != b"HTTP/1.1":
                self._refuse(505)
                return
            self._last = _CLOSE.search(head) is not None
            self._received, self._needed, self._busy = received[begins + size :], 0, True
            self._handle(self, request_line, received[begins : begins + size])

    def _refuse(self, status: int) -> None:
        self.write(reply(b"", status, b"Connection: close\r\n"))
        self.end(close=True)
