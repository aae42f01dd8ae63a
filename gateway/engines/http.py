"""The HTTP client of an engine, with one connection pool, timeouts and size limits.

Redirects are not followed, and proxies from the environment are not used. The caller's headers are not forwarded,
except the trace ids if tracing is on. `X-Request-Id` has the gateway's own id, which vLLM uses in its log.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp
import orjson

from gateway.engines.base import current_origin
from gateway.engines.http_pool import HttpPool, TooManyInformational
from gateway.engines.refusal import (
    BLAMES_CREDENTIALS,
    ReportedError,
    hidden_in,
    read_error,
    refusal,
    reported,
)
from gateway.engines.replies import bad_reply, connection_failed, short_name
from gateway.engines.reply_json import Unreadable, decode, in_thread
from gateway.engines.sse import EventTooLarge, SseDecoder
from gateway.errors import EngineError, EngineProtocolError, EngineTimeout, EngineUnreachable
from gateway.protocol.structure import is_large, is_light
from gateway.runtime.timeouts import Watchdog

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

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


class EngineDeadlines(NamedTuple):
    """Timeouts of an engine in seconds: to connect, to the first token, between tokens, and in total."""

    connect_s: float = 2.0
    first_token_s: float = 30.0
    idle_s: float = 30.0
    total_s: float = 300.0


@dataclass(slots=True)  # not frozen, since a stream sets it for each group of events
class Deadline:
    """A deadline on the event loop's clock, and its timeout in seconds."""

    after_s: float
    at: float

    @classmethod
    def of(cls, seconds: float) -> Self:
        return cls(seconds, asyncio.get_running_loop().time() + seconds)

    def expired(self, engine: str) -> EngineTimeout:
        return EngineTimeout(f"Engine '{engine}' sent no data for {self.after_s:g} s.", engine=engine)

    async def bound(self, engine: str, awaitable: Awaitable[_T]) -> _T:
        """Return the result of a call to an engine. Raises EngineTimeout after the deadline."""
        try:
            async with asyncio.timeout_at(self.at) as limit:
                return await awaitable
        except TimeoutError:
            if not limit.expired():
                raise  # an outer deadline expired
            raise self.expired(engine) from None


class JsonReply(NamedTuple):
    body: Any
    headers: Mapping[str, str]


_CLIENT_ERRORS = (aiohttp.ClientError, OSError, ValueError)  # TimeoutError is an OSError


@dataclass(slots=True, eq=False)
class _Call:
    """The context of one call. Convert errors of the HTTP client to EngineErrors, and release the reply."""

    _pending: Awaitable[HttpReply]
    _failure: Callable[[Exception], EngineError]
    _reply: HttpReply = field(init=False)

    async def __aenter__(self) -> HttpReply:
        try:
            self._reply = await self._pending
        except _CLIENT_ERRORS as error:
            raise self._failure(error) from error
        return self._reply

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._reply.release()
        if isinstance(error, _CLIENT_ERRORS):
            raise self._failure(error) from error


