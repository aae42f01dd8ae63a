"""Transport for all HTTP requests of LiteLLM: one connection pool per engine, with a record of the real reply.

LiteLLM creates its own HTTP clients, keeps them for an hour, follows redirects, and replaces an engine's error by its
own text. `AsyncWire` replaces the transport of those clients. It sends over the pool of the engine of the current call
and records the status and the error that the call met, so that failures are classified by the real status.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from gateway.engines.refusal import BLAMES_CREDENTIALS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from gateway.engines.http import EngineDeadlines

# As EngineHttp has them.
_KEEP_ALIVE_S = 4.0
_MAX_REPLY_BYTES = 32_000_000
_MAX_ERROR_BYTES = 64_000
# Within a text it would stand with backslashes.
_REASON = re.compile(rb'"(?:finishReason|stop_reason|finish_reason)"\s*:\s*"')
_REASON_BYTES = 32
# For a call in a thread that nobody can cancel.
_BLOCKING_S = 10.0


class ForeignHost(httpx.TransportError):
    """A call for another host than the engine's own."""


class ReplyTooLarge(httpx.TransportError):
    """More came than an answer holds."""


@dataclass(slots=True)
class WireCall:
    """What one call to an engine met on its way; of several requests, the last.

    Attributes:
        sent: it may have arrived.
        status: None until the reply's head was read.
        said: the body of a reply whose status is not 200, if it may be repeated.
        broke: why there was no reply, or no whole one.
        unread_bytes: of the reply, since whoever reads it last took a part.
        ended: the engine gave a reason for ending, in the words of Google's APIs or of Anthropic's.
    """

    pool: EnginePool
    sent: bool = False
    status: int | None = None
    retry_after: str | None = None
    said: bytes = b""
    broke: Exception | None = None
    unread_bytes: int = 0
    ended: bool = False


_call: ContextVar[WireCall] = ContextVar("litellm_call")


class EnginePool:
    """One engine's connections.

    Args:
        api_base: where every call must go; None: wherever the provider is.
        outgoing: asked at each call for headers that go with it; None: there are none.
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
        # Reading and writing have no limits here: the engine keeps the time.
        self._timeouts = {"connect": deadlines.connect_s, "pool": None, "read": None, "write": None}
        self._transport = httpx.AsyncHTTPTransport(
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEP_ALIVE_S)
        )

    async def close(self) -> None:
        await self._transport.aclose()

    @contextmanager
    def call(self, call: WireCall | None = None) -> Iterator[WireCall]:
        """What LiteLLM sends inside the block goes over this pool, as part of `call` or of a new one."""
        call = call or WireCall(self)
        token = _call.set(call)
        try:
            yield call
        finally:
            _call.reset(token)

    def check(self, request: httpx.Request, call: WireCall) -> None:
        """Raise Elsewhere for a call that would leave the engine's address."""
        if self._own is not None and _origin(str(request.url)) != self._own:
            call.broke = ForeignHost("the call would have left the engine's address", request=request)
            raise call.broke

    async def send(self, request: httpx.Request, call: WireCall) -> httpx.Response:
        self.check(request, call)
        if self._outgoing is not None:
            request.headers.update(self._outgoing() or {})
        request.headers["Accept-Encoding"] = "identity"  # a few bytes that stand for gigabytes are no answer
        request.extensions["timeout"] = self._timeouts
        call.status, call.retry_after, call.said, call.broke, call.unread_bytes = None, None, b"", None, 0
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
        stream = _Watched(response.stream, call, self._max_reply_bytes)
        if response.status_code != HTTPStatus.OK:
            call.said = await self._error_body(stream, response.status_code)
            return httpx.Response(response.status_code, headers=_bare(response.headers), content=call.said)
        return httpx.Response(HTTPStatus.OK, headers=response.headers, stream=stream, extensions=response.extensions)

    async def _error_body(self, stream: _Watched, status: int) -> bytes:
        """What there is of it, bounded in size and time; nothing where it could quote the key, or hold an address."""
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


class _Watched(httpx.AsyncByteStream):
    """A reply's body, with an eye on its size and on how it ends."""

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
    """What LiteLLM takes for a connection pool of its own."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        call = _call.get(None)
        if call is None:
            raise ForeignHost("no engine's call is under way", request=request)
        return await call.pool.send(request, call)


class SyncWire(httpx.BaseTransport):
    """What LiteLLM takes for a pool of its clients that block: for tokens of providers that want one, in a thread.

    On the event loop it is refused: some providers' code asks for a model's details there, and can do without.
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
            raise ForeignHost("no call may hold the event loop", request=request)
        call.pool.check(request, call)
        request.extensions["timeout"] = dict.fromkeys(("connect", "pool", "read", "write"), _BLOCKING_S)
        response = self._transport.handle_request(request)
        response.headers.pop("Location", None)
        return response

    def close(self) -> None:
        """It is the process's own: nobody's end is its end."""


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port


def _bare(headers: httpx.Headers) -> dict[str, str]:
    """Without what speaks of the body as it was sent."""
    framing = {"content-encoding", "content-length", "transfer-encoding"}
    return {name: value for name, value in headers.items() if name.lower() not in framing}
