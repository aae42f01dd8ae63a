"""Time a streamed chat completion on the caller's side."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import typer

from gateway.engines.sse import SseDecoder

if TYPE_CHECKING:
    import aiohttp


@dataclass(frozen=True, slots=True)
class Timed:
    """A timed answer.

    Attributes:
        first_s: seconds to the first text.
        total_s: seconds to the end of the stream.
        tokens: completion tokens in `usage`.
        facts: receipt facts in the gateway's last chunk (`gkt`); empty from a bare engine.
        cached: tokens of the prompt in `usage` that the engine read from its cache.
        text: the answer.
    """

    first_s: float
    total_s: float
    tokens: int
    facts: dict[str, Any]
    cached: int = 0
    text: str = ""


async def ask(
    session: aiohttp.ClientSession, url: str, model: str, question: str, max_tokens: int, **more: Any
) -> Timed:
    """Send a greedy request and read the stream. Raise typer.BadParameter if it fails or contains no text."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }
    decoder = SseDecoder()
    started, first_s, tokens, cached, facts, text = time.perf_counter(), 0.0, 0, 0, {}, ""
    async with session.post(f"{url}/v1/chat/completions", data=orjson.dumps(body)) as reply:
        if not reply.ok:
            raise typer.BadParameter(f"{model} answered {reply.status}: {await reply.text()}")
        async for received in reply.content.iter_any():
            for data in decoder.feed(received):
                event = {} if data == b"[DONE]" else orjson.loads(data)
                if "error" in event:
                    raise typer.BadParameter(f"{model}'s stream failed: {event['error']}")
                text += "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
                if text and not first_s:
                    first_s = time.perf_counter() - started
                if event.get("usage"):
                    tokens, facts = event["usage"]["completion_tokens"], event.get("gkt", {})
                    cached = (event["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    if not first_s:
        raise typer.BadParameter(f"{model} answered without text: {question!r}")
    return Timed(first_s, time.perf_counter() - started, tokens, facts, cached, text)
