"""Readers of the usage database for the event loop. Queries and decoding run in threads.

All methods raise UsageUnavailable if the database cannot be read.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

from gateway.errors import UsageUnavailable
from gateway.runtime.fair_share import FairSemaphore
from gateway.usage.rollup import SumRow
from gateway.usage.uptime import DAY_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection

    from gateway.quality.book import ComparisonScope
    from gateway.quality.comparison import QualityTally
    from gateway.usage.sums import Period, StoredRow
    from gateway.usage.threads import QueryThreads
    from gateway.usage.uptime import EngineUptime

T = TypeVar("T")

_RECEIPTS_AT_ONCE = 2
_RECEIPT_TIMEOUT_S = 5.0


class SumsReader:
    """Read sums and the newest receipts."""

    def __init__(self, threads: QueryThreads) -> None:
        self._threads = threads

    async def read(
        self, work: Callable[[Iterator[StoredRow]], T], periods: Sequence[Period], tenant: str | None = None
    ) -> T:
        """Return `work(rows)`, run in a thread, with the rows of these periods: of all tenants, or of `tenant`.

        The rows of all tenants come in the order of the periods. The tenant `ALL_TENANTS` has the totals.
        """
        return await self._threads.scan(lambda connection: work(_stored(connection, periods, tenant)))

    async def totals(self, periods: Sequence[Period]) -> list[tuple[Period, SumRow]]:
        """Return the sums over all tenants by period. A period without receipts has an empty row."""
        sums = await self._threads.query(_totals, periods)
        return [(period, sums.get(period) or SumRow()) for period in periods]

    async def versions(self, periods: Sequence[Period]) -> list[bytes | None]:
        """Return the version of each period, or None for a period without receipts.

        Every addition changes the version, and no version comes back. The version is a digest of the total: an added or
        replaced receipt always changes a counter.
        """
        found = await self._threads.query(_versions, periods)
        return [found.get(period) for period in periods]

    async def latest(self, limit: int, tenant: str | None = None) -> list[bytes]:
        """Return the newest receipts as JSON, newest first. `tenant` is None for all tenants."""
        return await self._threads.query(_latest, limit, tenant, time.time())


class ComparisonReader:
    """Read the sums of answer comparisons. `clock` returns Unix seconds."""

    def __init__(self, threads: QueryThreads, clock: Callable[[], float] = time.time) -> None:
        self._threads = threads
        self._clock = clock

    async def read(self, days: int) -> dict[ComparisonScope, QualityTally]:
        """Return the sums of the last `days` UTC days, including today."""
        return await self._threads.query(_tallies, int(self._clock()) // DAY_S - days + 1)


class UptimeReader:
    """Read the uptime of engines. Days are kept for `kept_s` seconds; `clock` returns Unix seconds."""

    def __init__(self, threads: QueryThreads, kept_s: float, clock: Callable[[], float] = time.time) -> None:
        self._threads = threads
        self.kept_s = kept_s
        self.clock = clock

    async def read(self, days: Sequence[int]) -> list[dict[str, EngineUptime]]:
        """Return the uptime by engine for each day. `days` are starts in Unix seconds."""
        return await self._threads.query(_uptime_of_days, days)


class ReceiptFinder:
    """Find receipts, with fair sharing among tenants. A call takes at most `timeout_s`.

    Do not share the threads, so that other queries delay none of these.
    """

    def __init__(self, threads: QueryThreads, timeout_s: float = _RECEIPT_TIMEOUT_S) -> None:
        self._threads = threads
        self._timeout_s = timeout_s
        self._running = FairSemaphore(_RECEIPTS_AT_ONCE)

    async def find(self, tenant: str, receipt_id: str) -> bytes | None:
        """Return a tenant's receipt as JSON, or None if the database has no such receipt."""
        try:
            async with asyncio.timeout(self._timeout_s), self._running.hold(tenant):
                return await self._threads.query(_find, tenant, receipt_id)
        except TimeoutError as error:
            raise UsageUnavailable from error


# These functions run in threads, and import SQLAlchemy there.


def _stored(connection: Connection, periods: Sequence[Period], tenant: str | None) -> Iterator[StoredRow]:
    from gateway.usage.sums_queries import stored

    return stored(connection, periods, tenant)


def _totals(connection: Connection, periods: Sequence[Period]) -> dict[Period, SumRow]:
    from gateway.usage.sums_queries import totals

    return totals(connection, periods)


def _versions(connection: Connection, periods: Sequence[Period]) -> dict[Period, bytes]:
    from gateway.usage.sums_queries import versions

    return versions(connection, periods)


def _latest(connection: Connection, limit: int, tenant: str | None, now: float) -> list[bytes]:
    from gateway.usage.sums_queries import latest

    return latest(connection, limit, tenant, now)


def _tallies(connection: Connection, since: int) -> dict[ComparisonScope, QualityTally]:
    from gateway.usage.comparisons import tallies

    return tallies(connection, since)


def _uptime_of_days(connection: Connection, starts: Sequence[int]) -> list[dict[str, EngineUptime]]:
    from gateway.usage.uptime_table import uptime_of_days

    return uptime_of_days(connection, starts)


def _find(connection: Connection, tenant: str, receipt_id: str) -> bytes | None:
    from gateway.usage.receipts_reader import find

    return find(connection, tenant, receipt_id)
