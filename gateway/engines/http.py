"""The HTTP client of an engine, with one connection pool, timeouts and size limits.

Redirects are not followed, and proxies from the environment are not used. The caller's headers are not forwarded,
except the trace ids if tracing is on.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import aiohttp

from gateway.engines.http_pool import HttpPool
from gateway.engines.refusal import BLAMES_CREDENTIALS, ReportedError, hidden_in, read_error, refusal, reported
from gateway.engines.reply_json import Unreadable, decoded, encoded, in_thread
from gateway.engines.sse import EventTooLarge, SseDecoder
from gateway.errors import EngineError, EngineProtocolError, EngineTimeout, EngineUnreachable
from gateway.runtime.timeouts import Watchdog

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
    from types import TracebackType

    from gateway.engines.http_pool import HttpReply
    from gateway.protocol.body import Json

_T = TypeVar("_T")

_MAX_REPLY_BYTES = 8_000_000  # decoding takes 20 ms
_JOINED_INLINE_BYTES = 1_000_000
_READ_BYTES = 16_384  # per read of a stream: its events take a few milliseconds at most
_MAX_ERROR_BYTES = 64_000

LAST_EVENT = b"[DONE]"
END_TIMEOUT_S = 0.05  # from the last event to the end of the body
_USAGE_TIMEOUT_S = 2.0  # from the last text to the usage event, which some engines compute
# llama.cpp's `Server` header. The server closes a connection about 50 ms after a stream, although it announces
# keep-alive.
_CLOSES_AFTER_STREAMS = "llama.cpp"


@dataclass(frozen=True, slots=True)
class EngineDeadlines:
    """Timeouts of an engine in seconds: to connect, to the first token, between tokens, and in total."""

    connect_s: float = 2.0
    first_token_s: float = 30.0
    idle_s: float = 30.0
    total_s: float = 300.0


@dataclass(slots=True)
class _Due:
    """A deadline on the event loop's clock, and its timeout in seconds."""

    after_s: float
    at: float


@dataclass(frozen=True, slots=True)
class JsonReply:
    body: Any
    headers: Mapping[str, str]


_CLIENT_ERRORS = (aiohttp.ClientError, OSError, ValueError)  # TimeoutError is an OSError


class _Call:
    """The context of one call. Convert errors of the HTTP client to EngineErrors, and release the reply."""

    __slots__ = ("_failure", "_pending", "_reply")

    _reply: HttpReply

    def __init__(self, pending: Awaitable[HttpReply], failure: Callable[[Exception], EngineError]) -> None:
        self._pending = pending
        self._failure = failure

    async def __aenter__(self) -> HttpReply:
        try:
            self._reply = await self._pending
        except _CLIENT_ERRORS as error:
            raise self._failure(error) from error
        return self._reply

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reply.release()
        if isinstance(error, _CLIENT_ERRORS):
            raise self._failure(error) from error


