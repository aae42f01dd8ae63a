"""What a gateway process needs of the usage database and of its workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.usage.comparisons import ComparisonReader
from gateway.usage.reader import UsageReader
from gateway.usage.state import WorkerBoard
from gateway.usage.store import UsageStore, store_of
from gateway.usage.sums_reader import SumsReader
from gateway.usage.threads import QueryThreads
from gateway.usage.trimmer import OutboxTrimmer
from gateway.usage.uptime_table import UptimeReader

if TYPE_CHECKING:
    from gateway.config import Settings
    from gateway.metrics import Metrics
    from gateway.redis_client import RedisClient
    from gateway.redis_keys import RedisKeys


@dataclass(frozen=True, slots=True)
class UsageAccess:
    """Attributes:
    board: the state of the usage workers.
    """

    store: UsageStore
    threads: QueryThreads
    sums: SumsReader
    comparisons: ComparisonReader
    uptime: UptimeReader
    board: WorkerBoard
    trimmer: OutboxTrimmer

    def reader(self) -> UsageReader:
        """Return a reader with turns of its own."""
        return UsageReader(self.sums, self.store.retention)

    async def close(self) -> None:
        """Close the database without waiting for queries that run."""
        self.threads.close()
        await self.store.close()


def usage_access(settings: Settings, client: RedisClient, keys: RedisKeys, owner: str, metrics: Metrics) -> UsageAccess:
    """Return access to the database that `usage` in config.yaml names. Raises StartupError as `store_of`."""
    store = store_of(settings)
    threads = QueryThreads(store.engine)
    board = WorkerBoard(client.commands, keys.ledger(), metrics, str(store.engine))
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
        store,
        threads,
        SumsReader(threads),
        ComparisonReader(threads),
        UptimeReader(threads, settings.usage.days_s),
        board,
        trimmer,
    )
