"""The usage database for the event loop: calls run in dedicated threads."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from gateway.config.database_url import sqlalchemy_url
from gateway.usage.database import UsageDatabase
from gateway.usage.engine import UsageEngine
from gateway.usage.partition_upkeep import keep_partitions
from gateway.usage.queries import ReceiptFilter, UsageQueries
from gateway.usage.replica import ReplicaLag, UsageEngines, replica_engine
from gateway.usage.sums import Retention

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from concurrent.futures import Executor

    from gateway.config.settings import Settings, WorkerSettings
    from gateway.usage.database import WriteResult
    from gateway.usage.entries import OutboxEntry

_Result = TypeVar("_Result")
_READERS = 2
_ROLE = "gkt-usage"
CONNECTIONS = _READERS + 2
"""The most connections of a store: readers, a writer, and the upkeep of partitions."""
_EVERYTHING = ReceiptFilter()


class UsageStore:
    """Read and write the usage database. All methods raise the errors of `UsageEngine.open`.

    `address` is a URL for SQLAlchemy; `wait_s` as in `UsageEngine`. `read` uses the replica if there is one. Each
    thread uses one connection. `clock` returns Unix seconds. Raises StartupError if the driver is not installed or the
    address is invalid.
    """

    def __init__(
        self,
        address: str,
        retention: Retention,
        *,
        wait_s: int = 30,
        replica: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.retention, self._clock = retention, clock
        self.engine = UsageEngine(address, wait_s=wait_s, connections=CONNECTIONS, role=_ROLE)
        self.replica = None if replica is None else UsageEngines(self.engine, replica_engine(replica, _READERS, _ROLE))
        self._database = UsageDatabase(self.engine, retention, clock)
        # Dedicated threads: a hanging database must not delay other work.
        self._writer = ThreadPoolExecutor(1, "usage-writer")
        self._readers = ThreadPoolExecutor(_READERS, "usage-reader")
        self._upkeep = ThreadPoolExecutor(1, "usage-upkeep")

    async def exists(self) -> bool:
        """See `UsageEngine.exists`."""
        return await self._in(self._readers, self.engine.exists)

    async def write(self, entries: Sequence[OutboxEntry]) -> WriteResult:
        """See `UsageDatabase.add`."""
        return await self._in(self._writer, self._database.add, entries)

    async def delete_receipts(self, before: float) -> int:
        """See `UsageDatabase.delete_receipts`."""
        return await self._in(self._writer, self._database.delete_receipts, before)

    async def delete_sums(self) -> int:
        """See `UsageDatabase.delete_sums`."""
        return await self._in(self._writer, self._database.delete_sums)

    async def keep_partitions(self) -> None:
        """See `partition_upkeep.keep_partitions`. Receipts are written meanwhile."""
        await self._in(self._upkeep, keep_partitions, self.engine, self._clock)

    async def receipts(self, where: ReceiptFilter = _EVERYTHING, limit: int = 1_000) -> AsyncIterator[list[bytes]]:
        """Yield receipts as JSON in key order, in lists of at most `limit`. Each list has its own transaction."""
        after = None
        while page := await self.read(UsageQueries.page, where, after, limit):
            yield [raw for _, raw in page]
            after = page[-1][0]

    async def count(self, where: ReceiptFilter = _EVERYTHING) -> int:
        """See `UsageQueries.count`."""
        return await self.read(UsageQueries.count, where)

    async def change(self, work: Callable[..., _Result], *args: object) -> _Result:
        """Return `work(connection, *args)`, run in a write transaction."""

        def run() -> _Result:
            with self.engine.writing() as connection:
                return work(connection, *args)

        return await self._in(self._writer, run)

    async def close(self) -> None:
        """Close the database without waiting for running calls."""
        self._writer.shutdown(wait=False, cancel_futures=True)
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._upkeep.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread((self.replica or self.engine).close)

    async def read(self, query: Callable[..., _Result], *args: object) -> _Result:
        """Return `query(queries, *args)`, run in a read transaction with its UsageQueries."""

        def run() -> _Result:
            with (self.replica or self.engine).reading() as connection:
                return query(UsageQueries(connection), *args)

        return await self._in(self._readers, run)

    @staticmethod
    async def _in(threads: Executor, work: Callable[..., _Result], *args: object) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(threads, work, *args)


def store_of(
    settings: Settings | WorkerSettings, *, replica: bool = False, clock: Callable[[], float] = time.time
) -> UsageStore:
    """Return the database of `usage` in config.yaml, which opens when first used.

    With `replica`, `read` uses `usage.read_url` if it is set. `clock` returns Unix seconds. Raises StartupError without
    a driver.
    """
    usage = settings.usage
    retention = Retention(usage.minutes_s, usage.hours_s, usage.days_s, usage.max_rows)
    read_address = _replica_address(settings) if replica else None
    address = sqlalchemy_url(usage.url.get_secret_value(), settings.data)
    return UsageStore(address, retention, replica=read_address, clock=clock)


def replica_lag_of(settings: Settings | WorkerSettings) -> ReplicaLag | None:
    """Return a measurement of `usage.read_url` with its own connection; None without a replica. Raises StartupError."""
    address = _replica_address(settings)
    return None if address is None else ReplicaLag(replica_engine(address, 1, _ROLE))


def _replica_address(settings: Settings | WorkerSettings) -> str | None:
    url = settings.usage.read_url
    return None if url is None else sqlalchemy_url(url.get_secret_value(), settings.data)
