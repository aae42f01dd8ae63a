"""Readiness of a process: every engine was probed, and Redis answered afterwards."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.engines.base import Engine
    from gateway.redis.client import RedisClient

_FIRST_PROBES_S = 5.0
"""An engine that does not answer its first probe delays readiness by no more than this."""
_POLL_S = 0.02


class Readiness:
    """The startup of one process.

    Redis must answer after all startup work is done: that work may block the event loop for longer than Redis' timeout.

    Attributes:
        done: whether the process may receive requests.
    """

    def __init__(self, redis: RedisClient, engines: Iterable[Engine]) -> None:
        self._redis = redis
        self._engines = tuple(engines)
        self.done = False

    async def run(self, first_probes_s: float = _FIRST_PROBES_S) -> None:
        """Wait until the startup is complete. An unavailable Redis delays it."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + first_probes_s
        while any(engine.state.up is None for engine in self._engines) and loop.time() < give_up:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        await self._redis.wait_answered()
        self.done = True
