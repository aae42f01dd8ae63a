"""Request a streamed answer of an engine, and record its times. `plan measure` and `init` use it."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple

from gateway.protocol.capabilities.reasoning import begins_with_reasoning, without_reasoning
from gateway.protocol.content_run import each_chunk

if TYPE_CHECKING:
    from random import Random

    from gateway.engines.base import Engine
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.reasoning import Reasoning

_WORDS = ("river", "stone", "cloud", "paper", "window", "garden", "letter", "market", "winter", "bridge", "music")
_COUNT = "Write the numbers from one to ten thousand in words, one after the other, and nothing else."


class TimedStream(NamedTuple):
    """An answer: its text, the engine's token counts, and its times in seconds of one clock."""

    text: str
    usage: Json  # empty where the engine reports no counts
    started_s: float
    events_s: tuple[float, ...]  # of each event with text

    @property
    def is_reasoning(self) -> bool:
        """Return whether the answer has reasoning, or no text at all, up to its limit."""
        return not self.text or begins_with_reasoning(self.text)


async def time_stream(
    engine: Engine,
    random: Random,
    words: int,
    tokens: int,
    *,
    temperature: float = 0,
    reasoning: Reasoning = "none",
) -> TimedStream:
    """Request a long answer to a prompt of `words` words, cut after `tokens` tokens. Raises EngineError.

    All prompts differ, so that no cache helps.
    """
    text = " ".join(random.choice(_WORDS) for _ in range(words))
    body: Json = {
        "messages": [{"role": "user", "content": f"{random.getrandbits(64):x} {text}\n\n{_COUNT}"}],
        "max_tokens": tokens,
        "temperature": temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    pieces: list[str] = []
    events_s: list[float] = []
    usage: Json = {}
    started_s = time.perf_counter()
    async with aclosing(engine.stream(without_reasoning(reasoning, body))) as groups:
        async for chunks in groups:
            now_s = time.perf_counter()
            for chunk in each_chunk(chunks):
                usage = chunk.get("usage") or usage
                deltas = (choice.get("delta") or {} for choice in chunk.get("choices", ()))
                found = [piece for delta in deltas if (piece := delta.get("content"))]
                pieces += found
                events_s += [now_s] * len(found)
    return TimedStream("".join(pieces), usage, started_s, tuple(events_s))
