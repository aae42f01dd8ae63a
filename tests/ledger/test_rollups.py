"""Receipts are added up exactly, each once, whoever adds."""

from __future__ import annotations

import secrets
import time
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec
import pytest_asyncio
from redis.asyncio import Redis

from gateway.ledger.intent import abandoned
from gateway.ledger.redis_ledger import RedisLedger, Settlement
from gateway.ledger.roller import Roller
from gateway.ledger.rollup import Row, usd
from gateway.ledger.rollups import Period, Retention, Rollups, Sums, periods
from gateway.metrics import Metrics
from gateway.redis_client import RedisClient
from gateway.redis_keys import RedisKeys
from tests.ledger.drafts import candidate, closed, guided, intent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.ledger.receipt import Receipt

RETENTION = Retention(minute=3600, hour=86_400, day=10 * 86_400)


class Books:
    """A Redis, a ledger that settles into it, and two processes that add up."""

    def __init__(self, redis: Redis, client: RedisClient) -> None:
        self.redis = redis
        self.keys = RedisKeys(f"t{secrets.token_hex(6)}")
        self.ledger = RedisLedger(redis, self.keys, "ann", 100, 10)
        self.rollups = Rollups(redis, self.keys, RETENTION)
        self.ann = Roller(client, redis, self.keys, self.rollups, "ann")
        self.bob = Roller(client, redis, self.keys, self.rollups, "bob")

    async def settle(self, *receipts: Receipt) -> None:
        await self.ledger.exchange([], [Settlement(one, None) for one in receipts])

    async def total(self, granularity: str) -> Row:
        now = time.time()
        total = Row()
        for _, row in await self.rollups.totals(list(periods(granularity, now - 7200, now + 1))):  # type: ignore[arg-type]
            total.merge(row)
        return total


@pytest_asyncio.fixture
async def books(redis_url: str) -> AsyncIterator[Books]:
    client = RedisClient(redis_url, timeout_s=1, metrics=Metrics())
    await client.require()
    async with Redis.from_url(redis_url) as redis:
        yield Books(redis, client)
    await client.close()


def receipts(count: int, tenant: str = "acme") -> list[Receipt]:
    """Of now, each with another id and another price."""
    return [
        msgspec.structs.replace(
            closed(guided(), "ok" if place % 3 else "engine_timeout"),
            id=f"{tenant}-{secrets.token_hex(6)}",
            tenant=tenant,
            created=int(time.time()),
            cost_usd=Decimal(f"0.{place:012d}"),
        )
        for place in range(1, count + 1)
    ]


async def test_the_sum_of_receipts_is_the_sum_of_rows_in_every_granularity(books: Books) -> None:
    told = [*receipts(20), *receipts(7, "beta")]
    await books.settle(*told)
    await books.settle(*told[:5])  # told twice: a reply was lost
    assert await books.ann.roll() == 27
    assert await books.ann.roll() == 0
    for granularity in ("minute", "hour", "day"):
        total = await books.total(granularity)
        assert total.requests == 27
        assert usd(total.cost_pico) == sum(one.cost_usd for one in told)
        assert total.errors == {"engine_timeout": sum(one.status != "ok" for one in told)}
        assert total.stages[-1].count == 27
    now = Period.of("day", time.time())
    rows = await books.rollups.rows([now], "beta")
    assert [(where.tenant, row.requests) for _, where, row in rows] == [("beta", 7)]


async def test_of_two_that_add_up_the_same_one_writes(books: Books) -> None:
    told = receipts(5)
    await books.settle(*told)
    mark = await books.rollups.mark()
    assert await books.ann.roll() == 5
    sums = Sums()
    sums.add(told[0])
    assert not await books.rollups.write(mark, sums.spread(), {"acme": "1-1"}, [], time.time())
    assert (await books.total("day")).requests == 5


async def test_a_receipt_that_takes_an_abandoned_ones_place_takes_it_in_the_sums_too(books: Books) -> None:
    one = intent(created=int(time.time()))
    true = msgspec.structs.replace(receipts(1)[0], id=one.id, tenant=one.tenant)

    await books.ledger.exchange([candidate(one)], [])
    await books.ledger.abandon(one.tenant, "ann", {one.id: Settlement(abandoned(one, time.time()), one)})
    await books.ann.roll()
    assert (await books.total("day")).errors == {"abandoned": 1}
    await books.settle(true)
    await books.bob.roll()
    total = await books.total("day")
    assert (total.requests, usd(total.cost_pico), total.errors) == (1, true.cost_usd, {})


async def test_the_last_receipts_stand_ready_the_newest_first(books: Books) -> None:
    told = receipts(6)
    await books.settle(*told)
    await books.ann.roll()
    found = [msgspec.json.decode(raw)["id"] for raw in await books.rollups.latest(3)]
    assert found == [one.id for one in told[:2:-1]]
