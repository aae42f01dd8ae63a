"""The breaker of one engine, its published state, and the calls that wait for a trial."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING

import structlog

from gateway.engines.request_faults import RequestFaults
from gateway.errors import CircuitOpen
from gateway.telemetry.engine_figures import BREAKER_STATES

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.engines.breaker import Breaker, BreakerCall, BreakerState
    from gateway.engines.call_slots import CallSlots
    from gateway.engines.retry_budget import RetryBudgets
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

STATE_VALUES = {state: value for value, state in enumerate(BREAKER_STATES)}
_TRIAL_WAIT_S = 30.0  # the longest wait for the outcome of a trial
_MAX_WAITING = 1000  # waiting calls of one tenant


class PublishedBreaker:
    """The breaker of one engine, the evidence of its calls, and the published state.

    `slots` counts the calls in flight, and `sent` all calls. A gauge update in each call would cost more than the rest
    of this module.
    """

    __slots__ = (
        *("_budgets", "_outcome", "_published", "_waiting", "breaker", "clock", "faults", "metrics", "name"),
        *("on_lost", "sent", "slots", "total_s"),
    )

    def __init__(
        self,
        name: str,
        breaker: Breaker,
        metrics: Metrics,
        clock: Callable[[], float],
        budgets: RetryBudgets | None,
        slots: CallSlots,
        total_s: float,
    ) -> None:
        self.name, self.total_s = name, total_s
        self.breaker = breaker
        self.clock = clock
        self.faults = RequestFaults()
        self.slots = slots
        self.on_lost: Callable[[], None] = lambda: None
        self.sent = 0
        self._budgets = budgets
        self.metrics = metrics
        self._published: BreakerState = "closed"
        self._outcome: asyncio.Future[None] | None = None  # done when the outcome of a trial may be known
        self._waiting = Counter[str]()  # by tenant, the calls that wait for it
        metrics.engine_breaker.labels(name).set(0)

    def has_earlier(self, number: int) -> bool:
        """Return whether a call before the one with this number is in flight. At most all calls after it are, too."""
        return self.slots.in_flight - self.slots.reserved > self.sent - number

    def is_closed(self, now: float) -> bool:
        """Return whether no circuit is open, no tenant is paused, and this is published."""
        return self._published == "closed" and self.breaker.state(now) == "closed"

    def awaits_trial(self, tenant: str) -> bool:
        """Return whether a call of the tenant must wait for the outcome of a trial."""
        return self.breaker.tries_for_s(tenant, self.clock()) > 0

    async def wait_for_trial(self, tenant: str, most_s: float) -> None:
        """Wait until no trial is in flight, for at most `most_s` or 30 s.

        Raises CircuitOpen if the trial failed or is still in flight, or if too many calls of the tenant wait.
        """
        now = asyncio.get_running_loop().time
        until = now() + min(most_s, _TRIAL_WAIT_S)
        while (trial_s := self.breaker.tries_for_s(tenant, self.clock())) > 0:
            left_s = until - now()
            if left_s <= 0 or self._waiting[tenant] >= _MAX_WAITING:
                break
            if self._outcome is None:
                self._outcome = asyncio.get_running_loop().create_future()
            self._waiting[tenant] += 1
            try:
                await asyncio.wait([self._outcome], timeout=min(trial_s, left_s))
            finally:
                self._waiting[tenant] -= 1
                if not self._waiting[tenant]:
                    del self._waiting[tenant]
        if (refusal := self.refusal(self.breaker.refuses_for_s(tenant, self.clock()))) is not None:
            raise refusal

    def refusal(self, wait_s: float) -> CircuitOpen | None:
        """Return the error of a call that is refused for `wait_s`; None if that is no time."""
        if wait_s <= 0:
            return None
        return CircuitOpen(
            f"The circuit breaker of engine '{self.name}' is open: the engine failed, requested a pause, or sleeps. "
            "Retry after the time in Retry-After.",
            engine=self.name,
            retry_after_s=wait_s,
        )

    def answered(self, call: BreakerCall, sent_at: float) -> None:
        """Record a successful call in the breaker, the request faults and the retry budgets."""
        closed = self.breaker.succeeded(call)
        self.faults.succeeded(call.request_id, sent_at, self.clock())
        if self._budgets is not None:
            self._budgets.succeeded(self.name, call.tenant)
        if closed or self._published != "closed":
            self.publish()

    def publish(self) -> None:
        """Publish a change of the breaker's state in the metric and the log, and wake calls that wait for a trial."""
        if self._outcome is not None:
            self._outcome.set_result(None)
            self._outcome = None
        state = self.breaker.state(self.clock())
        if state == self._published:
            return
        self._published = state
        self.metrics.engine_breaker.labels(self.name).set(STATE_VALUES[state])
        log.log(logging.WARNING if state == "open" else logging.INFO, "breaker", engine=self.name, state=state)
