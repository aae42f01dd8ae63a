"""Read the uptime of engines from the usage database, in threads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection

    from gateway.usage.threads import QueryThreads
    from gateway.usage.uptime import EngineUptime


class UptimeReader:
    """Read uptime for the event loop.

    Args:
        kept_s: retention of days, in seconds.
        clock: returns Unix seconds.
    """

    def __init__(self, threads: QueryThreads, kept_s: float, clock: Callable[[], float] = time.time) -> None:
        self._threads = threads
        self.kept_s = kept_s
        self.clock = clock

    async def read(self, days: Sequence[int]) -> list[dict[str, EngineUptime]]:
        """Return the uptime by engine for each day. `days` are starts in Unix seconds. Raises UsageUnavailable."""
        return await self._threads.query(_uptime_of_days, days)


def _uptime_of_days(connection: Connection, starts: Sequence[int]) -> list[dict[str, EngineUptime]]:
    from gateway.usage.uptime_table import uptime_of_days  # imported in a thread, because it imports SQLAlchemy

    return uptime_of_days(connection, starts)
