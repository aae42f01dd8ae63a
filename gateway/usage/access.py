"""Give a gateway process access to the usage database and to the state of the usage workers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from gateway.config.database_url import sqlalchemy_url, without_credentials
from gateway.usage.database_reader import DatabaseReader, ReceiptFinder
from gateway.usage.reader import UsageReader
from gateway.usage.state import WorkerStateReader
from gateway.usage.sums import Retention
from gateway.usage.threads import QueryThreads
from gateway.usage.trimmer import OutboxTrimmer

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from gateway.config.settings import Settings
    from gateway.redis.client import RedisClient
    from gateway.redis.keys import RedisKeys
    from gateway.telemetry.metrics import Metrics
    from gateway.usage.engine import UsageEngine


class _LazyEngine:
    """The usage database, opened by the first query: importing SQLAlchemy takes 0.3 s and 20 MB."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._engine: UsageEngine | None = None
        self._lock = Lock()

    def reading(self) -> Connection:
        from gateway.usage.engine import UsageEngine

        with self._lock:
            engine = self._engine = self._engine or UsageEngine(self._address)
        return engine.reading()

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()


@dataclass(frozen=True, slots=True)
class UsageAccess:
    """Readers of the usage database, the state of its workers, and the outbox trimmer."""

    receipts: ReceiptFinder
    """Finds receipts that have expired in Redis."""
    database: DatabaseReader
    workers: WorkerStateReader
    trimmer: OutboxTrimmer
    _retention: Retention
    _threads: tuple[QueryThreads, ...]
    _engine: _LazyEngine

    def reader(self) -> UsageReader:
        """Return a reader with its own concurrency limits."""
        return UsageReader(self.database, self._retention)

    async def close(self) -> None:
        """Close the database without waiting for running queries."""
        for threads in self._threads:
            threads.close()
        await asyncio.to_thread(self._engine.close)


def usage_access(
    settings: Settings, client: RedisClient, keys: RedisKeys, process_id: str, metrics: Metrics
) -> UsageAccess:
    """Return access to the database set by `usage` in config.yaml. The database opens when first used."""
    usage = settings.usage
    address = sqlalchemy_url(usage.url.get_secret_value(), settings.data)
    engine = _LazyEngine(address)
    threads, receipt_threads = QueryThreads(engine.reading), QueryThreads(engine.reading)
    workers = WorkerStateReader(client.commands, keys.ledger(), metrics, without_credentials(address))
    limit = settings.receipts.max_buffered
    trimmer = OutboxTrimmer(client, keys, process_id, limit=limit, state=lambda: workers.state, metrics=metrics)
    return UsageAccess(
        ReceiptFinder(receipt_threads),
        DatabaseReader(threads),
        workers,
        trimmer,
        Retention(usage.minutes_s, usage.hours_s, usage.days_s, usage.max_rows),
        (threads, receipt_threads),
        engine,
    )
