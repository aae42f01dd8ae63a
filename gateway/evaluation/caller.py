"""A client of a gateway, like an application: streams of OpenAI's protocol, and the receipt of each answer."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
import msgspec
import orjson

from gateway.accounting.receipt import Receipt
from gateway.engines.sse import SseDecoder
from gateway.errors import (
    EngineFailed,
    EngineOverloaded,
    EngineProtocolError,
    EngineRejected,
    EngineUnreachable,
    StartupError,
)
from gateway.evaluation.staged import QuestionAnswer

if TYPE_CHECKING:
    from gateway.errors import EngineError
    from gateway.protocol.body import Json

GATEWAY = "gateway"
"""Engine name in errors."""
_RECEIPT_TIMEOUT_S = 20.0
_RECEIPT_INTERVAL_S = 0.05
_BUSY = frozenset({429, 503})
_MS_PER_S = 1000


@dataclass(frozen=True, slots=True)
class ClientAnswer:
    """An answer as a client receives it. `answered.text` is the whole text, `total_s` its time in seconds."""

    answered: QuestionAnswer
    total_s: float


class GatewayClient:
    """Client of one gateway.

    Args:
        session: HTTP session with the API key in its headers.
        url: Address of the public listener, without a path.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url.rstrip("/")

    async def complete(self, body: Json) -> ClientAnswer:
        """Send a request and return the streamed answer with its receipt.

        Raises:
            EngineError: The engine `gateway` failed, with the gateway's error code as `reason`.
            StartupError: The gateway's receipts cannot be used.
        """
        route = "completions" if "prompt" in body else "chat/completions"
        started = time.perf_counter()
        pieces: list[str] = []
        try:
            async with self._session.post(
                f"{self._url}/v1/{route}", json=body | {"stream": True}, allow_redirects=False
            ) as reply:
                if reply.status != 200:
                    raise _error(reply.status, await reply.read())
                await _read_stream(reply, pieces)
                request_id = reply.headers.get("x-request-id", "")
            total_s = round(time.perf_counter() - started, 3)
            receipt = await self._receipt(request_id)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineUnreachable(f"The {GATEWAY} does not respond.", engine=GATEWAY) from error
        if receipt.status != "ok":
            failure = EngineFailed(f"The {GATEWAY} answered with {receipt.status}.", engine=GATEWAY)
            failure.reason = receipt.status
            raise failure
        teacher_ms = receipt.timings.teacher_ms
        answered = QuestionAnswer(
            "".join(pieces),
            _guidance(receipt, pieces),
            receipt,
            None if teacher_ms is None else round(teacher_ms / _MS_PER_S, 3),
            None,
        )
        return ClientAnswer(answered, total_s)

    async def _receipt(self, request_id: str) -> Receipt:
        """Poll for the receipt, which is written shortly after the last byte of the stream."""
        deadline = time.perf_counter() + _RECEIPT_TIMEOUT_S
        while True:
            async with self._session.get(f"{self._url}/v1/receipts/{request_id}", allow_redirects=False) as reply:
                raw = await reply.read()
            if reply.status == 200:
                try:
                    return msgspec.convert(orjson.loads(raw), Receipt)
                except (msgspec.ValidationError, orjson.JSONDecodeError) as error:
                    raise StartupError(
                        "The gateway's receipts have no costs: set show_cost: true on its routes."
                    ) from error
            if time.perf_counter() > deadline:
                raise EngineProtocolError(f"The {GATEWAY} has no receipt for {request_id}.", engine=GATEWAY)
            await asyncio.sleep(_RECEIPT_INTERVAL_S)


async def _read_stream(reply: aiohttp.ClientResponse, pieces: list[str]) -> None:
    """Append the text of the stream to `pieces` as it arrives. Raises EngineFailed if the stream ends with an error."""
    decoder = SseDecoder()
    async for received in reply.content.iter_any():
        for event in decoder.feed(received):
            if event == b"[DONE]":
                return
            chunk = orjson.loads(event)
            if "error" in chunk:
                raise _error(reply.status, event)
            for choice in chunk.get("choices", ()):
                text = choice["text"] if "text" in choice else (choice.get("delta") or {}).get("content")
                if text:
                    pieces.append(text)
    raise EngineProtocolError(f"The {GATEWAY} ended a stream without [DONE].", engine=GATEWAY)


def _guidance(receipt: Receipt, pieces: list[str]) -> str:
    """Return the guidance if the client received it: the routes of an evaluation send it as one piece."""
    guidance = receipt.guidance
    if guidance is None or guidance.placement != "prefix" or not pieces:
        return ""
    return "".join(pieces) if receipt.mode == "teacher_complete" else pieces[0]


def _error(status: int, body: bytes) -> EngineError:
    try:
        content = orjson.loads(body)["error"]
        code = content.get("code") or content.get("type")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        code = None
    message = f"The {GATEWAY} answered with status {status}" + (f" ({code})." if code else ".")
    error: EngineError
    if status in _BUSY:
        error = EngineOverloaded(message, engine=GATEWAY)
    elif 400 <= status < 500:
        error = EngineRejected(message, engine=GATEWAY, status_sent=status)
    else:
        error = EngineFailed(message, engine=GATEWAY)
    error.reason = code if isinstance(code, str) else None
    return error
