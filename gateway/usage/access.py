"""Give a gateway process access to the usage database and to the state of the usage workers."""

from __future__ import annotations

import asyncio
from pathlib import Path
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
    from gateway.usage.replica import UsageEngines


class UsageAccess:
    """Access to the database set by `usage` in config.yaml, and to the state of its workers.

    The database opens with the first query: importing SQLAlchemy takes 0.3 s and 20 MB.

    Attributes:
        receipts: finds receipts that have expired in Redis.
        database: reads sums, receipts, comparisons and uptime.
        workers: the state of the usage workers.
        trimmer: limits the outboxes in Redis.
    """

    def __init__(
        self, settings: Settings, client: RedisClient, keys: RedisKeys, process_id: str, metrics: Metrics
    ) -> None:
        usage, limit = settings.usage, settings.receipts.max_buffered
        self._address = sqlalchemy_url(usage.url.get_secret_value(), settings.data)
        self._replica = None if usage.read_url is None else sqlalchemy_url(usage.read_url.get_secret_value(), Path())
        self._connections = usage.max_connections
        self._retention = Retention(usage.minutes_s, usage.hours_s, usage.days_s, usage.max_rows)
        self._engines: UsageEngines | None = None
        self._engines_lock = Lock()
        scans, short, receipts = shares_of(usage.max_connections)
        self._threads = QueryThreads(self._reading, short=short, scans=scans)
        self._receipt_threads = QueryThreads(self._reading, short=receipts, scans=1)  # without scans
        self.receipts = ReceiptFinder(self._receipt_threads)
        self.database = DatabaseReader(self._threads)
        location = without_credentials(self._address)
        self.workers = WorkerStateReader(client.commands, keys.ledger(), metrics, location)
        self.trimmer = OutboxTrimmer(
            client, keys, process_id, limit=limit, state=lambda: self.workers.state, metrics=metrics
        )

    def _reading(self) -> Connection:
        from gateway.usage.replica import engines_of

        with self._engines_lock:
            engines = self._engines = self._engines or engines_of(self._address, self._replica, self._connections)
        return engines.reading()

    def reader(self) -> UsageReader:
        """Return a reader with its own concurrency limits."""
        return UsageReader(self.database, self._retention)

    async def close(self) -> None:
        """Close the database without waiting for running queries."""
        self._threads.close()
        self._receipt_threads.close()
        if self._engines is not None:
            await asyncio.to_thread(self._engines.close)


def shares_of(connections: int) -> tuple[int, int, int]:
    """Divide connections between scans, short queries and the lookup of receipts, so that none waits for another."""
    scans, short = max(1, connections // 2), max(1, connections // 4)
    return scans, short, max(1, connections - scans - short)