class EngineHttp:
    """The HTTP client of one engine. All calls raise EngineErrors, with the name of the engine and not its address.

    `outgoing` returns additional headers for each call, such as trace headers.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        api_key: str | None,
        deadlines: EngineDeadlines,
        max_reply_bytes: int = _MAX_REPLY_BYTES,
        end_timeout_s: float = END_TIMEOUT_S,
        outgoing: Callable[[], Mapping[str, str] | None] | None = None,
    ) -> None:
        self.name = name
        self._base_url = base_url.rstrip("/")
        self._root_url = self._base_url.removesuffix("/v1")
        self._deadlines = deadlines
        self._max_reply_bytes, self._end_timeout_s = max_reply_bytes, end_timeout_s
        self._outgoing = outgoing
        self._closes_after_streams = False
        self.host = urlsplit(base_url).hostname or ""
        self._hidden = hidden_in(self._base_url, api_key)
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self._pool = HttpPool(headers, connect_s=deadlines.connect_s, total_s=deadlines.total_s)

    async def close(self) -> None:
        await self._pool.close()

    async def get(self, path: str, *, native: bool = False) -> JsonReply:
        """GET JSON within `first_token_s`. A `native` path is relative to the server's root instead of /v1."""
        return await Deadline.of(self._deadlines.first_token_s).bound(self.name, self._get(path, native=native))

    async def _get(self, path: str, *, native: bool) -> JsonReply:
        raw, headers = await self._exchange("GET", path, None, self._max_reply_bytes, native=native)
        return JsonReply(await self._decoded(raw), headers)

    async def post(self, path: str, payload: Json, *, native: bool = False) -> JsonReply:
        """POST JSON and return the decoded reply. A `native` path is relative to the server's root instead of /v1."""
        raw, headers = await self._exchange("POST", path, payload, self._max_reply_bytes, native=native)
        body = await self._decoded(raw)
        if isinstance(body, dict) and body.get("error"):
            raise reported(self.name, read_error(body, self._hidden), "answered 200 with an error")
        return JsonReply(body, headers)

    async def post_raw(self, path: str, payload: Json, *, max_reply_bytes: int) -> bytes:
        """POST JSON and return the bytes of the reply."""
        raw, _ = await self._exchange("POST", path, payload, max_reply_bytes)
        return raw

    async def events(
        self, path: str, payload: Json, *, is_complete: Callable[[], bool] = lambda: False
    ) -> AsyncGenerator[list[bytes], None]:
        """POST JSON and yield the data of server-sent events, grouped as they arrived.

        The first event is due `first_token_s` after the call. Each later event is due `idle_s` after the caller
        consumed the events before it. Comments, such as keep-alive comments, are not events. The timeout for usage and
        end is short once the answer `is_complete`.
        """
        decoder = SseDecoder()
        now, idle_s = asyncio.get_running_loop().time, self._deadlines.idle_s
        due = Deadline.of(self._deadlines.first_token_s)
        async with self._call(path, payload, due) as response:
            self._require_events(response)
            content = response.content
            with Watchdog(response.close) as silence:
                try:
                    while True:
                        silence.watch(due.at)
                        received = await content.read(_READ_BYTES)
                        silence.disarm()
                        if len(received) == _READ_BYTES:
                            await asyncio.sleep(0)  # other callbacks run first
                        if not received:
                            break
                        if not (events := decoder.feed(received)):
                            continue
                        if LAST_EVENT in events:
                            if before := events[: events.index(LAST_EVENT)]:
                                yield before
                            await self._read_end(content)
                            events = [LAST_EVENT]
                        yield events
                        due.after_s = min(idle_s, _USAGE_TIMEOUT_S) if is_complete() else idle_s
                        due.at = now() + due.after_s
                    if events := decoder.end():
                        yield events
                except EventTooLarge as error:
                    raise EngineProtocolError(
                        f"Engine '{self.name}' exceeded a size limit: {error}.", engine=self.name
                    ) from None
                except aiohttp.ClientError:
                    if silence.timed_out:
                        raise due.expired(self.name) from None
                    raise
                if silence.timed_out:
                    raise due.expired(self.name)

    def _require_events(self, reply: HttpReply) -> None:
        content_type = reply.headers.get("Content-Type", "")
        if not content_type.lower().startswith("text/event-stream"):
            answered = f"answered a stream request with content type {short_name(content_type) or 'none'}"
            raise EngineProtocolError(
                f"Engine '{self.name}' {answered} instead of text/event-stream.", engine=self.name
            )

    async def _read_end(self, content: aiohttp.StreamReader) -> None:
        """Read the end of the body, so that the connection can be reused. The wait is short."""
        if content.at_eof():
            return
        with suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(self._end_timeout_s):
                await content.readany()

    def read_event(self, data: bytes) -> Any:
        """Return the value of an event. Raises EngineErrors, also for an error that the engine reports."""
        try:
            event = decode(data)
        except Unreadable as error:
            raise bad_reply(self.name, str(error)) from None
        if isinstance(event, dict) and event.get("error"):
            raise reported(self.name, read_error(event, self._hidden), "failed during its answer")
        return event

    def _call(self, path: str, payload: Json, due: Deadline) -> _Call:
        return _Call(self._open("POST", path, payload, due), self._failure)

    async def _exchange(
        self, method: str, path: str, payload: Json | None, max_reply_bytes: int, *, native: bool = False
    ) -> tuple[bytes, Mapping[str, str]]:
        """Send a call. Return the body and the headers of the reply."""
        try:
            reply = await self._open(method, path, payload, native=native)
            try:
                return await self._read(reply, max_reply_bytes), reply.headers
            finally:
                reply.release()
        except _CLIENT_ERRORS as error:
            raise self._failure(error) from error

    async def _open(
        self, method: str, path: str, payload: Json | None, due: Deadline | None = None, *, native: bool = False
    ) -> HttpReply:
        """Send a call and wait for the head of the reply. Only streams have a deadline `due`.

        A call that was written is not sent again if it fails: the caller counts and charges retries.
        """
        url = (self._root_url if native else self._base_url) + path
        data = None
        if payload is not None:
            data = await in_thread(orjson.dumps, payload) if is_large(payload) else orjson.dumps(payload)
        headers = None if self._outgoing is None else self._outgoing()
        call_id = current_origin().call_id
        if due is None:
            reply = await self._pool.send(method, url, data, headers, call_id)
        else:
            if self._closes_after_streams:
                headers = {**(headers or {}), "Connection": "close"}
            reply = await due.bound(self.name, self._pool.send(method, url, data, headers, call_id))
        self._closes_after_streams = reply.headers.get("Server") == _CLOSES_AFTER_STREAMS
        if reply.status != HTTPStatus.OK:
            try:
                raise await self._refusal(reply)
            finally:
                reply.release()
        return reply

    def _failure(self, error: Exception) -> EngineError:
        if isinstance(error, TimeoutError):
            connecting = isinstance(error, aiohttp.ConnectionTimeoutError)
            limit_s = self._deadlines.connect_s if connecting else self._deadlines.total_s
            if not connecting:
                return EngineTimeout(f"Engine '{self.name}' did not answer within {limit_s:g} s.", engine=self.name)
            failed = EngineUnreachable(f"Engine '{self.name}' did not connect within {limit_s:g} s.", engine=self.name)
            failed.may_have_run = failed.connected = False
            return failed
        if isinstance(error, TooManyInformational):
            return bad_reply(self.name, str(error))
        return connection_failed(self.name, connected=not isinstance(error, aiohttp.ClientConnectorError))

    async def _decoded(self, raw: bytes) -> Any:
        try:
            return decode(raw) if is_light(raw) else await in_thread(decode, raw)
        except Unreadable as error:
            raise bad_reply(self.name, str(error)) from None

    async def _read(self, reply: HttpReply, max_reply_bytes: int) -> bytes:
        content = reply.content
        if content.is_eof() and content.total_bytes <= min(max_reply_bytes, _JOINED_INLINE_BYTES):
            return content.read_nowait()  # the body arrived with the head
        parts: list[bytes] = []
        size = 0
        while not content.at_eof():
            part = await content.readany()
            size += len(part)
            if size > max_reply_bytes:
                raise bad_reply(self.name, f"a reply of more than {max_reply_bytes} bytes, the limit")
            parts.append(part)
        return b"".join(parts) if size <= _JOINED_INLINE_BYTES else await in_thread(b"".join, parts)

    async def _refusal(self, reply: HttpReply) -> EngineError:
        error = ReportedError()
        # The text for a rejected key may quote the key; that of a redirect contains an address.
        if reply.status >= HTTPStatus.BAD_REQUEST and reply.status not in BLAMES_CREDENTIALS:
            error = read_error(await self._read_some(reply), self._hidden)
        return refusal(self.name, reply.status, error, reply.headers.get("Retry-After"))

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
