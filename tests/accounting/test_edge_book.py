"""Device reports in Redis: each stored once and posted to the outbox in the same script call."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest_asyncio
from redis.asyncio import Redis

from gateway.accounting.edge import closing_receipt
from gateway.accounting.edge_book import EdgeBook
from gateway.accounting.receipt import Receipt
from gateway.accounting.redis_ledger import RedisLedger, Settlement
from gateway.redis.keys import RedisKeys
from tests.accounting.receipt_builders import PRICES
from tests.accounting.test_edge import USAGE, given

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TTL_S = 100.0
BY = int(time.time()) + 3600


class Desk:
    """A Redis, and the edge books of two processes."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.keys = RedisKeys(f"t{secrets.token_hex(6)}")
        self.ann, self.bob = (EdgeBook(redis, self.keys, TTL_S, max_offline_reports=2) for _ in "12")

    async def posted(self) -> list[Receipt]:
        entries: Any = await self.redis.xrange(self.keys.outbox("acme"))
        return [Receipt.from_json(fields[b"receipt"]) for _, fields in entries]


@pytest_asyncio.fixture
async def desk(redis_url: str) -> AsyncIterator[Desk]:
    async with Redis.from_url(redis_url) as redis:
        yield Desk(redis)


def report() -> Receipt:
    return closing_receipt(given(), USAGE, PRICES["big"])


async def test_of_many_that_report_at_once_to_two_processes_one_is_written(desk: Desk) -> None:
    one = report()
    other = msgspec.structs.replace(one, finish_reason="length")
    tries = [book.write(version, BY) for book in (desk.ann, desk.bob) for version in (one, other) for _ in range(5)]
    outcomes = await asyncio.gather(*tries)
    assert sorted(outcomes) == ["closed"] * 19 + ["written"]
    (posted,) = await desk.posted()
    stored: Any = await desk.redis.get(desk.keys.receipt("acme", one.id))
    assert Receipt.from_json(stored) == posted


async def test_a_report_can_be_read_and_its_tenant_is_registered(desk: Desk) -> None:
    one = report()
    assert await desk.ann.write(one, BY) == "written"
    assert 0 < await desk.redis.ttl(desk.keys.receipt("acme", one.id)) <= TTL_S
    assert await desk.redis.sismember(desk.keys.ledger().tenants, "acme")


async def test_by_redis_clock_a_report_may_be_too_late_and_leaves_nothing(desk: Desk) -> None:
    one = report()
    seconds, _ = await desk.redis.time()
    assert await desk.ann.write(one, seconds - 1) == "expired"
    assert await desk.redis.get(desk.keys.receipt("acme", one.id)) is None
    assert await desk.posted() == []


async def test_a_duplicate_report_is_closed_at_any_time(desk: Desk) -> None:
    one = report()
    seconds, _ = await desk.redis.time()
    assert await desk.ann.write(one, seconds + 10) == "written"
    assert await desk.bob.write(one, seconds - 10) == "closed"


async def test_answers_that_devices_made_alone_are_bounded_by_the_hour(desk: Desk) -> None:
    """No other limit counts them. Reports on guidance are not limited here."""
    alone = [msgspec.structs.replace(report(), id=f"edge_{number}", edge_of=None) for number in range(4)]
    assert [await desk.ann.write(one, None) for one in alone] == ["written", "written", "full", "full"]
    assert await desk.ann.write(alone[0], None) == "closed", "it was written"
    assert 0 < await desk.redis.ttl(desk.keys.offline("acme")) <= 3600
    assert await desk.ann.write(report(), BY) == "written"


async def test_a_report_that_is_sent_again_is_posted_once(desk: Desk) -> None:
    """A restarted Redis has no scripts."""
    one = report()
    await desk.ann.write(one, BY)
    ledger = RedisLedger(desk.redis, desk.keys, "ann", TTL_S, 10.0)
    await ledger.exchange([], [Settlement(one, None)])
    assert await desk.posted() == [one]
    await desk.redis.delete(desk.keys.receipt("acme", one.id), desk.keys.outbox("acme"))
    await ledger.exchange([], [Settlement(one, None)])
    assert await desk.posted() == [one], "Redis had forgotten it"
