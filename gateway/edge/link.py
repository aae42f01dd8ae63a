"""What is said to the gateway, and what becomes of it: guidance asked for, and usage told."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import httpx

from gateway.edge.errors import GatewayAway, GatewayRefused, VersionRefused
from gateway.edge.guidance import EdgeGuidance
from gateway.engines.sse import EventTooLarge, SseDecoder
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable

    from gateway.edge.usage import UsageReport
    from gateway.protocol.body import Json

EDGE_VERSION = 1
"""Of the protocol between gateway and device: what the header X-GKT-Edge says."""

CONNECT_LIMIT_S = 5.0
_TELL_LIMIT_S = 10.0
_MAX_REPLY_BYTES = 4_000_000
_LAST_EVENT = b"[DONE]"
_ADDRESS = re.compile(r"https?://[^/]", re.IGNORECASE)
_BUSY = frozenset({429, 503})
# The key is not taken, or not for this: nothing that waits is lost for it.
_NOT_ALLOWED = frozenset({401, 403})

Told = Literal["closed", "closed_before", "refused"]
"""
closed         the gateway has taken it down
closed_before  it had it already: an earlier reply was lost on the way
refused        it takes no such report, and never will
"""

_T = TypeVar("_T")


class GatewayLink:
    """One gateway, for one key.

    Args:
        url: its address, with or without the /v1 at its end.
        patience_s: how long guidance may take in all.

    Raises ValueError where the address is none: the gateway would seem to be away for ever.
    """

    def __init__(self, url: str, key: str, *, patience_s: float) -> None:
        base = address_of(url)
        if not _ADDRESS.match(base):
            raise ValueError(f"'{url}' is no gateway's address: expected http://HOST or https://HOST")
        self._patience_s = patience_s
        self._http = httpx.AsyncClient(
            base_url=base,
            headers={
                "Authorization": f"Bearer {key}",
                "X-GKT-Edge": str(EDGE_VERSION),
                "User-Agent": f"gkt-edge/{__version__}",
            },
            timeout=httpx.Timeout(patience_s, connect=min(CONNECT_LIMIT_S, patience_s)),
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, body: Json) -> AsyncGenerator[str | EdgeGuidance, None]:
        """Ask for guidance: first what of it may be shown already, piece by piece, then all of it.

        Raises GatewayAway and GatewayRefused. A body with `stream` is answered piece by piece where the route says so.
        """
        until = asyncio.get_running_loop().time() + self._patience_s
        asked = self._http.build_request("POST", "/v1/guidance", json=body)
        reply = await _in_time(self._http.send(asked, stream=True), until)
        receipt = reply.headers.get("x-request-id")
        try:
            if reply.status_code != httpx.codes.OK:
                raise _refusal(reply, await _in_time(_read(reply), until, begun=True))
            if "text/event-stream" not in reply.headers.get("content-type", ""):
                yield EdgeGuidance.read(_json(await _in_time(_read(reply), until, begun=True)))
                return
            decoder, received = SseDecoder(_MAX_REPLY_BYTES), reply.aiter_bytes()
            while data := await _in_time(anext(received, b""), until, begun=True):
                for event in _events(decoder, data):
                    if event == _LAST_EVENT:
                        continue
                    one = _heard(_json(event))
                    yield one
                    if isinstance(one, EdgeGuidance):
                        return
            raise _broke_off()
        except GatewayAway as away:
            away.receipt = receipt
            raise
        finally:
            await reply.aclose()

    async def tell(self, report: UsageReport) -> Told:
        """Tell of an answer. Raises GatewayAway, and GatewayRefused where the key or the version is wrong."""
        until = asyncio.get_running_loop().time() + min(_TELL_LIMIT_S, self._patience_s)
        reply = await _in_time(self._http.post(report.path, json=report.body), until)
        if reply.is_success:
            _see_receipt(_json(reply.content))
            return "closed"
        refusal = _refusal(reply, reply.content)
        if isinstance(refusal, VersionRefused | GatewayAway) or reply.status_code in _NOT_ALLOWED:
            raise refusal
        return "closed_before" if reply.status_code == httpx.codes.CONFLICT else "refused"


def address_of(url: str) -> str:
    """A gateway's address, which may be told with or without the /v1 at its end."""
    return url.rstrip("/").removesuffix("/v1")


async def _in_time(work: Awaitable[_T], until: float, *, begun: bool = False) -> _T:
    """What comes of it. `begun`: a reply has. Raises GatewayAway."""
    try:
        async with asyncio.timeout_at(until):
            return await work
    except (TimeoutError, httpx.TimeoutException):
        raise GatewayAway("gateway_timeout", "The gateway did not answer in time.") from None
    except httpx.HTTPError as error:
        if begun:
            raise _broke_off() from None
        raise GatewayAway("gateway_unreachable", f"The gateway cannot be reached ({type(error).__name__}).") from None


def _broke_off() -> GatewayAway:
    return GatewayAway("gateway_broke_off", "The gateway broke off before its guidance was whole.")


async def _read(reply: httpx.Response) -> bytes:
    """All of it, up to a bound."""
    raw = b""
    async for piece in reply.aiter_bytes():
        raw += piece
        if len(raw) > _MAX_REPLY_BYTES:
            raise GatewayAway("gateway_garbled", "What answers for the gateway does not end.")
    return raw


def _events(decoder: SseDecoder, data: bytes) -> list[bytes]:
    try:
        return decoder.feed(data)
    except EventTooLarge:
        raise GatewayAway("gateway_garbled", "What answers for the gateway does not end.") from None


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        raise GatewayAway("gateway_garbled", "What answers for the gateway speaks no JSON.") from None


def _see_receipt(told: Any) -> None:
    """Raises GatewayAway where it is none: a login page takes anything, and what it took would be lost."""
    if not isinstance(told, dict) or told.get("mode") != "edge":
        raise GatewayAway("gateway_garbled", "What answers for the gateway sent no receipt.")


def _heard(event: Any) -> str | EdgeGuidance:
    """One event of a stream."""
    if isinstance(event, dict) and event.get("error"):
        raise GatewayAway("gateway_failed", _said(event) or "The gateway failed.")
    if isinstance(event, dict) and event.get("object") == "guidance.chunk":
        piece = event.get("delta")
        if not isinstance(piece, str):
            raise GatewayAway("gateway_garbled", "The gateway sent a piece of guidance without text.")
        return piece
    return EdgeGuidance.read(event)


def _refusal(reply: httpx.Response, raw: bytes) -> GatewayAway | GatewayRefused:
    """What a reply that is not a good one means to a device."""
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    status, said = reply.status_code, _said(body)
    if status in _BUSY:
        return GatewayAway("gateway_busy", said or f"The gateway is busy ({status}).")
    if status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return GatewayAway("gateway_failed", said or f"The gateway failed ({status}).")
    if status == httpx.codes.REQUEST_TIMEOUT:
        return GatewayAway("gateway_timeout", said or "The request did not reach the gateway in time.")
    if said is None:
        return GatewayAway("gateway_garbled", f"What answers for the gateway is none: it said {status}.")
    error = body["error"]
    kind = VersionRefused if error.get("code") == "edge_version" else GatewayRefused
    return kind(said, status=status, code=error.get("code"), param=error.get("param"))


def _said(body: Any) -> str | None:
    """The message of an error in OpenAI's shape; None: it is none."""
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else None