class EngineHttp:
    """The HTTP client of one engine.

    Args:
        name: the configured model name; error messages contain it instead of the address.
        base_url: the server's URL.
        api_key: sent as a bearer token; None: no token.
        max_reply_bytes: the maximum size of a JSON reply.
        outgoing: returns additional headers for each call, such as trace headers.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        api_key: str | None,
        deadlines: EngineDeadlines,
        max_reply_bytes: int = _MAX_REPLY_BYTES,
        outgoing: Callable[[], Mapping[str, str] | None] | None = None,
    ) -> None:
        self._name = name
        self._base_url = base_url.rstrip("/")
        self._deadlines = deadlines
        self._max_reply_bytes = max_reply_bytes
        self._outgoing = outgoing
        self._closes_after_streams = False
        self._host = urlsplit(base_url).hostname or ""
        self._hidden = hidden_in(self._base_url, api_key)
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self._pool = HttpPool(headers, connect_s=deadlines.connect_s, total_s=deadlines.total_s)

    @property
    def name(self) -> str:
        return self._name

    @property
    def host(self) -> str:
        return self._host

    async def close(self) -> None:
        await self._pool.close()

    async def get(self, path: str) -> JsonReply:
        """GET JSON within `first_token_s`. Raises EngineErrors."""
        return await self._by(self._in(self._deadlines.first_token_s), self._get(path))

    async def _get(self, path: str) -> JsonReply:
        async with self._call("GET", path, None) as response:
            return await self._read_json(response)

    async def post(self, path: str, payload: Json, *, native: bool = False) -> JsonReply:
        """POST JSON and return the decoded JSON reply. Raises EngineErrors.

        Args:
            native: whether the path is relative to the server's root instead of /v1.
        """
        async with self._call("POST", path, payload, native=native) as response:
            reply = await self._read_json(response)
        if isinstance(reply.body, dict) and reply.body.get("error"):
            raise reported(self._name, self.read_error(reply.body), "answered 200 with an error")
        return reply

    async def post_raw(self, path: str, payload: Json, *, max_reply_bytes: int) -> bytes:
        """POST JSON and return the bytes of the reply. Raises EngineErrors."""
        async with self._call("POST", path, payload) as response:
            return await self._read(response, max_reply_bytes)

    async def events(
        self, path: str, payload: Json, *, is_complete: Callable[[], bool] = lambda: False
    ) -> AsyncGenerator[list[bytes], None]:
        """POST JSON and yield the data of server-sent events, grouped as they arrived. Raises EngineErrors.

        The first event is due `first_token_s` after the call. Each later event is due `idle_s` after the caller
        consumed the events before it. Comments, such as keep-alive comments, are not events.

        Args:
            is_complete: returns whether the answer is complete. After that the timeout for usage and end is short.
        """
        decoder = SseDecoder()
        due = self._in(self._deadlines.first_token_s)
        async with self._call("POST", path, payload, due=due) as response:
            content_type = response.headers.get("Content-Type", "")
            if not content_type.lower().startswith("text/event-stream"):
                raise EngineProtocolError(
                    f"Engine '{self._name}' answered a stream request with content type "
                    f"{content_type or 'none'} instead of text/event-stream.",
                    engine=self._name,
                )
            with Watchdog(response.close) as silence:
                try:
                    while True:
                        silence.watch(due.at)
                        received = await self._read_part(response)
                        silence.disarm()
                        if not received:
                            break
                        if not (events := decoder.feed(received)):
                            continue
                        if LAST_EVENT in events:
                            if before := events[: events.index(LAST_EVENT)]:
                                yield before
                            await self._read_end(response)
                            events = [LAST_EVENT]
                        yield events
                        idle_s = self._deadlines.idle_s
                        due = self._in(min(idle_s, _USAGE_TIMEOUT_S) if is_complete() else idle_s)
                    if events := decoder.end():
                        yield events
                except EventTooLarge as error:
                    raise EngineProtocolError(
                        f"Engine '{self._name}' exceeded a size limit: {error}.", engine=self._name
                    ) from None
                except aiohttp.ClientError:
                    if silence.timed_out:
                        raise self._silent(due) from None
                    raise
                if silence.timed_out:
                    raise self._silent(due)

    @staticmethod
    async def _read_part(reply: HttpReply) -> bytes:
        """Return bytes of a stream; empty at its end. After a full read other callbacks run first."""
        received = await reply.content.read(_READ_BYTES)
        if len(received) == _READ_BYTES:
            await asyncio.sleep(0)
        return received

    @staticmethod
    async def _read_end(reply: HttpReply) -> None:
        """Read the end of the body, so that the connection can be reused. The wait is short."""
        with suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(END_TIMEOUT_S):
                await reply.content.readany()

    def read_error(self, raw: bytes | Json) -> ReportedError:
        """Return the error that the engine reports, without its address and key."""
        return read_error(raw, self._hidden)

    @staticmethod
    def _in(seconds: float) -> _Due:
        return _Due(seconds, asyncio.get_running_loop().time() + seconds)

    async def _by(self, due: _Due, awaitable: Awaitable[_T]) -> _T:
        try:
            async with asyncio.timeout_at(due.at) as limit:
                return await awaitable
        except TimeoutError:
            if not limit.expired():
                raise  # an outer deadline expired
            raise self._silent(due) from None

    def _silent(self, due: _Due) -> EngineTimeout:
        return EngineTimeout(f"Engine '{self._name}' sent no data for {due.after_s:g} s.", engine=self._name)

    def _call(
        self, method: str, path: str, payload: Json | None, *, due: _Due | None = None, native: bool = False
    ) -> _Call:
        base = self._base_url.removesuffix("/v1") if native else self._base_url
        return _Call(self._open(method, base + path, payload, due), self._failure)

    async def _open(self, method: str, url: str, payload: Json | None, due: _Due | None) -> HttpReply:
        """Send a call, wait for the head of the reply, and check the status."""
        reply = await self._send(method, url, payload, due)
        self._closes_after_streams = reply.headers.get("Server") == _CLOSES_AFTER_STREAMS
        if reply.status != HTTPStatus.OK:
            try:
                raise await self._refusal(reply)
            finally:
                reply.release()
        return reply

    async def _send(self, method: str, url: str, payload: Json | None, due: _Due | None) -> HttpReply:
        """Send a call and wait for the head of the reply. Only streams have a deadline `due`.

        An engine may close an idle connection at the moment of a call. A call that was not written is sent once more,
        since the engine cannot have read it. A call that was written fails here: the caller counts and charges retries.
        """
        data = None if payload is None else await encoded(payload)
        headers = None if self._outgoing is None else self._outgoing()
        if due is not None and self._closes_after_streams:
            headers = {**(headers or {}), "Connection": "close"}

        async def send() -> HttpReply:
            sending = self._pool.send(method, url, data, headers)
            return await (sending if due is None else self._by(due, sending))

        try:
            return await send()
        except aiohttp.ClientConnectionResetError:
            return await send()

    def _failure(self, error: Exception) -> EngineError:
        """Return the EngineError for an error of the HTTP client."""
        if isinstance(error, TimeoutError):
            connecting = isinstance(error, aiohttp.ConnectionTimeoutError)
            limit_s = self._deadlines.connect_s if connecting else self._deadlines.total_s
            kind = EngineUnreachable if connecting else EngineTimeout
            action = "connect" if connecting else "answer"
            failed = kind(f"Engine '{self._name}' did not {action} within {limit_s:g} s.", engine=self._name)
            failed.may_have_run = not connecting
            return failed
        # The message omits the exception, which may contain the address. The log contains it.
        broke = EngineUnreachable(f"The connection to engine '{self._name}' failed or was closed.", engine=self._name)
        broke.may_have_run = not isinstance(error, aiohttp.ClientConnectorError)
        return broke

    async def _read_json(self, reply: HttpReply) -> JsonReply:
        raw = await self._read(reply, self._max_reply_bytes)
        try:
            return JsonReply(await decoded(raw), reply.headers)
        except Unreadable as error:
            raise EngineProtocolError(f"Engine '{self._name}' {error}.", engine=self._name) from None

    async def _read(self, reply: HttpReply, max_reply_bytes: int) -> bytes:
        content = reply.content
        parts: list[bytes] = []
        size = 0
        while not content.at_eof():
            part = await content.readany()
            size += len(part)
            if size > max_reply_bytes:
                raise EngineProtocolError(
                    f"Engine '{self._name}' sent a reply of more than {max_reply_bytes} bytes, the limit.",
                    engine=self._name,
                )
            parts.append(part)
        return b"".join(parts) if size <= _JOINED_INLINE_BYTES else await in_thread(b"".join, parts)

    async def _refusal(self, reply: HttpReply) -> EngineError:
        error = ReportedError()
        # The text for a rejected key may quote the key; that of a redirect contains an address.
        if reply.status >= HTTPStatus.BAD_REQUEST and reply.status not in BLAMES_CREDENTIALS:
            error = self.read_error(await self._read_some(reply))
        return refusal(self._name, reply.status, error, reply.headers.get("Retry-After"))

    async def _read_some(self, reply: HttpReply) -> bytes:
        """Return the start of an error's body, with limits on size and time. The status alone identifies the error."""
        raw = b""
        with suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(self._deadlines.idle_s):
                async for part in reply.content.iter_any():
                    raw += part
                    if len(raw) > _MAX_ERROR_BYTES:
                        break
        return raw[:_MAX_ERROR_BYTES]
