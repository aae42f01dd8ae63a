"""Transport for all HTTP requests of LiteLLM: one connection pool per engine, with a record of the real reply.

LiteLLM creates its own HTTP clients, keeps them for an hour, follows redirects, and replaces an engine's error by its
own text. `AsyncWire` replaces the transport of those clients. Requests go over the pool of the current call's engine,
and the call records the real status or error, which classifies failures.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from gateway.engines.refusal import BLAMES_CREDENTIALS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from ssl import SSLContext

    from gateway.engines.http import EngineDeadlines

# The values of EngineHttp.
_KEEP_ALIVE_S = 4.0
_MAX_REPLY_BYTES = 32_000_000
_MAX_ERROR_BYTES = 64_000
# Inside a JSON string the quotes would be escaped.
_REASON = re.compile(rb'"(?:finishReason|stop_reason|finish_reason)"\s*:\s*"')
_REASON_BYTES = 32
# The timeout of a call in a thread, which cannot be canceled.
_BLOCKING_S = 10.0


@cache
def tls_context() -> SSLContext:
    """Return the TLS context of all pools. The first call reads all certificates, which takes tens of milliseconds."""
    return httpx.create_ssl_context()


class ForeignHost(httpx.TransportError):
    """A call to another host than the engine's own."""


class ReplyTooLarge(httpx.TransportError):
    """A reply above the size limit."""


@dataclass(slots=True)
class WireCall:
    """The record of an engine call on the wire, which describes the last HTTP request of the call."""

    pool: EnginePool
    sent: bool = False  # whether the engine may have received the request
    status: int | None = None  # the HTTP status; None until the head of the reply was read
    retry_after: str | None = None
    error_body: bytes = b""  # the body of a reply with another status than 200, if it may be quoted
    broke: Exception | None = None  # the exception that prevented a complete reply
    unread_bytes: int = 0  # the bytes of the reply since the reader consumed the last chunk
    ended: bool = False  # whether the reply contains a finish reason of Google's or Anthropic's API


_call: ContextVar[WireCall] = ContextVar("litellm_call")


class EnginePool:
    """The connection pool of one engine, whose calls must address `api_base`, if there is one.

    `max_reply_bytes` limits a reply, or a stream between two chunks. `outgoing` returns headers for each call.
    """

    def __init__(
        self,
        api_base: str | None,
        deadlines: EngineDeadlines,
        *,
        max_reply_bytes: int = _MAX_REPLY_BYTES,
        outgoing: Callable[[], Mapping[str, str] | None] | None = None,
    ) -> None:
        self._own = None if api_base is None else _origin(api_base)
        self._idle_s = deadlines.idle_s
        self._outgoing = outgoing
        self._max_reply_bytes = max_reply_bytes
        # No read and write timeouts here: the engine applies its own.
        self._timeouts = {"connect": deadlines.connect_s, "pool": None, "read": None, "write": None}
        self._transport = httpx.AsyncHTTPTransport(
            verify=tls_context(),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEP_ALIVE_S),
        )

    async def close(self) -> None:
        await self._transport.aclose()

    @contextmanager
    def call(self, call: WireCall | None = None) -> Iterator[WireCall]:
        """Send the requests of LiteLLM inside the block over this pool, as part of `call` or of a new call."""
        call = call or WireCall(self)
        token = _call.set(call)
        try:
            yield call
        finally:
            _call.reset(token)

    def check(self, request: httpx.Request, call: WireCall) -> None:
        """Raise ForeignHost if a request addresses another host than `api_base`."""
        if self._own is not None and _origin(str(request.url)) != self._own:
            call.broke = ForeignHost("the request addresses another host than api_base", request=request)
            raise call.broke

    async def send(self, request: httpx.Request, call: WireCall) -> httpx.Response:
        self.check(request, call)
        if self._outgoing is not None:
            request.headers.update(self._outgoing() or {})
        request.headers["Accept-Encoding"] = "identity"  # no compression, so that the size limit applies
        request.extensions["timeout"] = self._timeouts
        call.status, call.retry_after, call.error_body, call.broke, call.unread_bytes = None, None, b"", None, 0
        try:
            response = await self._transport.handle_async_request(request)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol) as error:
            call.broke = error
            raise
        except httpx.TransportError as error:
            call.sent, call.broke = True, error
            raise
        call.sent, call.status = True, response.status_code
        call.retry_after = response.headers.get("Retry-After")
        for name in ("Location", "Set-Cookie"):  # neither followed nor kept
            response.headers.pop(name, None)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        stream = _MeteredStream(response.stream, call, self._max_reply_bytes)
        if response.status_code != HTTPStatus.OK:
            call.error_body = await self._error_body(stream, response.status_code)
            framing = {"content-encoding", "content-length", "transfer-encoding"}
            headers = {name: value for name, value in response.headers.items() if name.lower() not in framing}
            return httpx.Response(response.status_code, headers=headers, content=call.error_body)
        return httpx.Response(HTTPStatus.OK, headers=response.headers, stream=stream, extensions=response.extensions)

    async def _error_body(self, stream: _MeteredStream, status: int) -> bytes:
        """Return the start of an error's body; empty if it may contain the key or an address."""
        raw = b""
        if status >= HTTPStatus.BAD_REQUEST and status not in BLAMES_CREDENTIALS:
            with suppress(TimeoutError, httpx.TransportError):
                async with asyncio.timeout(self._idle_s):
                    async for part in stream:
                        raw += part
                        if len(raw) > _MAX_ERROR_BYTES:
                            break
        await stream.aclose()
        return raw[:_MAX_ERROR_BYTES]


class _MeteredStream(httpx.AsyncByteStream):
    """The body of a reply, which records its size and finish reason in the call."""

    def __init__(self, stream: httpx.AsyncByteStream, call: WireCall, max_bytes: int) -> None:
        self._stream = stream
        self._call = call
        self._max_bytes = max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        tail = b""
        try:
            async for part in self._stream:
                if not self._call.ended:
                    self._call.ended = _REASON.search(tail + part) is not None
                    tail = part[-_REASON_BYTES:]
                self._call.unread_bytes += len(part)
                if self._call.unread_bytes > self._max_bytes:
                    raise ReplyTooLarge(f"more than {self._max_bytes} bytes")
                yield part
        except httpx.TransportError as error:
            self._call.broke = error
            raise

    async def aclose(self) -> None:
        await self._stream.aclose()


class AsyncWire(httpx.AsyncBaseTransport):
    """The transport of LiteLLM's asynchronous HTTP clients, which sends over the pool of the current call."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        call = _call.get(None)
        if call is None:
            raise ForeignHost("the request belongs to no engine call", request=request)
        return await call.pool.send(request, call)


class SyncWire(httpx.BaseTransport):
    """The transport of LiteLLM's blocking HTTP clients, with which some providers fetch a token in a thread.

    Requests on the event loop are rejected. Some providers' code requests optional model details there.
    """

    def __init__(self) -> None:
        self._transport = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            call = _call.get(None)
        else:
            call = None
        if call is None:
            raise ForeignHost("a blocking request must not run on the event loop", request=request)
        call.pool.check(request, call)
        request.extensions["timeout"] = dict.fromkeys(("connect", "pool", "read", "write"), _BLOCKING_S)
        response = self._transport.handle_request(request)
        response.headers.pop("Location", None)
        return response

    def close(self) -> None:
        """Do nothing: the transport lives as long as the process."""


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port
