"""Handlers that go on after their caller disconnected, so that the usage of an engine's reply is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from gateway.api.keys import DISCONNECTS, OPENED

if TYPE_CHECKING:
    import asyncio


class DetachedHandlers:
    """Bounds these handlers in number and time.

    Args:
        most: handlers that may go on at once; others are cancelled.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0

    def begin(self, request: web.BaseRequest, task: asyncio.Task[None]) -> bool:
        """Let a request's handler go on, if its call is worth it; cancel `task` when the time is over."""
        if self._count >= self._most or not isinstance(request, web.Request):
            return False
        if (opened := request.get(OPENED)) is None:
            return False
        if (seconds := request.app[DISCONNECTS].read_on_s(opened.builder)) <= 0:
            return False
        self._count += 1
        timer = task.get_loop().call_later(seconds, task.cancel)

        def ended(_: asyncio.Task[None]) -> None:
            timer.cancel()
            self._count -= 1

        task.add_done_callback(ended)
        return True
