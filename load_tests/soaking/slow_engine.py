"""A slow engine that reports the arrival of calls, so that callers can disconnect during an engine call."""

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
    """An engine with answers of two seconds: whole at their end, or one word per 0.1 s. Embeddings are immediate."""

    def __init__(self) -> None:
        self.engine = FakeEngine(self._behave)
        self._on_arrival: dict[str, Callable[[], object]] = {}

    async def cancel_on_arrival(self, mark: str, ask: Callable[[], Awaitable[object]], limit_s: float) -> bool:
        """Start `ask` with the question `mark`, and cancel it when its call arrives here, or after `limit_s`.

        Return whether the call arrived. An exception of an `ask` that ended earlier is raised.
        """
        loop, came = asyncio.get_running_loop(), asyncio.Event()
        self._on_arrival[mark] = lambda: loop.call_soon_threadsafe(came.set)
        asking = asyncio.ensure_future(ask())  # noqa: TID251  awaited below
        waiting = asyncio.ensure_future(came.wait())  # noqa: TID251
        try:
            await asyncio.wait({asking, waiting}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                await asking
            return came.is_set()
        finally:
            del self._on_arrival[mark]
            waiting.cancel()
            asking.cancel()
            await asyncio.gather(waiting, asking, return_exceptions=True)

    async def _behave(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        on_arrival = self._on_arrival.get(str(body["messages"][-1]["content"]))
        if on_arrival is not None:
            on_arrival()
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
