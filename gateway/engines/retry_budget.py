"""Retry budgets: a process may retry a share of its recent successful calls, plus a fixed number.

While an engine is down, nearly every call fails, and retries would multiply its load. Finagle and Envoy use the same
bound: 20 % of the successes of the last ten seconds, plus a floor for idle engines.

Each tenant has its own budget at each engine. All tenants share one more budget: the same share of all successes, plus
twice the floor. So the retries at an engine that is down do not grow with the number of tenants. The failures of one
tenant exhaust no other tenant's retries. The share that a tenant's successes earned is available to this tenant only.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SHARE = 0.2
_FLOOR = 10

# The weight of a success or retry decays by 1/e in this time.
_WINDOW_S = 10.0
# Weights are updated at most this often, which is an error of at most half a percent.
_STEP_S = 0.05
_MAX_TENANTS = 10_000
# How many tenants can exhaust their floors at one engine at the same time.
_SHARED_FLOORS = 2


@dataclass(slots=True)
class _Recent:
    """The successes and retries of one tenant, or of all tenants, at one engine, weighted by age."""

    at: float
    successes: float = 0.0
    retries: float = 0.0

    def age(self, now: float) -> None:
        if now - self.at < _STEP_S:
            return
        weight = math.exp((self.at - now) / _WINDOW_S)
        self.successes, self.retries, self.at = self.successes * weight, self.retries * weight, now


class RetryBudgets:
    """The retry budgets of one process, by engine and tenant. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._recent: dict[tuple[str, str], _Recent] = {}
        self._shared: dict[str, _Recent] = {}

    def succeeded(self, engine: str, tenant: str) -> None:
        """Record a successful call."""
        for recent in self._recent_of(engine, tenant):
            recent.successes += 1

    def try_acquire(self, engine: str, tenant: str) -> bool:
        """Take one retry from the budgets of the tenant and of the engine. Return False if either is exhausted.

        The budget is 0.2 retries per success, and 10 retries in ten seconds without any success.
        """
        own, total = self._recent_of(engine, tenant)
        if own.retries + 1 > _FLOOR + _SHARE * own.successes:
            return False
        is_earned = own.retries + 1 <= _SHARE * own.successes
        if not is_earned and total.retries + 1 > _SHARED_FLOORS * _FLOOR + _SHARE * total.successes:
            return False
        own.retries += 1
        total.retries += 1
        return True

    def _recent_of(self, engine: str, tenant: str) -> tuple[_Recent, _Recent]:
        now = self._clock()
        if (total := self._shared.get(engine)) is None:
            total = self._shared[engine] = _Recent(now)
        total.age(now)
        key = engine, tenant
        if (recent := self._recent.get(key)) is None:
            if len(self._recent) >= _MAX_TENANTS:
                del self._recent[next(iter(self._recent))]
            recent = self._recent[key] = _Recent(now)
        recent.age(now)
        return recent, total
