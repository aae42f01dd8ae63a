"""Requests to the gateway: guidance, with the gateway's reply, and usage reports."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeVar

import httpx

from gateway.edge.errors import GatewayAway, GatewayRefused, VersionRefused
from gateway.engines.sse import EventTooLarge, SseDecoder
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable

    from gateway.edge.queue import UsageReport
    from gateway.protocol.body import Json

EDGE_VERSION = 1  # version of the protocol between gateway and device, sent in the header X-GKT-Edge

CONNECT_LIMIT_S = 5.0
_REPORT_LIMIT_S = 10.0
_MAX_REPLY_BYTES = 4_000_000
_LAST_EVENT = b"[DONE]"
_URL = re.compile(r"https?://[^/]", re.IGNORECASE)
_BUSY = frozenset({429, 503})
# The key is rejected: stored reports are kept.
_NOT_ALLOWED = frozenset({401, 403})

ReportResult = Literal[
    "closed",  # the gateway stored the report
    "closed_before",  # it had the report already: an earlier reply was lost
    "refused",  # it rejects the report; a retry fails too
]

_T = TypeVar("_T")


class EdgeGuidance(NamedTuple):
    """Validated guidance."""

    receipt: str | None  # id of the gateway's receipt, which the device closes; None: unknown
    text: str  # the beginning of the answer, shown and continued; empty without guidance
    pending_space: str = ""  # whitespace after `text` in the teacher's output
    placement: str = "prefix"  # the answer begins with the guidance; otherwise it is in `messages` and not shown
    projection: str = "cutoff"  # its introduction is used if the student cannot continue the guidance
    kept_tokens: int = 0  # number of the teacher's tokens in `text`
    finish_reason: str | None = None  # why the answer ended, if `text` is the whole answer; else None
    messages: list[Json] | None = None  # messages for the student instead of the caller's; None: the caller's
    unguided: str | None = None  # the reason for no guidance; else None
    most_output_tokens: int | None = None  # the most output tokens that the device may report; None: no limit

    @classmethod
    def read(cls, reply: Any) -> Self:
        """Decode the gateway's JSON. Raises GatewayAway (gateway_garbled) if it is invalid."""
        try:
            fields, closing = reply["guidance"], reply["close"]
            guidance = cls(
                receipt=_is(reply["receipt"], str),
                text=_is(fields["text"], str),
                pending_space=_is((fields.get("seam") or {}).get("owed") or "", str),
                placement=_is(fields["placement"], str | None) or "prefix",
                projection=_is(fields["projection"], str | None) or "cutoff",
                kept_tokens=_is(fields["kept_tokens"], int),
                finish_reason=_is(fields["finish_reason"], str | None),
                messages=_is(reply["messages"], list | None),
                unguided=_is(reply["unguided"], str | None),
                most_output_tokens=_is(closing["most_output_tokens"], int | None),
            )
        except (KeyError, TypeError, AttributeError):
            raise GatewayAway("gateway_garbled", "The gateway's reply contains no guidance.") from None
        is_whole = guidance.finish_reason is not None
        if guidance.placement != "prefix" and guidance.unguided is None and guidance.messages is None and not is_whole:
            raise GatewayAway("gateway_garbled", "The gateway's reply has guidance for the prompt, but no messages.")
        return guidance


class GatewayLink:
    """A connection to one gateway with one key. Raises ValueError for an invalid URL, which may end in /v1.

    `patience_s` is the longest time for guidance, in seconds.
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
                for event in decoder.feed(data):
                    if event == _LAST_EVENT:
                        continue
                    piece = _decode(_json(event))
                    yield piece
                    if isinstance(piece, EdgeGuidance):
                        return
            raise _incomplete()
        except (GatewayAway, EventTooLarge) as error:
            away = error if isinstance(error, GatewayAway) else _too_large()
            away.receipt = receipt
            raise away from None
        finally:
            await reply.aclose()

    async def send_report(self, report: UsageReport) -> ReportResult:
        """Send a usage report. Raises GatewayAway, and GatewayRefused if the key or the version is rejected."""
        until = asyncio.get_running_loop().time() + min(_REPORT_LIMIT_S, self._patience_s)
        reply = await _in_time(self._http.post(report.path, json=report.body), until)
        if reply.is_success:
            receipt = _json(reply.content)
            if not isinstance(receipt, dict) or receipt.get("mode") != "edge":
                # A login page accepts anything, and the report would be lost.
                raise GatewayAway("gateway_garbled", "The reply at the gateway's URL is not a receipt.")
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
    raw = b""
    async for piece in reply.aiter_bytes():
        raw += piece
        if len(raw) > _MAX_REPLY_BYTES:
            raise _too_large()
    return raw


def _too_large() -> GatewayAway:
    return GatewayAway("gateway_garbled", "The reply at the gateway's URL is too large.")


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        raise GatewayAway("gateway_garbled", "The reply at the gateway's URL is not JSON.") from None


def _decode(event: Any) -> str | EdgeGuidance:
    if isinstance(event, dict) and event.get("error"):
        raise GatewayAway("gateway_failed", _message(event) or "The gateway failed.")
    if isinstance(event, dict) and event.get("object") == "guidance.chunk":
        piece = event.get("delta")
        if not isinstance(piece, str):
            raise GatewayAway("gateway_garbled", "The gateway sent a guidance chunk without text.")
        return piece
    return EdgeGuidance.read(event)


def _refusal(reply: httpx.Response, raw: bytes) -> GatewayAway | GatewayRefused:
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


def _is(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError
    return value
