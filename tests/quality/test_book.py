"""Comparisons are posted to the outboxes. Their cost is counted in a real Redis, exactly over processes."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from gateway.quality.book import DAY_S, QualityStore
from gateway.quality.comparison import OUTBOX
from gateway.redis.keys import RedisKeys
from tests.usage.test_comparisons import comparison

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NOON = 20_000 * DAY_S + DAY_S // 2
CENT = Decimal("0.01")


class Clock:
    def __init__(self) -> None:
        self.now = float(NOON)

    def __call__(self) -> float:
        return self.now


@pytest_asyncio.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def books(redis: Redis, clock: Clock, request: pytest.FixtureRequest) -> list[QualityStore]:
    """Return the stores of two processes."""
    keys = RedisKeys(request.node.name)
    return [QualityStore(redis, keys, clock) for _ in range(2)]


async def test_a_comparison_is_posted_to_the_outbox_of_comparisons(
    books: list[QualityStore], redis: Redis, request: pytest.FixtureRequest
) -> None:
    keys = RedisKeys(request.node.name)
    one = comparison(1, 0.5, 0.25)
    await books[0].add(one)
    ((_, fields),) = await redis.xrange(keys.outbox(OUTBOX))
    assert fields == {b"comparison": one.to_json()}
    assert await redis.smembers(keys.ledger().tenants) == set()


async def test_spending_is_stored_for_two_days(
    books: list[QualityStore], redis: Redis, request: pytest.FixtureRequest
) -> None:
    await books[0].take("acme", "chat", CENT, CENT)
    keys = RedisKeys(request.node.name).ledger()
    assert 0 < await redis.ttl(keys.quality_spent(books[0].today())) <= 2 * DAY_S


async def test_all_processes_together_reserve_at_most_the_daily_budget(books: list[QualityStore], clock: Clock) -> None:
    taking = (books[number % 2].take("acme", "chat", CENT, 10 * CENT) for number in range(40))
    taken = [one for one in await asyncio.gather(*taking) if one is not None]
    assert len(taken) == 10
    assert await books[0].spent_today() == {("acme", "chat"): 10 * CENT}
    assert await books[0].take("acme", "another", CENT, 10 * CENT) is not None
    assert await books[0].take("globex", "chat", CENT, 10 * CENT) is not None
    clock.now += DAY_S
    assert await books[0].take("acme", "chat", CENT, 10 * CENT) is not None


async def test_spending_above_the_reservation_counts(books: list[QualityStore]) -> None:
    taken = await books[0].take("acme", "chat", CENT, 2 * CENT)
    assert taken is not None
    await books[0].settle(taken, 3 * CENT)
    assert await books[0].spent_today() == {("acme", "chat"): 3 * CENT}
    assert await books[0].take("acme", "chat", Decimal("0.000001"), 2 * CENT) is None


async def test_of_a_day_that_redis_has_lost_nothing_is_given_back(books: list[QualityStore], redis: Redis) -> None:
    """No budget increases, and every key expires."""
    lost, less = [await books[0].take("acme", "chat", usd, CENT) for usd in (CENT * 3 / 4, CENT / 4)]
    assert lost is not None
    assert less is not None
    keys = [key async for key in redis.scan_iter("*of_a_day_that_redis_has_lost*")]
    assert await redis.delete(*keys) == 1
    await books[0].settle(lost, Decimal(0))
    assert await books[0].spent_today() == {}
    assert await books[0].take("acme", "chat", CENT / 4, CENT) is not None
    await books[0].settle(lost, Decimal(0))
    assert await books[0].spent_today() == {("acme", "chat"): Decimal(0)}


async def test_unspent_money_is_returned_to_its_day(books: list[QualityStore], clock: Clock) -> None:
    taken = await books[0].take("acme", "chat", CENT, CENT)
    assert taken is not None
    assert await books[0].take("acme", "chat", CENT, CENT) is None
    clock.now += DAY_S
    await books[0].settle(taken, Decimal("0.004"))
    assert await books[0].spent_today() == {}
    clock.now -= DAY_S
    assert await books[0].spent_today() == {("acme", "chat"): Decimal("0.004")}
    assert await books[0].take("acme", "chat", Decimal("0.006"), CENT) is not None
