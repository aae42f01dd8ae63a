"""An engine that counts the tokens it reads and generates. It stops at a disconnect of its client if configured."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from tests.fake_texts import text_choice, text_chunk
from tests.fakes import begin_events, chunk, embedded, event, reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    Json = dict[str, Any]

WANTED = 30
"""Tokens of an answer whose caller sets no limit."""
_BYTES_PER_TOKEN = 4


@dataclass
class Books:
    """The engine's own account of one request."""

    read: int = 0
    generated: int = 0
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass
class CountingEngine:
    """Handle a `FakeEngine`'s calls. One token is one word; `user` identifies the request.

    Attributes:
        stops: whether a disconnect ends the generation.
        obeys: whether `max_tokens` ends the generation.
        first_s, token_s, usage_s: seconds before the first token, for each token, and before the usage.
        reported: returns the reported usage for the true one. With None the engine reports no usage.
    """

    stops: bool
    obeys: bool = True
    first_s: float = 0.15
    token_s: float = 0.005
    usage_s: float = 0.15
    reported: Callable[[Json], Json | None] = dict
    books: dict[str, Books] = field(default_factory=lambda: defaultdict(Books))

    async def __call__(self, request: web.Request, body: Json) -> web.StreamResponse:
        name = body.get("user", "")
        books = self.books[name]
        # The prompt includes the whole body, tools as well.
        books.read += len(orjson.dumps(body)) // _BYTES_PER_TOKEN
        tokens: asyncio.Queue[str | None] = asyncio.Queue()
        limit = (body.get("max_completion_tokens") or body.get("max_tokens")) if self.obeys else None
        tokens_wanted = WANTED if limit is None else limit
        generating = asyncio.ensure_future(self._generate(books, tokens, tokens_wanted, choices_of(body)))  # noqa: TID251
        try:
            return await self._answer(request, body, books, tokens)
        finally:
            if self.stops:
                generating.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.shield(generating)
            books.ended.set()

    async def embed(self, _: web.Request, body: Json) -> web.StreamResponse:
        """Read each text with two marks around it."""
        books = self.books[body.get("user", "")]
        books.read += sum(2 + len(text) // _BYTES_PER_TOKEN for text in body["input"])
        try:
            await asyncio.sleep(self.first_s)
        finally:
            books.ended.set()
        answer = orjson.loads(embedded(len(body["input"])))
        return web.json_response(answer | {"usage": self.reported({"prompt_tokens": books.read})})

    async def _generate(self, books: Books, tokens: asyncio.Queue[str | None], count: int, choices: int) -> None:
        await asyncio.sleep(self.first_s)
        for _ in range(count):
            books.generated += choices
            tokens.put_nowait(" word")
            await asyncio.sleep(self.token_s)
        tokens.put_nowait(None)

    async def _answer(
        self, request: web.Request, body: Json, books: Books, tokens: asyncio.Queue[str | None]
    ) -> web.StreamResponse:
        is_text, indexes = "prompt" in body, range(choices_of(body))
        if not body.get("stream"):
            text = "".join([token async for token in _all(tokens)])
            choice = text_choice(text, "length") if is_text else reply(text, "length")["choices"][0]
            choices = [choice | {"index": index} for index in indexes]
            whole = text_chunk(*choices) if is_text else reply("") | {"choices": choices}
            return web.json_response(whole | {"usage": self.reported(_usage(books))})
        response = await begin_events(request)
        async for token in _all(tokens):
            for index in indexes:
                await response.write(event(_chunk(is_text, index, token)))
        for index in indexes:
            await response.write(event(_chunk(is_text, index, "", "length")))
        await asyncio.sleep(self.usage_s)
        if (usage := self.reported(_usage(books))) is not None:
            await response.write(event({**(text_chunk() if is_text else chunk({})), "choices": [], "usage": usage}))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


def choices_of(body: Json) -> int:
    """Return the number of answers that a request asks for."""
    prompts = body.get("prompt")
    return (body.get("n") or 1) * (len(prompts) if isinstance(prompts, list) else 1)


def _chunk(is_text: bool, index: int, token: str, finish: str | None = None) -> Json:
    if is_text:
        return text_chunk(text_choice(token, finish, index))
    one = chunk({"content": token} if token else {}, finish)
    one["choices"][0]["index"] = index
    return one


async def _all(tokens: asyncio.Queue[str | None]) -> AsyncIterator[str]:
    while (token := await tokens.get()) is not None:
        yield token


def _usage(books: Books) -> Json:
    return {"prompt_tokens": books.read, "completion_tokens": books.generated}
