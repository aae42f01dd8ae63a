"""Retry budgets: a process may retry a share of its recent successful calls, and a fixed number besides.

While an engine is down nearly every call fails, and retries would multiply its load. The bound is that of Finagle and
Envoy: 20 % of the successes of the last ten seconds, plus a floor that lets idle engines be retried at all. Each tenant
has a budget of its own at each engine, so that one tenant's failures use up no other tenant's retries.

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


@dataclass(slots=True)
class _Recent:
    """The successes and retries of one tenant at one engine, each weighted by its age."""

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

    def succeeded(self, engine: str, tenant: str) -> None:
        """Note a call that succeeded."""
        self._recent_of(engine, tenant).successes += 1

    def take(self, engine: str, tenant: str, share: float = DEFAULT_SHARE, floor: int = DEFAULT_FLOOR) -> bool:
        """Take one retry from the budget. Returns False where none is left.

        Args:
            share: retries per success.
            floor: retries in ten seconds without any success.
        """
        recent = self._recent_of(engine, tenant)
        if recent.retries + 1 > floor + share * recent.successes:
            return False
        recent.retries += 1
        return True

    def _recent_of(self, engine: str, tenant: str) -> _Recent:
        now = self._clock()
        key = engine, tenant
        recent = self._recent.get(key)
        if recent is None:
            if len(self._recent) >= _MOST:
                del self._recent[next(iter(self._recent))]
            recent = self._recent[key] = _Recent(now)
        else:
            recent.age(now)
        return recent
