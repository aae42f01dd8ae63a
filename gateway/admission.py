"""Step 4: a place in this process, or an honest 503.

Limits and budgets of tenants will be reserved here, in Redis; so far a process bounds how many requests it works on at
once, and says so to the next one.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

from gateway.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from gateway.metrics import Metrics


class Admission:
    """Counts the requests this process holds.

    Args:
        max_in_flight: the bound; the next request is refused.
    """

    def __init__(self, max_in_flight: int, metrics: Metrics) -> None:
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._metrics = metrics
        self._empty = asyncio.Event()
        self._empty.set()
        self._cuts: set[asyncio.Timeout] = set()
        self.draining = False
        self.cutting = False

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place inside the block. Raises Overloaded."""
        if self.draining:
            raise Overloaded("This process is shutting down. Try again: another one will answer.")
        if self._in_flight >= self._max_in_flight:
            raise Overloaded(f"The gateway holds {self._in_flight} requests, its limit. Try again shortly.")
        self._in_flight += 1
        self._empty.clear()
        self._metrics.in_flight.set(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._empty.set()
            self._metrics.in_flight.set(self._in_flight)

    @asynccontextmanager
    async def until_cut(self) -> AsyncIterator[None]:
        """Let a drain end what is inside the block, while its caller can still be told. Raises Overloaded then."""
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._cuts.add(limit)
                try:
                    yield
                finally:
                    self._cuts.discard(limit)
        except TimeoutError:
            if not limit.expired():
                raise
            raise Overloaded("This process shut down before the answer was finished. Try again.") from None

    async def drain(self, timeout_s: float) -> int:
        """Refuse what is new, wait for what is here, and cut what is still here after `timeout_s`: how many."""
        self.draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        cut = self._in_flight
        self.cutting = True
        for limit in self._cuts:
            limit.reschedule(asyncio.get_running_loop().time())
        return cut
