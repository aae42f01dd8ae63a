"""Handlers that continue after their caller disconnected, to read the usage of the engine's reply."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from gateway.api.keys import DISCONNECTS, STATE

if TYPE_CHECKING:
    import asyncio


class DetachedHandlers:
    """Bounds the number of such handlers and their time.

    Args:
        limit: handlers that may continue at once. Others are cancelled.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0

    def begin(self, request: web.BaseRequest, task: asyncio.Task[None]) -> bool:
        """Let a request's handler continue if its engine call is worth it, and cancel `task` after a time limit."""
        if self._count >= self._limit or not isinstance(request, web.Request):
            return False
        if (state := request.get(STATE)) is None:
            return False
        if (seconds := request.app[DISCONNECTS].read_on_s(state.builder)) <= 0:
            return False
        self._count += 1
        timer = task.get_loop().call_later(seconds, task.cancel)

        def ended(_: asyncio.Task[None]) -> None:
            timer.cancel()
            self._count -= 1

        task.add_done_callback(ended)
        return True
