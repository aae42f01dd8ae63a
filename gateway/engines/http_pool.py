"""HTTP/1.1 calls over pooled connections, with aiohttp's connector and parser and without `aiohttp.ClientSession`.

The session supports cookies, redirects, proxies and streamed request bodies, and writes the body in a separate task.
Engine calls need none of these. Without the session a call takes about a third less CPU time.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.helpers import TimerContext
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multidict import CIMultiDictProxy

# Less than the 5 s after which uvicorn closes an idle connection: a call at that moment would be lost.
_KEEP_ALIVE_S = 4.0
_JOINED_BYTES = 65_536  # up to this size one joined buffer is written faster than two buffers
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # all but the tab
_INFORMATIONAL = range(100, 200)
_SWITCHING_PROTOCOLS = 101
_LOST = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientConnectionResetError)


class _Protocol(ResponseHandler):
    """Reports broken framing to the reader of the body, which aiohttp 3.14 would leave waiting for a timeout."""

    def set_exception(self, *error: Any) -> None:
        payload = self._payload
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(aiohttp.ClientPayloadError("The framing of the body is broken."))
        super().set_exception(*error)


class _Connector(aiohttp.TCPConnector):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = partial(_Protocol, loop=self._loop)  # type: ignore[assignment]

    def close_idle(self) -> None:
        """Close the connections that no call uses."""
        for idle in self._conns.values():
            for protocol, _ in idle:
                protocol.close()


@dataclass(slots=True, eq=False)
class HttpReply:
    """The status, headers and body of a reply. Reading `content` raises TimeoutError after the call's total timeout."""

    status: int
    headers: CIMultiDictProxy[str]
    content: aiohttp.StreamReader
    _connection: aiohttp.connector.Connection
    _deadline: asyncio.TimerHandle

    def close(self) -> None:
        """Close the connection, which ends a wait for the body with an error."""
        self._deadline.cancel()
        self.content.set_exception(aiohttp.ClientConnectionError("The connection was closed."))
        self._connection.close()

    def release(self) -> None:
        """Return the connection to the pool, or close it unless call and reply were transferred completely."""
        self._deadline.cancel()
        protocol = self._connection.protocol
        if protocol is not None and protocol.writing_paused:
            protocol.abort()
            self._connection.close()
        else:
            self._connection.release()


class HttpPool:
    """The connections to one server. `headers` are sent with each call. `total_s` lasts to the end of a reply."""

    def __init__(self, headers: Mapping[str, str], *, connect_s: float, total_s: float) -> None:
        self._headers = headers
        self._total_s = total_s
        self._timeout = aiohttp.ClientTimeout(connect=connect_s)
        # The connector has no limit: admission bounds the calls in flight, and no metric would show a queue here.
        self._connector = _Connector(limit=0, ttl_dns_cache=30, keepalive_timeout=_KEEP_ALIVE_S)
        self._prepared: dict[tuple[str, str], tuple[aiohttp.ClientRequest, bytes]] = {}

    async def close(self) -> None:
        await self._connector.close()

    async def send(self, method: str, url: str, data: bytes | None, headers: Mapping[str, str] | None) -> HttpReply:
        """Send a call and return the reply when its head has arrived. The caller must release the reply.

        A lost connection also closes the idle connections, so that the next call opens a new one.

        Raises:
            aiohttp.ConnectionTimeoutError: no connection within `connect_s`.
            aiohttp.ClientConnectionResetError: the connection closed before the call was written.
            aiohttp.ClientError, OSError, ValueError: another failure.
            TimeoutError: no reply within `total_s`.
        """
        request, head = self._prepared.get((method, url)) or self._prepare(method, url)
        if headers:
            head += _header_lines(headers)
        loop = asyncio.get_running_loop()
        timer = TimerContext(loop)
        deadline = loop.call_later(self._total_s, timer.timeout)
        connection = None
        try:
            with timer:
                connection = await self._connect(request)
                protocol, transport = connection.protocol, connection.transport
                if protocol is None or transport is None or transport.is_closing():
                    raise aiohttp.ClientConnectionResetError("The connection closed before the call was written.")
                protocol.set_response_params(timer=timer, read_until_eof=True)
                if data is None:
                    transport.write(head + b"\r\n")
                else:
                    head += b"Content-Length: %d\r\n\r\n" % len(data)
                    transport.writelines((head, data) if len(data) > _JOINED_BYTES else (head + data,))
                message, content = await protocol.read()
                while message.code in _INFORMATIONAL and message.code != _SWITCHING_PROTOCOLS:
                    message, content = await protocol.read()
        except BaseException as error:
            deadline.cancel()
            if connection is not None:
                connection.close()
            if isinstance(error, _LOST):
                self._connector.close_idle()
            if isinstance(error, aiohttp.http.HttpProcessingError):
                raise aiohttp.ClientPayloadError("The reply is not valid HTTP.") from error
            raise
        return HttpReply(message.code, message.headers, content, connection, deadline)

    async def _connect(self, request: aiohttp.ClientRequest) -> aiohttp.connector.Connection:
        try:
            return await self._connector.connect(request, [], self._timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError("The connection took too long.") from error

    def _prepare(self, method: str, url: str) -> tuple[aiohttp.ClientRequest, bytes]:
        """Return the request that identifies the server to the connector, and the head of each call to the URL."""
        request = aiohttp.ClientRequest(method, URL(url), headers=self._headers, loop=asyncio.get_running_loop())
        request.headers.pop("Content-Length", None)  # set for a call without a body
        line = f"{method} {request.url.raw_path_qs} HTTP/1.1\r\n"
        prepared = request, line.encode() + _header_lines(request.headers)
        self._prepared[method, url] = prepared
        return prepared


def _header_lines(headers: Mapping[str, str]) -> bytes:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    if any(map(_CONTROL.search, lines)):
        raise ValueError("A request header contains a control character.")
    return "".join(f"{line}\r\n" for line in lines).encode()
