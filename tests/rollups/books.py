"""A Redis, a ledger that settles into it, and two processes that add up."""

from __future__ import annotations

import secrets
import time
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec
from redis.asyncio import Redis

from gateway.ledger.redis_ledger import RedisLedger, Settlement
from gateway.metrics import Metrics
from gateway.redis_client import RedisClient
from gateway.redis_keys import RedisKeys
from gateway.rollups.janitor import Janitor
from gateway.rollups.roller import Roller
from gateway.rollups.rollup import Row
from gateway.rollups.rollups import SECONDS, Period, Retention, Rollups, Sums, periods
from tests.ledger.drafts import closed, guided

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from gateway.ledger.receipt import Receipt
    from gateway.rollups.rollup import Dims

RETENTION = Retention(minute=3600, hour=86_400, day=10 * 86_400)


class Books:
    def __init__(
        self, redis: Redis, client: RedisClient, retention: Retention = RETENTION, keys: RedisKeys | None = None
    ) -> None:
        self.redis = redis
        self.client = client
        self.retention = retention
        self.keys = keys or RedisKeys(f"t{secrets.token_hex(6)}")
        self.ledger = RedisLedger(redis, self.keys, "ann", 100, 10)
        self.rollups = Rollups(redis, self.keys, retention)
        self.ann = Roller(client, redis, self.keys, self.rollups, "ann")
        self.bob = Roller(client, redis, self.keys, self.rollups, "bob")

    def janitor(self, most: int = 1_000_000, *, archived: bool = False) -> Janitor:
        return Janitor(
            self.client,
            self.redis,
            self.keys,
            self.ann.state,
            most=most,
            archived=archived,
            retention=self.retention,
        )

    async def settle(self, *receipts: Receipt) -> None:
        await self.ledger.exchange([], [Settlement(one, None) for one in receipts])

    async def roll_all(self) -> int:
        """Until nothing is left: how many."""
        count = 0
        while rolled := await self.ann.roll():
            count += rolled
        return count

    async def outbox(self, tenant: str = "acme") -> list[str]:
        return [entry.decode() for entry, _ in await self.redis.xrange(self.keys.outbox(tenant))]

    async def archive_up_to(self, tenant: str, entry: str) -> None:
        await self.redis.hset(self.keys.ledger().archived, tenant, entry)

    async def total(self, granularity: str) -> Row:
        now = time.time()
        total = Row()
        for _, row in await self.rollups.totals(list(periods(granularity, now - 7200, now + 1))):  # type: ignore[arg-type]
            total.merge(row)
        return total

    async def rows_of_today(self) -> dict[Dims, Row]:
        return {where: row for _, where, row in await self.rollups.rows([Period.of("day", time.time())])}

    async def rows(self) -> dict[Period, dict[Dims, Row]]:
        """All rows there are of the last hours."""
        now = time.time()
        wanted = [one for granularity in SECONDS for one in periods(granularity, now - 7200, now + 1)]
        found: dict[Period, dict[Dims, Row]] = {}
        for period, where, row in await self.rollups.rows(wanted):
            if row != Row():  # what was taken out again leaves an empty one
                found.setdefault(period, {})[where] = row
        return found


@asynccontextmanager
async def open_books(redis_url: str, retention: Retention = RETENTION) -> AsyncIterator[Books]:
    client = RedisClient(redis_url, timeout_s=5, metrics=Metrics())
    try:
        await client.require()
        async with Redis.from_url(redis_url) as redis:
            yield Books(redis, client, retention)
    finally:
        await client.close()


def plainly(receipts: Iterable[Receipt]) -> dict[Period, dict[Dims, Row]]:
    """What they add up to, without any Redis."""
    sums = Sums()
    for one in receipts:
        sums.add(one)
    return dict(sums.spread().rows)


def receipts(count: int, tenant: str = "acme", **more: object) -> list[Receipt]:
    """Of now, each with another id and another price."""
    return [
        msgspec.structs.replace(
            closed(guided(), "ok" if place % 3 else "engine_timeout"),
            id=f"{tenant}-{secrets.token_hex(6)}",
            tenant=tenant,
            created=int(time.time()),
            cost_usd=Decimal(f"0.{place:012d}"),
            **more,
        )
        for place in range(1, count + 1)
    ]
