"""Requests to the gateway: guidance and usage reports."""

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
"""Version of the protocol between gateway and device, sent in the header X-GKT-Edge."""

CONNECT_LIMIT_S = 5.0
_REPORT_LIMIT_S = 10.0
_MAX_REPLY_BYTES = 4_000_000
_LAST_EVENT = b"[DONE]"
_URL = re.compile(r"https?://[^/]", re.IGNORECASE)
_BUSY = frozenset({429, 503})
# The key is rejected: stored reports are kept.
_NOT_ALLOWED = frozenset({401, 403})

ReportResult = Literal["closed", "closed_before", "refused"]
"""
closed         the gateway stored the report
closed_before  it had the report already: an earlier reply was lost
refused        it rejects the report; a retry fails too
"""

_T = TypeVar("_T")


class GatewayLink:
    """A connection to one gateway with one key.

    Args:
        url: the gateway's URL, with or without /v1 at its end.
        patience_s: the longest time for guidance, in seconds.

    Raises:
        ValueError: the URL is invalid.
    """

    def __init__(self, url: str, key: str, *, patience_s: float) -> None:
        base = address_of(url)
        if not _URL.match(base):
            raise ValueError(f"'{url}' is not a gateway's URL: expected http://HOST or https://HOST")
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

    async def request_guidance(self, body: Json) -> AsyncGenerator[str | EdgeGuidance, None]:
        """Request guidance: yield its pieces as they arrive, then the complete guidance.

        Pieces arrive for a body with `stream` if the route allows it. Raises GatewayAway and GatewayRefused.
        """
        until = asyncio.get_running_loop().time() + self._patience_s
        request = self._http.build_request("POST", "/v1/guidance", json=body)
        reply = await _in_time(self._http.send(request, stream=True), until)
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
                    piece = _decode(_json(event))
                    yield piece
                    if isinstance(piece, EdgeGuidance):
                        return
            raise _incomplete()
        except GatewayAway as away:
            away.receipt = receipt
            raise
        finally:
            await reply.aclose()

    async def send_report(self, report: UsageReport) -> ReportResult:
        """Send a usage report. Raises GatewayAway, and GatewayRefused if the key or the version is rejected."""
        until = asyncio.get_running_loop().time() + min(_REPORT_LIMIT_S, self._patience_s)
        reply = await _in_time(self._http.post(report.path, json=report.body), until)
        if reply.is_success:
            _check_receipt(_json(reply.content))
            return "closed"
        refusal = _refusal(reply, reply.content)
        if isinstance(refusal, VersionRefused | GatewayAway) or reply.status_code in _NOT_ALLOWED:
            raise refusal
        return "closed_before" if reply.status_code == httpx.codes.CONFLICT else "refused"


def address_of(url: str) -> str:
    """Return a gateway's URL without /v1 at its end."""
    return url.rstrip("/").removesuffix("/v1")


async def _in_time(awaitable: Awaitable[_T], until: float, *, begun: bool = False) -> _T:
    """Await a result until a time on the loop's clock. `begun`: a reply has begun. Raises GatewayAway."""
    try:
        async with asyncio.timeout_at(until):
            return await awaitable
    except (TimeoutError, httpx.TimeoutException):
        raise GatewayAway("gateway_timeout", "The gateway did not answer in time.") from None
    except httpx.HTTPError as error:
        if begun:
            raise _incomplete() from None
        raise GatewayAway("gateway_unreachable", f"The gateway cannot be reached ({type(error).__name__}).") from None


def _incomplete() -> GatewayAway:
    return GatewayAway("gateway_broke_off", "The gateway closed the connection before its reply was complete.")


async def _read(reply: httpx.Response) -> bytes:
    """Return the body of a reply, up to a maximum size."""
    raw = b""
    async for piece in reply.aiter_bytes():
        raw += piece
        if len(raw) > _MAX_REPLY_BYTES:
            raise GatewayAway("gateway_garbled", "The reply at the gateway's URL is too large.")
    return raw


def _events(decoder: SseDecoder, data: bytes) -> list[bytes]:
    try:
        return decoder.feed(data)
    except EventTooLarge:
        raise GatewayAway("gateway_garbled", "The reply at the gateway's URL is too large.") from None


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        raise GatewayAway("gateway_garbled", "The reply at the gateway's URL is not JSON.") from None


def _check_receipt(reply: Any) -> None:
    """Raise GatewayAway if the reply is no receipt: a login page accepts anything, and the report would be lost."""
    if not isinstance(reply, dict) or reply.get("mode") != "edge":
        raise GatewayAway("gateway_garbled", "The reply at the gateway's URL is not a receipt.")


def _decode(event: Any) -> str | EdgeGuidance:
    """Decode one event of a stream."""
    if isinstance(event, dict) and event.get("error"):
        raise GatewayAway("gateway_failed", _message(event) or "The gateway failed.")
    if isinstance(event, dict) and event.get("object") == "guidance.chunk":
        piece = event.get("delta")
        if not isinstance(piece, str):
            raise GatewayAway("gateway_garbled", "The gateway sent a guidance chunk without text.")
        return piece
    return EdgeGuidance.read(event)


def _refusal(reply: httpx.Response, raw: bytes) -> GatewayAway | GatewayRefused:
    """Return the exception of a reply without success."""
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    status, message = reply.status_code, _message(body)
    if status in _BUSY:
        return GatewayAway("gateway_busy", message or f"The gateway is busy ({status}).")
    if status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return GatewayAway("gateway_failed", message or f"The gateway failed ({status}).")
    if status == httpx.codes.REQUEST_TIMEOUT:
        return GatewayAway("gateway_timeout", message or "The request did not reach the gateway in time.")
    if message is None:
        return GatewayAway("gateway_garbled", f"The server at the gateway's URL is no gateway: it replied {status}.")
    error = body["error"]
    kind = VersionRefused if error.get("code") == "edge_version" else GatewayRefused
    return kind(message, status=status, code=error.get("code"), param=error.get("param"))


def _message(body: Any) -> str | None:
    """Return the message of an error in OpenAI's format; None if it has another format."""
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else None
