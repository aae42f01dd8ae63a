"""A Redis with a ledger that settles into outboxes, and usage workers that write to one database."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from redis.asyncio import Redis

from gateway.accounting.intent import abandoned
from gateway.accounting.receipt import with_savings
from gateway.accounting.redis_ledger import RedisLedger, Settlement
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.telemetry.metrics import Metrics
from gateway.usage.feed import GROUP, OutboxFeed
from gateway.usage.rollup import SumRow
from gateway.usage.state import WorkerLease
from gateway.usage.store import UsageStore
from gateway.usage.sums import Retention
from gateway.usage.tables import SUMS
from gateway.usage.uptime_table import minutes_in_redis
from gateway.usage.worker import UsageWorker
from tests.accounting.receipt_builders import closed, guided

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from gateway.accounting.intent import Intent
    from gateway.accounting.receipt import Receipt

RETENTION = Retention(minute=1e9, hour=1e9, day=1e9)


class Outboxes:
    def __init__(self, redis: Redis, client: RedisClient, address: str) -> None:
        self.redis = redis
        self.client = client
        self.address = address
        self.keys = RedisKeys(f"t{secrets.token_hex(6)}")
        self.ledger = RedisLedger(redis, self.keys, "ann", 100, 10)
        self.metrics = Metrics()
        self.stores: list[UsageStore] = []
        self.store = self.new_store()
        self.leases: list[WorkerLease] = []
        self.later_s = 0.0  # of the clock of feeds and workers

    def clock(self) -> float:
        return time.monotonic() + self.later_s

    def new_store(self, *, wait_s: int = 30) -> UsageStore:
        self.stores.append(UsageStore(self.address, RETENTION, wait_s=wait_s))
        return self.stores[-1]

    def feed(self, consumer: str = "worker-1", **settings: int) -> OutboxFeed:
        return OutboxFeed(self.redis, self.keys, consumer, self.clock, **settings)

    async def worker(
        self,
        name: str = "ann",
        store: UsageStore | None = None,
        keep_s: float | None = None,
        **settings: Any,
    ) -> UsageWorker:
        seat = WorkerLease(self.redis, self.keys.ledger(), name)
        await seat.join()
        self.leases.append(seat)
        feed = self.feed(f"worker-{seat.number}")
        minutes = partial(minutes_in_redis, self.redis, self.keys.ledger())
        return UsageWorker(
            self.client,
            feed,
            store or self.store,
            seat,
            minutes,
            keep_s=keep_s,
            clock=self.clock,
            **settings,
        )

    async def settle(self, *receipts: Receipt) -> None:
        await self.ledger.exchange([], [Settlement(one, None) for one in receipts])

    async def abandon(self, one: Intent) -> Receipt:
        receipt = abandoned(one, time.time())
        await self.ledger.abandon(one.tenant, "ann", {one.id: Settlement(receipt, one)})
        return receipt

    async def lengths(self) -> dict[str, int]:
        tenants = sorted(raw.decode() for raw in await self.redis.smembers(self.keys.ledger().tenants))
        return {one: await self.redis.xlen(self.keys.outbox(one)) for one in tenants}

    async def pending(self, tenant: str = "acme") -> int:
        return int((await self.redis.xpending(self.keys.outbox(tenant), GROUP))["pending"])

    async def ids(self) -> list[str]:
        """Return the sorted ids of all receipts in the database."""
        found = [msgspec.json.decode(raw)["id"] async for batch in self.store.receipts() for raw in batch]
        return sorted(found)

    async def counted(self) -> int:
        """Return the number of requests in the sums of all days."""

        def read() -> int:
            with self.store.engine.reading() as connection:
                rows = connection.execute(SUMS.select().where(SUMS.c.seconds == 86_400, SUMS.c.tenant == "")).all()
            return sum(SumRow.from_bytes(row.row).requests for row in rows)

        return await asyncio.to_thread(read)

    async def check(self, receipts: Sequence[Receipt]) -> None:
        """Assert that the database has exactly these receipts, and that the sums count each once."""
        assert await self.ids() == sorted(one.id for one in receipts)
        assert await self.counted() == len(receipts)

    async def forget_all(self) -> None:
        """Delete all data, like a restart of a Redis without persistence."""
        await self.redis.delete(*await self.redis.keys(f"*{self.keys.prefix}*"))
        self.ledger.forget_tenants()


@asynccontextmanager
async def open_outboxes(redis_url: str, address: str) -> AsyncIterator[Outboxes]:
    client = RedisClient(redis_url, timeout_s=5, metrics=Metrics())
    async with Redis.from_url(redis_url) as redis:
        outboxes = Outboxes(redis, client, address)
        try:
            yield outboxes
        finally:
            for store in outboxes.stores:
                await store.close()
            await client.close()


def receipts(count: int, tenant: str = "acme") -> list[Receipt]:
    """Return receipts of the current time with new ids."""
    now = int(time.time())
    return [
        with_savings(
            msgspec.structs.replace(
                closed(guided()), id=f"req_{now:08x}{secrets.token_hex(8)}", tenant=tenant, created=now
            )
        )
        for _ in range(count)
    ]
