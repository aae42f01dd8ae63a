"""HTTP calls to a student's server, over httpx. Failures raise the gateway's EngineErrors."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from gateway.engines.sse import EventTooLarge, SseDecoder
from gateway.errors import (
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnreachable,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from gateway.protocol.body import Json

LAST_EVENT = b"[DONE]"
_CONNECT_LIMIT_S = 5.0
_BUSY = frozenset({429, 503})
_MAX_MESSAGE_CHARS = 300


class EdgeJsonReply(NamedTuple):
    body: Any


class StudentHttp:
    """A client for one student's server. `silence_s` is the longest time without data, which includes the prompt."""

    def __init__(
        self, name: str, url: str, key: str | None, silence_s: float, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.name = name
        self._url = url.rstrip("/")
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(silence_s, connect=_CONNECT_LIMIT_S),
            # llama.cpp may close an idle connection while it is reused; a new local connection costs nothing.
            limits=httpx.Limits(max_keepalive_connections=0),
            transport=transport,
            trust_env=False,  # a local server needs no proxy
        )

    @property
    def host(self) -> str:
        return httpx.URL(self._url).host

    async def close(self) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> EdgeJsonReply:
        async with self._call("GET", path, None) as reply:
            return EdgeJsonReply(_json(await reply.aread(), self.name))

    async def post(self, path: str, payload: Json, *, native: bool = False) -> EdgeJsonReply:
        """Send a POST request. A `native` path is not below /v1. Raises EngineError."""
        async with self._call("POST", path, payload, native=native) as reply:
            return EdgeJsonReply(_json(await reply.aread(), self.name))

    async def events(self, path: str, payload: Json) -> AsyncGenerator[bytes, None]:
        """Yield the data of each event of a stream. Raises EngineError."""
        decoder = SseDecoder()
        async with self._call("POST", path, payload) as reply:
            try:
                async for received in reply.aiter_bytes():
                    for event in decoder.feed(received):
                        yield event
                for event in decoder.end():
                    yield event
            except EventTooLarge:
                message = f"Student '{self.name}' sent an event that is too large."
                raise EngineProtocolError(message, engine=self.name) from None

    @asynccontextmanager
    async def _call(
        self, method: str, path: str, payload: Json | None, *, native: bool = False
    ) -> AsyncIterator[httpx.Response]:
        base = self._url.removesuffix("/v1") if native else self._url
        try:
            async with self._http.stream(method, base + path, json=payload) as reply:
                if reply.status_code != httpx.codes.OK:
                    raise _refusal(self.name, reply.status_code, await reply.aread())
                yield reply
        except httpx.ConnectTimeout:
            raise EngineUnreachable(f"Student '{self.name}' cannot be reached.", engine=self.name) from None
        except httpx.TimeoutException:
            raise EngineTimeout(f"Student '{self.name}' sent no data in time.", engine=self.name) from None
        except httpx.HTTPError as error:
            message = f"Student '{self.name}' cannot be reached ({type(error).__name__})."
            raise EngineUnreachable(message, engine=self.name) from None


def _json(raw: bytes, name: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        raise EngineProtocolError(f"Student '{name}' sent invalid JSON.", engine=name) from None


def _refusal(name: str, status: int, raw: bytes) -> EngineError:
    message = error_text(raw)
    if status in _BUSY:
        return EngineOverloaded(f"Student '{name}' is busy or starting{message}.", engine=name)
    if status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return EngineFailed(f"Student '{name}' failed ({status}){message}.", engine=name)
    message = f"Student '{name}' rejected the request ({status}){message}."
    return EngineRejected(message, engine=name, status_sent=status)


def error_text(raw: bytes) -> str:
    """Return the message of an error in OpenAI's format after a colon; "" if there is none."""
    try:
        error = json.loads(raw)["error"]
        message = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        return ""
    return f": {message}"[:_MAX_MESSAGE_CHARS].rstrip(".") if isinstance(message, str) else ""
