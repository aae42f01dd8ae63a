"""Retry budgets: a process may retry a share of its recent successful calls, and a fixed number besides.

While an engine is down nearly every call fails, and retries would multiply its load. The bound is that of Finagle and
Envoy: 20 % of the successes of the last ten seconds, plus a floor that lets idle engines be retried at all. Each tenant
has a budget of its own at each engine. All tenants together have one more: the same share of all successes, and twice
the floor. So the retries at an engine that is down do not grow with the number of tenants. One tenant's failures alone
use up no other tenant's retries, and no failures of others use up the share that a tenant's own successes earned.

Pure, but for the clock that it is given.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_SHARE = 0.2
DEFAULT_FLOOR = 10

# Successes and retries count for about this long: their weight falls to 1/e.
_WINDOW_S = 10.0
_MOST = 10_000
# Tenants that may use up their floors at one engine at the same time.
_FLOORS_OF_ALL = 2


@dataclass(slots=True)
class _Recent:
    """The successes and retries of one tenant, or of all, at one engine, each weighted by its age."""

    at: float
    successes: float = 0.0
    retries: float = 0.0

    def age(self, now: float) -> None:
        weight = math.exp((self.at - now) / _WINDOW_S)
        self.successes, self.retries, self.at = self.successes * weight, self.retries * weight, now


class RetryBudgets:
    """The budgets of one process, by engine and tenant.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._recent: dict[tuple[str, str], _Recent] = {}
        self._of_all: dict[str, _Recent] = {}

    def succeeded(self, engine: str, tenant: str) -> None:
        """Note a call that succeeded."""
        for recent in self._recent_of(engine, tenant):
            recent.successes += 1

    def take(self, engine: str, tenant: str, share: float = DEFAULT_SHARE, floor: int = DEFAULT_FLOOR) -> bool:
        """Take one retry from the budgets of the tenant and of the engine. Returns False where either has none left.

        Args:
            share: retries per success.
            floor: retries in ten seconds without any success.
        """
        own, total = self._recent_of(engine, tenant)
        if own.retries + 1 > floor + share * own.successes:
            return False
        is_earned = own.retries + 1 <= share * own.successes
        if not is_earned and total.retries + 1 > _FLOORS_OF_ALL * floor + share * total.successes:
            return False
        own.retries += 1
        total.retries += 1
        return True

    def _recent_of(self, engine: str, tenant: str) -> tuple[_Recent, _Recent]:
        """Return the counts of a tenant, and those of all tenants."""
        now = self._clock()
        total = self._of_all.get(engine)
        if total is None:
            total = self._of_all[engine] = _Recent(now)
        else:
            total.age(now)
        key = engine, tenant
        recent = self._recent.get(key)
        if recent is None:
            if len(self._recent) >= _MOST:
                del self._recent[next(iter(self._recent))]
            recent = self._recent[key] = _Recent(now)
        else:
            recent.age(now)
        return recent, total
