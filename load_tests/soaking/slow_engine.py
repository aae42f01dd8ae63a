"""An engine that takes its time, and says which calls have reached it, so that a caller can leave when it has his."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.fakes import FakeEngine, begin_events, chunk, event, reply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_WORDS = 20
_APART_S = 0.1


class SlowEngine:
    """Two seconds for an answer: whole at their end, or a word each tenth of one. It makes embeddings at once."""

    def __init__(self) -> None:
        self.engine = FakeEngine(self._behave)
        self._heard: dict[str, Callable[[], object]] = {}

    async def heard(self, mark: str, ask: Callable[[], Awaitable[object]], limit_s: float) -> bool:
        """Start `ask`, whose question is `mark`, and break it off as soon as that has come here, or after `limit_s`.

        Returns whether it has come. An `ask` that has ended by then is not broken off; what it raises is raised.
        """
        loop, came = asyncio.get_running_loop(), asyncio.Event()
        self._heard[mark] = lambda: loop.call_soon_threadsafe(came.set)
        asking = asyncio.ensure_future(ask())  # noqa: TID251  awaited below
        waiting = asyncio.ensure_future(came.wait())  # noqa: TID251
        try:
            await asyncio.wait({asking, waiting}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                await asking
            return came.is_set()
        finally:
            del self._heard[mark]
            waiting.cancel()
            asking.cancel()
            await asyncio.gather(waiting, asking, return_exceptions=True)

    async def _behave(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        tell = self._heard.get(str(body["messages"][-1]["content"]))
        if tell is not None:
            tell()
        if not body.get("stream"):
            await asyncio.sleep(_WORDS * _APART_S)
            return web.json_response(reply(" word" * _WORDS))
        response = await begin_events(request)
        for _ in range(_WORDS):
            await response.write(event(chunk({"content": " word"})))
            await asyncio.sleep(_APART_S)
        await response.write(event(chunk({}, "stop")))
        await response.write(event({**chunk({}), "choices": [], "usage": reply(" word" * _WORDS)["usage"]}))
        await response.write(b"data: [DONE]\n\n")
        return response
