"""A caller of a gateway, as an application is one: OpenAI's wire with streams, and the receipt of each answer."""

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
"""What errors call it."""
_RECEIPT_WITHIN_S = 20.0
_RECEIPT_EVERY_S = 0.05
_BUSY = frozenset({429, 503})
_MADE_IN_MS = 1000


@dataclass(frozen=True, slots=True)
class ClientAnswer:
    """What a caller has of one answer. `answered.text` is the whole of it, `total_s` how long it took."""

    answered: QuestionAnswer
    total_s: float


class GatewayClient:
    """Puts requests to one gateway.

    Args:
        session: with the caller's key in its headers.
        url: of the public listener, without a path.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url.rstrip("/")

    async def ask(self, body: Json) -> ClientAnswer:
        """Raises EngineErrors of an engine called `gateway`, with the gateway's own word for it as `reason`.

        Raises StartupError where its receipts cannot be used.
        """
        route = "completions" if "prompt" in body else "chat/completions"
        started = time.perf_counter()
        pieces: list[str] = []
        try:
            async with self._session.post(
                f"{self._url}/v1/{route}", json=body | {"stream": True}, allow_redirects=False
            ) as reply:
                if reply.status != 200:
                    raise _refused(reply.status, await reply.read())
                await _listen(reply, pieces)
                request_id = reply.headers.get("x-request-id", "")
            total_s = round(time.perf_counter() - started, 3)
            receipt = await self._receipt(request_id)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineUnreachable(f"The {GATEWAY} does not answer.", engine=GATEWAY) from error
        if receipt.status != "ok":
            failed = EngineFailed(f"The {GATEWAY} answered with {receipt.status}.", engine=GATEWAY)
            failed.reason = receipt.status
            raise failed
        teacher_ms = receipt.timings.teacher_ms
        answered = QuestionAnswer(
            "".join(pieces),
            _opening(receipt, pieces),
            receipt,
            None if teacher_ms is None else round(teacher_ms / _MADE_IN_MS, 3),
            None,
        )
        return ClientAnswer(answered, total_s)

    async def _receipt(self, request_id: str) -> Receipt:
        """It is written when a stream ends, a moment after its last byte."""
        give_up = time.perf_counter() + _RECEIPT_WITHIN_S
        while True:
            async with self._session.get(f"{self._url}/v1/receipts/{request_id}", allow_redirects=False) as reply:
                raw = await reply.read()
            if reply.status == 200:
                try:
                    return msgspec.convert(orjson.loads(raw), Receipt)
                except (msgspec.ValidationError, orjson.JSONDecodeError) as error:
                    raise StartupError(
                        "The gateway's receipts do not tell what an answer cost: set show_cost: true on its routes."
                    ) from error
            if time.perf_counter() > give_up:
                raise EngineProtocolError(f"The {GATEWAY} has no receipt of {request_id}.", engine=GATEWAY)
            await asyncio.sleep(_RECEIPT_EVERY_S)


async def _listen(reply: aiohttp.ClientResponse, pieces: list[str]) -> None:
    """The words of the answer, piece by piece as they came. Raises EngineFailed where the stream ends in an error."""
    decoder = SseDecoder()
    async for received in reply.content.iter_any():
        for event in decoder.feed(received):
            if event == b"[DONE]":
                return
            chunk = orjson.loads(event)
            if "error" in chunk:
                raise _refused(reply.status, event)
            for choice in chunk.get("choices", ()):
                said = choice["text"] if "text" in choice else (choice.get("delta") or {}).get("content")
                if said:
                    pieces.append(said)
    raise EngineProtocolError(f"The {GATEWAY} ended a stream early.", engine=GATEWAY)


def _opening(receipt: Receipt, pieces: list[str]) -> str:
    """The guidance, where it was shown: the routes of an evaluation send it in one piece. Else no caller sees it."""
    guidance = receipt.guidance
    if guidance is None or guidance.placement != "prefix" or not pieces:
        return ""
    return "".join(pieces) if receipt.mode == "teacher_complete" else pieces[0]


def _refused(status: int, body: bytes) -> EngineError:
    try:
        said = orjson.loads(body)["error"]
        code = said.get("code") or said.get("type")
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
