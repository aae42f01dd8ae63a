"""Bounds the calls in flight of one engine. Calls above the bound wait, in turn between tenants.

The scheduler of guidance grants permits for teachers over the whole fleet. Slots count those calls too, but only calls
that complete answers, and embeddings, wait for slots.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque

from gateway.errors import EngineOverloaded

_MAX_WAITING = 1000
_TIMEOUT_S = 30.0


class CallSlots:
    """The calls in flight of one engine, and the calls that wait while there are `limit` of them.

    A free slot goes to the waiting tenant with the fewest calls in flight, then to the one that waits longest. So no
    tenant gets all slots while another waits.

    `configured` is the operator's limit, None: there is none. The engine may report another: see `update`.
    """

    __slots__ = (
        *("_configured", "_held", "_max_waiting", "_name", "_timeout_s", "_waiting"),
        *("in_flight", "limit", "reserved"),
    )

    def __init__(
        self,
        name: str,
        configured: int | None = None,
        *,
        max_waiting: int = _MAX_WAITING,  # waiting calls of one tenant
        timeout_s: float = _TIMEOUT_S,  # how long a call waits
    ) -> None:
        self._name = name
        self._configured = configured
        self._max_waiting = max_waiting
        self._timeout_s = timeout_s
        self._held: dict[str, int] = {}  # calls in flight by tenant
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by tenant; the one served last is the last
        self.in_flight = 0  # with reserved slots
        self.reserved = 0  # slots of calls that are about to start
        self.limit = configured  # None: there is none

    @property
    def waiting(self) -> int:
        """The number of waiting calls."""
        return sum(map(len, self._waiting.values()))

    @property
    def is_full(self) -> bool:
        """Return whether the next call must wait."""
        return self.limit is not None and self.in_flight >= self.limit

    def update(self, reported: int | None, processes: int) -> None:
        """Set the limit of this process: its share of the lower of the engine's own limit and the configured one."""
        limits = [limit for limit in (self._configured, reported) if limit is not None]
        self.limit = max(1, min(limits) // processes) if limits else None
        if self._waiting:
            self._grant()

    def enter(self, tenant: str) -> None:
        """Count a call that starts now, whether or not there is a slot for it."""
        self.in_flight += 1
        self._held[tenant] = self._held.get(tenant, 0) + 1

    def leave(self, tenant: str) -> None:
        """Free the slot of a call that has ended."""
        self._release(tenant)
        if self._waiting:
            self._grant()

    async def wait(self, tenant: str, most_s: float = math.inf) -> None:
        """Wait for a slot, for at most `most_s`. The caller must start the call before its next suspension.

        Raises:
            EngineOverloaded: too many calls of the tenant wait, or there was no slot in time.
        """
        queue = self._waiting.get(tenant)
        if queue is None:
            queue = self._waiting[tenant] = deque()
        elif len(queue) >= self._max_waiting:
            raise self._error(f"and {len(queue)} calls of the tenant wait")
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        queue.append(waiter)
        try:
            async with asyncio.timeout(min(self._timeout_s, most_s)) as limit:
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                self.reserved -= 1
                self.leave(tenant)  # the slot came at the same time
            else:
                self._remove(tenant, waiter)
            if isinstance(error, TimeoutError) and limit.expired():
                raise self._error("and none of them ended in time") from None
            raise
        # The call enters by itself. If it does not start, the slot is free for another one.
        self.reserved -= 1
        self._release(tenant)
        loop.call_soon(self._grant)

    def _release(self, tenant: str) -> None:
        self.in_flight -= 1
        if (held := self._held[tenant]) > 1:
            self._held[tenant] = held - 1
        else:
            del self._held[tenant]

    def _grant(self) -> None:
        """Reserve the free slots for waiting calls."""
        while self._waiting and not self.is_full:
            tenant = min(self._waiting, key=lambda one: self._held.get(one, 0))
            queue = self._waiting.pop(tenant)
            waiter = queue.popleft()
            if queue:
                self._waiting[tenant] = queue
            if not waiter.done():
                self.enter(tenant)
                self.reserved += 1
                waiter.set_result(None)

    def _remove(self, tenant: str, waiter: asyncio.Future[None]) -> None:
        queue = self._waiting.get(tenant)
        if queue is not None and waiter in queue:
            queue.remove(waiter)
            if not queue:
                del self._waiting[tenant]

    def _error(self, why: str) -> EngineOverloaded:
        message = f"Engine '{self._name}' has {self.in_flight} calls in flight, its limit, {why}."
        error = EngineOverloaded(message, engine=self._name)
        error.retryable = error.may_have_run = False  # another engine may have a slot
        return error
