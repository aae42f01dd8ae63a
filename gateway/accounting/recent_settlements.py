"""Keeps the last settlements that Redis acknowledged, since Redis may lose them in a failover or a restart."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.accounting.redis_ledger import Settlement

# With appendfsync everysec, Redis may lose two seconds of writes.
REMEMBERED_S = 3.0


class RecentSettlements:
    """The last settlements of a process, at most `limit`. Times are seconds of the event loop.

    Settlements of others, such as dead processes, get up to half of the places.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: deque[tuple[float, Settlement]] = deque(maxlen=limit)

    def add(self, settled: Iterable[Settlement], now: float, unchanged_at: float) -> None:
        """Keep settlements. Drop those from before the last check that found Redis unchanged, at `unchanged_at`."""
        self._drop_old(unchanged_at)
        self._kept.extend((now, one) for one in settled)

    def add_of_others(self, settled: Iterable[Settlement], now: float, unchanged_at: float) -> None:
        """Keep settlements of others as far as there is room for them."""
        self._drop_old(unchanged_at)  # an idle process may have old ones, which take no room
        self.add(islice(settled, max(0, self._limit // 2 - len(self._kept))), now, unchanged_at)

    def _drop_old(self, unchanged_at: float) -> None:
        while self._kept and self._kept[0][0] < unchanged_at - REMEMBERED_S:
            self._kept.popleft()

    def take(self, since: float) -> list[Settlement]:
        """Return the settlements that were kept after `since`, and forget all."""
        found = [one for at, one in self._kept if at > since]
        self._kept.clear()
        return found
