"""Divide the event loop's time between tenants: weighted fair queues of steps, a few steps in each loop iteration.

A step is a part of a request that runs without awaiting anything: decoding a body, or writing an event. Without queues,
one step of a quiet tenant would wait for a step of each of a busy tenant's requests. Each loop iteration starts the
next step of the tenant that had the least time so far.

The queues follow start-time fair queuing (Goyal, Vin and Cheng, 1996). Each step has a cost; a tenant's pass advances
by cost divided by weight. A tenant whose pass is not ahead of the pass of the last step goes at once.

While one tenant is alone, a step waits only if many or large steps arrive together. Queues would cost more than they
save: they separate requests that would share a loop iteration and an exchange with Redis.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import Counter

    from gateway.telemetry.metrics import Metrics

# The cost of the steps that start in one loop iteration, or at once in one millisecond, while one tenant is alone. The
# cost bounds the work ahead of another tenant that arrives.
_COST_ALONE = 32.0
# While tenants contend, iterations must be short, because a request takes a dozen iterations. Short ones cost more.
_COST_CONTENDED = 1.0
_COST_AT_ONCE_CONTENDED = 4.0
# Tenants contend for this time after a step of one tenant follows a step of another tenant within this time.
_CONTENTION_S = 0.25
_MS_PER_S = 1000


@dataclass(slots=True)
class _Queue:
    """The waiting steps of one tenant."""

    weight: float
    delayed: Counter  # counts the waiting steps
    # The step's future, its cost, and the time at which the wait fails. The oldest step is first.
    steps: deque[tuple[asyncio.Future[None], float, float]] = field(default_factory=deque)


class LoopScheduler:
    """Start the steps of all tenants, in proportion to their weights while they contend. Belongs to one event loop."""

    def __init__(self, metrics: Metrics, *, clock: Callable[[], float] | None = None, max_wait_s: float = 30.0) -> None:
        self._queues: dict[str, _Queue] = {}  # the queues of tenants with waiting steps
        self._order: list[tuple[float, str]] = []  # a heap of these tenants by pass
        self._passes: dict[str, float] = {}  # passes ahead of `_pass`, of tenants without waiting steps
        self._pass = 0.0  # the pass of the last step that started
        self._ms = -1
        self._at_once = 0.0  # cost of the steps that started at once in this millisecond
        self._tenant = ""  # the tenant of the last request for a step
        self._requested_at = -_CONTENTION_S  # the time of this request
        self._contended_until = 0.0
        self._scheduled = False
        self._metrics, self._loop = metrics, asyncio.get_running_loop()
        self._time, self._max_wait_s = clock or self._loop.time, max_wait_s

    @property
    def contended(self) -> bool:
        """Return whether several tenants requested steps recently."""
        return self._time() < self._contended_until

    def enter(self, tenant: str, weight: float, cost: float = 1.0) -> asyncio.Future[None] | None:
        """Request one step of the tenant. A small request has a cost of 1.

        Return None if the step may run at once, else a future to await first. The future raises Overloaded after
        `max_wait_s`.
        """
        now = self._time()
        if tenant != self._tenant:
            if now - self._requested_at < _CONTENTION_S:
                self._contended_until = now + _CONTENTION_S
            self._tenant = tenant
        self._requested_at = now
        queue = self._queues.get(tenant)
        if queue is None:
            if not self._queues:
                ms = int(now * _MS_PER_S)
                if ms != self._ms:
                    self._ms, self._at_once = ms, 0.0
                if self._at_once < (_COST_AT_ONCE_CONTENDED if now < self._contended_until else _COST_ALONE):
                    self._at_once += cost
                    return None
            elif self._passes.get(tenant, 0.0) <= self._pass:
                self._passes[tenant] = self._pass + cost / weight
                return None
            metrics = self._metrics
            queue = self._queues[tenant] = _Queue(weight, metrics.steps_delayed.labels(metrics.series.tenant(tenant)))
            heapq.heappush(self._order, (max(self._passes.pop(tenant, 0.0), self._pass), tenant))
        waiting: asyncio.Future[None] = self._loop.create_future()
        queue.steps.append((waiting, cost, now + self._max_wait_s))
        queue.delayed.inc()
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._start_steps)
        return waiting

    def _start_steps(self) -> None:
        """Start the steps of one loop iteration. While further steps wait, continue in the next iteration."""
        most = _COST_CONTENDED if self._time() < self._contended_until else _COST_ALONE
        started = 0.0
        while self._order and started < most:
            own, tenant = self._order[0]
            queue = self._queues[tenant]
            while queue.steps:
                waiting, cost, end = queue.steps.popleft()
                if waiting.done():  # the request was canceled
                    continue
                if end <= self._time():
                    waiting.set_exception(Overloaded("Other requests of this tenant keep this worker busy. Try again."))
                    continue
                waiting.set_result(None)
                self._pass = max(self._pass, own)
                own += cost / queue.weight
                started += cost
                break
            if queue.steps:
                heapq.heapreplace(self._order, (own, tenant))
            else:
                heapq.heappop(self._order)
                del self._queues[tenant]
                self._passes[tenant] = own
        if not self._queues:
            self._passes.clear()
        self._scheduled = bool(self._queues)
        if self._scheduled:
            self._loop.call_soon(self._start_steps)
