"""The HTTP side of every engine: one pooled session each, with deadlines and bounds.

Redirects are not followed and proxies from the environment are not used: an engine is where the configuration says it
is. Bodies are bounded. Nothing of the caller's headers goes out, but for the ids of its trace where traces are on.
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
from gateway.engines.refusal import BLAMES_CREDENTIALS, ReportedError, hidden_in, refusal, reported, said_error
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

_MAX_REPLY_BYTES = 8_000_000  # so much text is decoded in 20 ms
_JOINED_INLINE_BYTES = 1_000_000
_READ_BYTES = 16_384  # of a stream at once: so the events of one read take a few milliseconds at most
_MAX_ERROR_BYTES = 64_000

LAST_EVENT = b"[DONE]"
REST_WITHIN_S = 0.05  # after the last event only the end of the body is left to read
_COUNT_WITHIN_S = 2.0  # after the last word some engines still count
# llama.cpp's header `Server`. It closes a connection some 50 ms after a stream has ended, and announces keep-alive.
_CLOSES_AFTER_STREAMS = "llama.cpp"


@dataclass(frozen=True, slots=True)
class EngineDeadlines:
    """How long an engine may take, in seconds: to connect, to its first token, between tokens, and in all."""

    connect_s: float = 2.0
    first_token_s: float = 30.0
    idle_s: float = 30.0
    total_s: float = 300.0


@dataclass(slots=True)
class _Due:
    """A moment on the loop's clock, and how long after its start that is."""

    after_s: float
    at: float


@dataclass(frozen=True, slots=True)
class JsonReply:
    body: Any
    headers: Mapping[str, str]


_CLIENT_ERRORS = (aiohttp.ClientError, OSError, ValueError)  # TimeoutError is an OSError


