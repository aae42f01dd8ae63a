"""Read sums and the newest receipts from the usage database. Queries and decoding run in threads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from gateway.usage.rests import with_pauses
from gateway.usage.rollup import SumDimensions, SumRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sqlalchemy import Connection

    from gateway.usage.sums import Period, StoredRow
    from gateway.usage.threads import QueryThreads

T = TypeVar("T")


class SumsReader:
    """Read sums and receipts. All methods raise UsageUnavailable if the database cannot be read.

    Args:
        threads: run the queries.
    """

    def __init__(self, threads: QueryThreads) -> None:
        self._threads = threads

    async def read(
        self, work: Callable[[Iterator[StoredRow]], T], periods: Sequence[Period], tenant: str | None = None
    ) -> T:
        """Return `work(rows)`, run in a thread, with the rows of these periods.

        Args:
            periods: periods. The rows come in this order, unless a tenant is given.
            tenant: None: all tenants. `ALL_TENANTS`: the totals.
        """
        return await self._threads.scan(lambda connection: work(_stored(connection, periods, tenant)))

    async def rows(
        self, periods: Sequence[Period], tenant: str | None = None
    ) -> list[tuple[Period, SumDimensions, SumRow]]:
        """Return the decoded rows of these periods."""
        return await self.read(_decoded, periods, tenant)

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


def _decoded(rows: Iterable[StoredRow]) -> list[tuple[Period, SumDimensions, SumRow]]:
    return [(period, dims, SumRow.from_bytes(row)) for period, dims, row in with_pauses(rows)]


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
