"""HTTP/1.1 calls over pooled connections, with aiohttp's connector and parser and without `aiohttp.ClientSession`.

The session supports cookies, redirects, proxies and streamed request bodies, and writes the body in a separate task.
Engine calls need none of these. Without the session a call takes about a third less CPU time.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp.connector import Connection as _Connection
    from aiohttp.http import RawResponseMessage
    from multidict import CIMultiDictProxy

# Less than the 5 s after which uvicorn closes an idle connection: a call at that moment would be lost.
_KEEP_ALIVE_S = 4.0
_JOINED_BYTES = 65_536  # up to this size one joined buffer is written faster than two buffers
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # all but the tab
_INFORMATIONAL = range(100, 200)
_SWITCHING_PROTOCOLS = 101
_MAX_INFORMATIONAL = 32  # per call; servers send one or two
_PARSED_BYTES = 8_192  # parsed at once: at most 480 replies, which take 5 ms
_LOST = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientConnectionResetError)


class TooManyInformational(aiohttp.ClientPayloadError):
    """The server sent more 1xx replies than a call may have."""

    def __init__(self) -> None:
        super().__init__(f"more than {_MAX_INFORMATIONAL} informational replies (1xx) to one call")


class _Protocol(ResponseHandler):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._unparsed = b""
        self._informational = 0
        self._has_reply = False

    def expect_reply(self) -> None:
        """Prepare for the reply of the next call. A new parser ignores bytes that arrived after an earlier reply."""
        self._informational, self._has_reply = 0, False
        self.set_response_params(read_until_eof=True)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes in parts. Stop while reading is paused, and after the connection was closed."""
        if not self._unparsed and len(data) <= _PARSED_BYTES:
            super().data_received(data)
            return
        self._unparsed += data
        while self._unparsed and self.is_connected():
            part, self._unparsed = self._unparsed[:_PARSED_BYTES], self._unparsed[_PARSED_BYTES:]
            super().data_received(part)
            if self._reading_paused:
                return
        self._unparsed = b""

    def feed_data(self, data: tuple[RawResponseMessage, aiohttp.StreamReader], size: int = 0) -> None:
        """Keep the reply. Skip 1xx replies before it, and close the connection after too many or for another reply."""
        code = data[0].code
        if self._has_reply:
            self._end()
        elif code not in _INFORMATIONAL or code == _SWITCHING_PROTOCOLS:
            self._has_reply = True
            super().feed_data(data, size)
        else:
            self._informational += 1
            if self._informational > _MAX_INFORMATIONAL and self._exception is None:
                self.set_exception(TooManyInformational())
                self._end()

    def _end(self) -> None:
        """Close the connection after the replies that it delivered."""
        self.force_close()
        if self.transport is not None:
            self.transport.close()

    def set_exception(self, *error: Any) -> None:
        """Report broken framing to the reader of the body, which aiohttp 3.14 would leave waiting for a timeout."""
        payload = self._payload
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(aiohttp.ClientPayloadError("The framing of the body is broken."))
        super().set_exception(*error)

    def time_out(self) -> None:
        """Raise TimeoutError in the reader of the head or of the body."""
        error = TimeoutError()
        if self._payload is not None:
            self._payload.set_exception(error)
        self.set_exception(error)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Skip aiohttp's steps if reading is not paused: each read of a body would run the parser on no data."""
        if self._reading_paused:
            super().resume_reading(resume_parser)


class _Connector(aiohttp.TCPConnector):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = partial(_Protocol, loop=self._loop)  # type: ignore[assignment]


@dataclass(slots=True, eq=False)
class HttpReply:
    """The status, headers and body of a reply. Reading `content` raises TimeoutError after the call's total timeout."""

    status: int
    headers: CIMultiDictProxy[str]
    content: aiohttp.StreamReader
    _pool: HttpPool
    _connection: _Connection
    _released: bool = False

    def close(self) -> None:
        """Close the connection, which ends a wait for the body with an error."""
        self.content.set_exception(aiohttp.ClientConnectionError("The connection was closed."))
        self._pool.discard(self._connection)

    def release(self) -> None:
        """Return the connection to the pool, or close it unless call and reply were transferred completely.

        A second call has no effect: the connection may be another call's by then.
        """
        if not self._released:
            self._released = True
            self._pool.release(self._connection)


