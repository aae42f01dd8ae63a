"""An engine that counts the tokens it reads and generates, and stops, or does not, when its client disconnects."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from tests.fakes import begin_events, chunk, event, reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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
    """Handles a `FakeEngine`'s calls. One token is one word; the caller names its request in `user`.

    Attributes:
        stops: whether a disconnect ends the generation.
        obeys: whether `max_tokens` does.
        first_s, token_s, usage_s: what it takes to the first token, for each one, and to the usage.
    """

    stops: bool
    obeys: bool = True
    first_s: float = 0.15
    token_s: float = 0.005
    usage_s: float = 0.15
    books: dict[str, Books] = field(default_factory=lambda: defaultdict(Books))

    async def __call__(self, request: web.Request, body: Json) -> web.StreamResponse:
        name = body.get("user", "")
        books = self.books[name]
        # Its prompt is all that stands in the body: tools as well.
        books.read += len(orjson.dumps(body)) // _BYTES_PER_TOKEN
        tokens: asyncio.Queue[str | None] = asyncio.Queue()
        limit = (body.get("max_completion_tokens") or body.get("max_tokens")) if self.obeys else None
        tokens_wanted = WANTED if limit is None else limit
        generating = asyncio.ensure_future(self._generate(books, tokens, tokens_wanted))  # noqa: TID251
        try:
            return await self._answer(request, body, books, tokens)
        finally:
            if self.stops:
                generating.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.shield(generating)
            books.ended.set()

    async def _generate(self, books: Books, tokens: asyncio.Queue[str | None], count: int) -> None:
        await asyncio.sleep(self.first_s)
        for _ in range(count):
            books.generated += 1
            tokens.put_nowait(" word")
            await asyncio.sleep(self.token_s)
        tokens.put_nowait(None)

    async def _answer(
        self, request: web.Request, body: Json, books: Books, tokens: asyncio.Queue[str | None]
    ) -> web.StreamResponse:
        if not body.get("stream"):
            text = "".join([token async for token in _all(tokens)])
            return web.json_response(reply(text, "length", _usage(books)))
        response = await begin_events(request)
        async for token in _all(tokens):
            await response.write(event(chunk({"content": token})))
        await response.write(event(chunk({}, "length")))
        await asyncio.sleep(self.usage_s)
        await response.write(event({**chunk({}), "choices": [], "usage": _usage(books)}) + b"data: [DONE]\n\n")
        await response.write_eof()
        return response


async def _all(tokens: asyncio.Queue[str | None]) -> AsyncIterator[str]:
    while (token := await tokens.get()) is not None:
        yield token


def _usage(books: Books) -> dict[str, int]:
    return {"prompt_tokens": books.read, "completion_tokens": books.generated}