class _Call:
    """The context of one call. Errors of the HTTP client become EngineErrors until the reply is read."""

    __slots__ = ("_failure", "_opening", "_reply")

    _reply: HttpReply

    def __init__(self, opening: Awaitable[HttpReply], failure: Callable[[Exception], EngineError]) -> None:
        self._opening = opening
        self._failure = failure

    async def __aenter__(self) -> HttpReply:
        try:
            self._reply = await self._opening
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
    """One engine's connection pool.

    Args:
        name: the configured model name; it stands in errors instead of the address.
        base_url: without a trailing slash.
        api_key: sent as a bearer token when given.
        max_reply_bytes: bound on a JSON reply.
        outgoing: asked at each call for headers that go with it; None: there are none.
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
        """GET JSON, within the deadline of a first token: what is asked for this way is small. Raises EngineErrors."""
        return await self._by(self._in(self._deadlines.first_token_s), self._get(path))

    async def _get(self, path: str) -> JsonReply:
        async with self._call("GET", path, None) as response:
            return await self._read_json(response)

    async def post(self, path: str, payload: Json, *, native: bool = False) -> JsonReply:
        """POST JSON, return the decoded JSON reply. Raises EngineErrors.

        A `native` path is one of the server's own, which lies beside its /v1 and not under it.
        """
        async with self._call("POST", path, payload, native=native) as response:
            reply = await self._read_json(response)
        if isinstance(reply.body, dict) and reply.body.get("error"):
            raise reported(self._name, self.said(reply.body), "answered 200 with an error")
        return reply

    async def post_raw(self, path: str, payload: Json, *, max_reply_bytes: int) -> bytes:
        """POST JSON, return what comes as it is, up to a bound. Raises EngineErrors."""
        async with self._call("POST", path, payload) as response:
            return await self._read(response, max_reply_bytes)

    async def events(
        self, path: str, payload: Json, *, is_said: Callable[[], bool] = lambda: False
    ) -> AsyncGenerator[list[bytes], None]:
        """POST JSON, yield the data of server-sent events, as many at a time as came together. Raises EngineErrors.

        The first event is due `first_token_s` after the call, each later one `idle_s` after those before were taken.
        Comments are not events: an engine that only keeps the connection alive is silent.

        Args:
            is_said: whether the answer is whole: then what still follows, a count or the end, is not waited for long.
        """
        decoder = SseDecoder()
        due = self._in(self._deadlines.first_token_s)
        async with self._call("POST", path, payload, due=due) as response:
            content_type = response.headers.get("Content-Type", "")
            if not content_type.lower().startswith("text/event-stream"):
                raise EngineProtocolError(
                    f"Engine '{self._name}' answered {content_type or 'no content type'} where a stream was asked for.",
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
                            await self._read_rest(response)
                            events = [LAST_EVENT]
                        yield events
                        idle_s = self._deadlines.idle_s
                        due = self._in(min(idle_s, _COUNT_WITHIN_S) if is_said() else idle_s)
                    if events := decoder.end():
                        yield events
                except EventTooLarge as error:
                    raise EngineProtocolError(
                        f"Engine '{self._name}' sent too much: {error}.", engine=self._name
                    ) from None
                except aiohttp.ClientError:
                    if silence.timed_out:
                        raise self._silent(due) from None
                    raise
                if silence.timed_out:
                    raise self._silent(due)

    @staticmethod
    async def _read_part(reply: HttpReply) -> bytes:
        """Return bytes of a stream; none: it has ended. Other callbacks run before the rest of many is read."""
        received = await reply.content.read(_READ_BYTES)
        if len(received) == _READ_BYTES:
            await asyncio.sleep(0)
        return received

    @staticmethod
    async def _read_rest(reply: HttpReply) -> None:
        """See the body end: only then can its connection serve the next call. Nobody waits long for that."""
        with suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(REST_WITHIN_S):
                await reply.content.readany()

    def said(self, raw: bytes | Json) -> ReportedError:
        """What the engine says went wrong, without its address and its key."""
        return said_error(raw, self._hidden)

    @staticmethod
    def _in(seconds: float) -> _Due:
        return _Due(seconds, asyncio.get_running_loop().time() + seconds)

    async def _by(self, due: _Due, awaitable: Awaitable[_T]) -> _T:
        try:
            async with asyncio.timeout_at(due.at) as limit:
                return await awaitable
        except TimeoutError:
            if not limit.expired():
                raise  # another deadline than this one
            raise self._silent(due) from None

    def _silent(self, due: _Due) -> EngineTimeout:
        return EngineTimeout(f"Engine '{self._name}' was silent for {due.after_s:g} s.", engine=self._name)

    def _call(
        self, method: str, path: str, payload: Json | None, *, due: _Due | None = None, native: bool = False
    ) -> _Call:
        base = self._base_url.removesuffix("/v1") if native else self._base_url
        return _Call(self._open(method, base + path, payload, due), self._failure)

    async def _open(self, method: str, url: str, payload: Json | None, due: _Due | None) -> HttpReply:
        """Send a call, wait for the head of its reply, and check the status."""
        reply = await self._send(method, url, payload, due)
        self._closes_after_streams = reply.headers.get("Server") == _CLOSES_AFTER_STREAMS
        if reply.status != HTTPStatus.OK:
            try:
                raise await self._refusal(reply)
            finally:
                reply.release()
        return reply

    async def _send(self, method: str, url: str, payload: Json | None, due: _Due | None) -> HttpReply:
        """Send, and wait for the reply's head. A call with a deadline `due` is a stream's.

        An engine may close an idle connection at the moment at which a call goes out over it. Where the call was not
        written, the engine cannot have answered it, and the call is sent again, once. Otherwise the engine may have
        read the call, so it fails here: a retry is counted, and each call that may have been read is charged.
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
        """Return what an error of the HTTP client means."""
        if isinstance(error, TimeoutError):
            connecting = isinstance(error, aiohttp.ConnectionTimeoutError)
            limit_s = self._deadlines.connect_s if connecting else self._deadlines.total_s
            kind = EngineUnreachable if connecting else EngineTimeout
            failed = kind(f"Engine '{self._name}' did not answer within {limit_s:g} s.", engine=self._name)
            failed.heard = not connecting
            return failed
        # What the exception says may hold the address: that is for the log.
        broke = EngineUnreachable(f"Engine '{self._name}' could not be reached or broke off.", engine=self._name)
        broke.heard = not isinstance(error, aiohttp.ClientConnectorError)
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
                    f"Engine '{self._name}' sent more than {max_reply_bytes} bytes.", engine=self._name
                )
            parts.append(part)
        return b"".join(parts) if size <= _JOINED_INLINE_BYTES else await in_thread(b"".join, parts)

    async def _refusal(self, reply: HttpReply) -> EngineError:
        said = ReportedError()
        # Words that come with a refused key could quote it; those of a redirect hold an address.
        if reply.status >= HTTPStatus.BAD_REQUEST and reply.status not in BLAMES_CREDENTIALS:
            said = self.said(await self._read_some(reply))
        return refusal(self._name, reply.status, said, reply.headers.get("Retry-After"))

    async def _read_some(self, reply: HttpReply) -> bytes:
        """What there is of an error's body, bounded in size and time: the status alone says what went wrong."""
        raw = b""
        with suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(self._deadlines.idle_s):
                async for part in reply.content.iter_any():
                    raw += part
                    if len(raw) > _MAX_ERROR_BYTES:
                        break
        return raw[:_MAX_ERROR_BYTES]