class HttpPool:
    """The connections to one server. `headers` are sent with each call. `total_s` lasts to the end of a reply.

    aiohttp's connector opens the connections. Idle ones are kept here: the connector takes three times as long to find
    one. The calls have one timer, since their deadlines expire in nearly the order of the calls. A call behind one that
    opened a connection may expire later, by the time that this took.
    """

    def __init__(self, headers: Mapping[str, str], *, connect_s: float, total_s: float) -> None:
        self._headers = headers
        self._total_s = total_s
        self._timeout = aiohttp.ClientTimeout(connect=connect_s)
        # The connector has no limit: admission bounds the calls in flight, and no metric would show a queue here.
        self._connector = _Connector(limit=0, ttl_dns_cache=30)
        self._loop = asyncio.get_running_loop()
        self._prepared: dict[tuple[str, str], tuple[aiohttp.ClientRequest, bytes]] = {}
        self._idle: deque[tuple[float, _Connection]] = deque()  # the longest idle first
        self._deadlines: dict[_Connection, float] = {}  # of the calls in flight, the earliest first
        self._idle_timer: asyncio.TimerHandle | None = None
        self._call_timer: asyncio.TimerHandle | None = None

    async def close(self) -> None:
        for timer in (self._idle_timer, self._call_timer):
            if timer is not None:
                timer.cancel()
        self._close_idle()
        await self._connector.close()

    async def send(
        self, method: str, url: str, data: bytes | None, headers: Mapping[str, str] | None, call_id: str = ""
    ) -> HttpReply:
        """Send a call and return the reply when its head has arrived. The caller must release the reply.

        A lost connection also closes the idle connections, so that the next call opens a new one. `call_id` is sent as
        `X-Request-Id`, unless it is empty.

        Raises:
            aiohttp.ConnectionTimeoutError: no connection within `connect_s`.
            TooManyInformational: more 1xx replies than a call may have.
            aiohttp.ClientError, OSError, ValueError: another failure.
            TimeoutError: no reply within `total_s`.
        """
        request, head = self._prepared.get((method, url)) or self._prepare(method, url)
        if headers:
            head += _header_lines(headers)
        if call_id:
            head += f"X-Request-Id: {call_id}\r\n".encode()
        now = self._loop.time()
        deadline = now + self._total_s
        connection = self._idle_connection(now)
        try:
            if connection is None:
                connection = await self._connect(request, deadline)
            protocol, transport = connection.protocol, connection.transport
            if not isinstance(protocol, _Protocol) or transport is None or transport.is_closing():
                raise aiohttp.ClientConnectionResetError("The connection closed before the call was written.")
            self._deadlines[connection] = deadline
            if self._call_timer is None:
                self._call_timer = self._loop.call_at(deadline, self._time_out_calls)
            protocol.expect_reply()
            if data is None:
                transport.write(head + b"\r\n")
            else:
                head += b"Content-Length: %d\r\n\r\n" % len(data)
                transport.writelines((head, data) if len(data) > _JOINED_BYTES else (head + data,))
            message, content = await protocol.read()
        except BaseException as error:
            if connection is not None:
                self.discard(connection)
            if isinstance(error, _LOST):
                self._close_idle()
            if isinstance(error, aiohttp.http.HttpProcessingError):
                raise aiohttp.ClientPayloadError("The reply is not valid HTTP.") from error
            raise
        return HttpReply(message.code, message.headers, content, self, connection)

    def release(self, connection: _Connection) -> None:
        """End a call. Keep its connection, or close it unless call and reply were transferred completely."""
        protocol = connection.protocol
        if self._deadlines.pop(connection, None) is None or protocol is None:
            return
        if protocol.writing_paused:
            protocol.abort()
        if protocol.writing_paused or protocol.should_close:
            connection.close()
            return
        self._idle.append((self._loop.time(), connection))
        if self._idle_timer is None:
            self._idle_timer = self._loop.call_later(_KEEP_ALIVE_S, self._close_expired)

    def discard(self, connection: _Connection) -> None:
        """End a call and close its connection."""
        self._deadlines.pop(connection, None)
        connection.close()

    def _idle_connection(self, now: float) -> _Connection | None:
        """Return an open connection on which no other reply arrived."""
        while self._idle:
            released, connection = self._idle.popleft()
            protocol = connection.protocol
            is_usable = protocol is not None and protocol.is_connected() and not len(protocol)
            if is_usable and now - released <= _KEEP_ALIVE_S:
                return connection
            connection.close()
        return None

    def _close_expired(self) -> None:
        expired = self._loop.time() - _KEEP_ALIVE_S
        while self._idle and self._idle[0][0] <= expired:
            self._idle.popleft()[1].close()
        self._idle_timer = self._loop.call_later(_KEEP_ALIVE_S, self._close_expired) if self._idle else None

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    def _time_out_calls(self) -> None:
        now = self._loop.time()
        for connection, deadline in self._deadlines.items():
            if deadline > now:
                self._call_timer = self._loop.call_at(deadline, self._time_out_calls)
                return
            if isinstance(protocol := connection.protocol, _Protocol):
                protocol.time_out()
        self._call_timer = None

    async def _connect(self, request: aiohttp.ClientRequest, deadline: float) -> _Connection:
        """Open a connection. One that closed at once gets a second attempt: no call was written to it."""
        async with asyncio.timeout_at(deadline):
            try:
                connection = await self._connector.connect(request, [], self._timeout)
                if connection.transport is None or connection.transport.is_closing():
                    connection.close()
                    connection = await self._connector.connect(request, [], self._timeout)
            except TimeoutError as error:
                raise aiohttp.ConnectionTimeoutError("The connection took too long.") from error
        return connection

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
