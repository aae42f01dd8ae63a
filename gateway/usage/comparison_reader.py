"""Read the sums of answer comparisons from the usage database, in threads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gateway.usage.uptime import DAY_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from gateway.quality.book import ComparisonScope
    from gateway.quality.tally import QualityTally
    from gateway.usage.threads import QueryThreads


class ComparisonReader:
    """Read comparisons for the event loop.

    Args:
        clock: returns Unix seconds.
    """

    def __init__(self, threads: QueryThreads, clock: Callable[[], float] = time.time) -> None:
        self._threads = threads
        self._clock = clock

    async def read(self, days: int) -> dict[ComparisonScope, QualityTally]:
        """Return the sums of the last `days` UTC days, including today. Raises UsageUnavailable."""
        return await self._threads.query(_tallies, int(self._clock()) // DAY_S - days + 1)


def _tallies(connection: Connection, since: int) -> dict[ComparisonScope, QualityTally]:
    from gateway.usage.comparisons import tallies  # imported in a thread, because it imports SQLAlchemy

    return tallies(connection, since)
