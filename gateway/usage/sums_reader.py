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
    """All methods raise UsageUnavailable where the database cannot be read.

    Args:
        threads: run the queries.
    """

    def __init__(self, threads: QueryThreads) -> None:
        self._threads = threads

    async def read(
        self, work: Callable[[Iterator[StoredRow]], T], wanted: Sequence[Period], tenant: str | None = None
    ) -> T:
        """Return the result of `work`, which runs in a thread and gets the rows of these periods.

        Args:
            wanted: the rows come in this order of periods, unless a tenant is given.
            tenant: None: all tenants. `ALL_TENANTS`: the totals.
        """
        return await self._threads.scan(lambda connection: work(_stored(connection, wanted, tenant)))

    async def rows(
        self, wanted: Sequence[Period], tenant: str | None = None
    ) -> list[tuple[Period, SumDimensions, SumRow]]:
        """Return the rows of these periods, decoded."""
        return await self.read(_decoded, wanted, tenant)

    async def totals(self, wanted: Sequence[Period]) -> list[tuple[Period, SumRow]]:
        """Return the sums over all tenants by period. A period without receipts has an empty row."""
        held = await self._threads.query(_totals, wanted)
        return [(period, held.get(period) or SumRow()) for period in wanted]

    async def marks(self, wanted: Sequence[Period]) -> list[bytes | None]:
        """Return the version of each period: each addition makes another one, never an earlier one; None: no receipts.

        It is a digest of the total: two receipts, or a receipt in another's place, never leave all counts the same.
        """
        held = await self._threads.query(_marks, wanted)
        return [held.get(period) for period in wanted]

    async def latest(self, most: int, tenant: str | None = None) -> list[bytes]:
        """Return the newest receipts, of a tenant or of all, as JSON, the newest first."""
        return await self._threads.query(_latest, most, tenant, time.time())


def _decoded(rows: Iterable[StoredRow]) -> list[tuple[Period, SumDimensions, SumRow]]:
    return [(period, where, SumRow.from_bytes(row)) for period, where, row in with_pauses(rows)]


# These functions run in threads, and import SQLAlchemy there.


def _stored(connection: Connection, wanted: Sequence[Period], tenant: str | None) -> Iterator[StoredRow]:
    from gateway.usage.sums_queries import stored

    return stored(connection, wanted, tenant)


def _totals(connection: Connection, wanted: Sequence[Period]) -> dict[Period, SumRow]:
    from gateway.usage.sums_queries import totals

    return totals(connection, wanted)


def _marks(connection: Connection, wanted: Sequence[Period]) -> dict[Period, bytes]:
    from gateway.usage.sums_queries import marks

    return marks(connection, wanted)


def _latest(connection: Connection, most: int, tenant: str | None, now: float) -> list[bytes]:
    from gateway.usage.sums_queries import latest

    return latest(connection, most, tenant, now)
