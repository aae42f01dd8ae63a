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
    """Args:
    kept_s: how long days can be read.
    clock: Unix seconds.
    """

    def __init__(self, threads: QueryThreads, kept_s: float, clock: Callable[[], float] = time.time) -> None:
        self._threads = threads
        self.kept_s = kept_s
        self.clock = clock

    async def read(self, days: Sequence[int]) -> list[dict[str, EngineUptime]]:
        """Return the minutes by day, given as the Unix second it begins with, and engine. Raises UsageUnavailable."""
        return await self._threads.query(_watched, days)


def _watched(connection: Connection, starts: Sequence[int]) -> list[dict[str, EngineUptime]]:
    from gateway.usage.uptime_table import uptime_of_days  # here, in a thread: it imports SQLAlchemy

    return uptime_of_days(connection, starts)
