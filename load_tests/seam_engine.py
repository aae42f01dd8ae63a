"""A llama.cpp server for the seam experiment: greedy, one slot, no cache, tokens one by one."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from gateway.engines.sse import SseDecoder
from gateway.protocol.capabilities.continuation import place_prefix

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from types import TracebackType

LIMIT_S = 300.0
UNREPORTED = -1
GREEDY = {"temperature": 0, "cache_prompt": False}


@dataclass(frozen=True)
class Written:
    """Text of a model, with the end of each token.

    Attributes:
        prompt_ids: the tokens of the prompt.
        ids: the generated tokens. `UNREPORTED` for tokens with an incomplete character, which llama.cpp omits.
        ends: the number of characters after each token.
        ended: whether the answer ended by itself.
    """

    prompt_ids: tuple[int, ...]
    text: str
    ids: tuple[int, ...]
    ends: tuple[int, ...]
    ended: bool

    def upto(self, tokens: int) -> tuple[str, bool]:
        """Return the text of the first `max_tokens` tokens, and whether it was cut."""
        if tokens >= len(self.ids):
            return self.text, not self.ended
        return self.text[: self.ends[tokens - 1]], True


class SeamEngine:
    """An async context manager around the connections to one server."""

    def __init__(self, url: str) -> None:
        # llama.cpp may close an idle connection at the moment of its reuse.
        self._session = aiohttp.ClientSession(
            url,
            connector=aiohttp.TCPConnector(force_close=True),
            timeout=aiohttp.ClientTimeout(LIMIT_S),
            json_serialize=lambda body: orjson.dumps(body).decode(),
        )

    async def __aenter__(self) -> SeamEngine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def write(self, question: str, tokens: int) -> Written:
        """Return the model's own answer, up to a number of tokens."""
        prompt = await self.rendered([{"role": "user", "content": question}])
        ids: list[int] = []
        ends: list[int] = []
        text, ended = "", False
        body = {**GREEDY, "prompt": prompt, "n_predict": tokens, "return_tokens": True}
        async with aclosing(self._events("/completion", body)) as events:
            async for event in events:
                text += event["content"]
                reported = event.get("tokens") or []
                unreported = event["tokens_predicted"] - len(ids) - len(reported)
                if event["stop"]:
                    ended = event["stop_type"] == "eos"
                    unreported -= ended  # the end-of-text token
                before = len(text) - len(event["content"])
                ids += [UNREPORTED] * unreported + reported
                ends += [before] * unreported + [len(text)] * len(reported)
        return Written(await self.tokens(prompt), text, tuple(ids), tuple(ends), ended)

    async def continue_answer(self, question: str, begun: str, tokens: int) -> AsyncGenerator[str, None]:
        """Yield the pieces of the reply to a chat with guidance, requested as the gateway does it."""
        body = {**GREEDY, "messages": [{"role": "user", "content": question}], "max_tokens": tokens}
        async with aclosing(self._events("/v1/chat/completions", place_prefix("trailing", body, begun))) as events:
            async for event in events:
                for choice in event["choices"]:
                    if piece := choice["delta"].get("content"):
                        yield piece

    async def rendered(self, messages: Sequence[dict[str, str]]) -> str:
        """Return the prompt that the chat template renders."""
        reply = await self._post("/apply-template", {"messages": messages})
        return str(reply["prompt"])

    async def tokens(self, prompt: str) -> tuple[int, ...]:
        """Return the tokens of a rendered prompt."""
        reply = await self._post("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})
        return tuple(reply["tokens"])

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        async with self._session.post(path, json=body) as reply:
            reply.raise_for_status()
            return orjson.loads(await reply.read())

    async def _events(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        decoder = SseDecoder()
        async with self._session.post(path, json={**body, "stream": True}) as reply:
            reply.raise_for_status()
            async for part in reply.content.iter_any():
                for event in decoder.feed(part):
                    if event != b"[DONE]":
                        yield orjson.loads(event)
