"""What a gateway process needs of the usage database and of its workers."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from gateway.config.database_url import address_of, shown
from gateway.usage.comparison_reader import ComparisonReader
from gateway.usage.reader import UsageReader
from gateway.usage.receipt_finder import ReceiptFinder
from gateway.usage.state import WorkerStateReader
from gateway.usage.sums import Retention
from gateway.usage.sums_reader import SumsReader
from gateway.usage.threads import QueryThreads
from gateway.usage.trimmer import OutboxTrimmer
from gateway.usage.uptime_reader import UptimeReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from gateway.config.settings import Settings
    from gateway.redis.client import RedisClient
    from gateway.redis.keys import RedisKeys
    from gateway.telemetry.metrics import Metrics
    from gateway.usage.engine import UsageEngine


class _Database:
    """The database that `address` names. The first query imports SQLAlchemy, which takes 0.3 s and 20 MB."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._engine: UsageEngine | None = None
        self._making = Lock()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """See `UsageEngine.reading`."""
        from gateway.usage.engine import UsageEngine

        with self._making:
            engine = self._engine = self._engine or UsageEngine(self._address)
        with engine.reading() as connection:
            yield connection

    def close(self) -> None:
        """See `UsageEngine.close`."""
        if self._engine is not None:
            self._engine.close()


@dataclass(frozen=True, slots=True)
class UsageAccess:
    """Attributes:
    receipts: finds receipts that Redis holds no longer.
    board: the state of the usage workers.
    """

    receipts: ReceiptFinder
    sums: SumsReader
    comparisons: ComparisonReader
    uptime: UptimeReader
    board: WorkerStateReader
    trimmer: OutboxTrimmer
    _retention: Retention
    _threads: tuple[QueryThreads, ...]
    _database: _Database

    def reader(self) -> UsageReader:
        """Return a reader with turns of its own."""
        return UsageReader(self.sums, self._retention)

    async def close(self) -> None:
        """Close the database without waiting for queries that run."""
        for threads in self._threads:
            threads.close()
        await asyncio.to_thread(self._database.close)


def usage_access(settings: Settings, client: RedisClient, keys: RedisKeys, owner: str, metrics: Metrics) -> UsageAccess:
    """Return access to the database that `usage` in config.yaml names. It opens when first used."""
    kept = settings.usage
    address = address_of(kept.url.get_secret_value(), settings.data)
    database = _Database(address)
    threads, of_receipts = QueryThreads(database), QueryThreads(database)
    board = WorkerStateReader(client.commands, keys.ledger(), metrics, shown(address))
    trimmer = OutboxTrimmer(
        client,
        client.commands,
        keys,
        owner,
        most=settings.receipts.max_buffered,
        state=lambda: board.state,
        metrics=metrics,
    )
    return UsageAccess(
        ReceiptFinder(of_receipts),
        SumsReader(threads),
        ComparisonReader(threads),
        UptimeReader(threads, kept.days_s),
        board,
        trimmer,
        Retention(kept.minutes_s, kept.hours_s, kept.days_s, kept.max_rows),
        (threads, of_receipts),
        database,
    )
