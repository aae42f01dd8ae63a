"""Device reports in Redis: each stored once and posted to the outbox in the same script call."""

from __future__ import annotations

import asyncio
import secrets
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import pytest_asyncio
from msgspec import structs
from redis.asyncio import Redis

from gateway.accounting.edge import closing_receipt
from gateway.accounting.edge_book import EdgeBook, SavingsBound
from gateway.accounting.receipt import Receipt
from gateway.accounting.redis_ledger import RedisLedger, Settlement
from gateway.redis.keys import RedisKeys
from gateway.usage.rollup import SumRow
from tests.accounting.receipt_builders import PRICES
from tests.accounting.test_edge import USAGE, given

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TTL_S = 100.0
BY = int(time.time()) + 3600
BOUND = SavingsBound("till", Decimal(1))


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
    tries = [
        book.write(version, BY, BOUND) for book in (desk.ann, desk.bob) for version in (one, other) for _ in range(5)
    ]
    outcomes = await asyncio.gather(*tries)
    assert sorted(outcomes) == ["closed"] * 19 + ["written"]
    (posted,) = await desk.posted()
    stored: Any = await desk.redis.get(desk.keys.receipt("acme", one.id))
    assert Receipt.from_json(stored) == posted


async def test_a_report_can_be_read_and_its_tenant_is_registered(desk: Desk) -> None:
    one = report()
    assert await desk.ann.write(one, BY, BOUND) == "written"
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
    assert await desk.ann.write(one, seconds + 10, BOUND) == "written"
    assert await desk.bob.write(one, seconds - 10) == "closed"


async def test_answers_that_devices_made_alone_are_bounded_by_the_hour(desk: Desk) -> None:
    """No other limit counts them. Reports on guidance are not limited here."""
    alone = [msgspec.structs.replace(report(), id=f"edge_{number}", edge_of=None) for number in range(4)]
    assert [await desk.ann.write(one, None, BOUND) for one in alone] == ["written", "written", "full", "full"]
    assert await desk.ann.write(alone[0], None) == "closed", "it was written"
    assert 0 < await desk.redis.ttl(desk.keys.offline("acme")) <= 3600
    assert await desk.ann.write(report(), BY, BOUND) == "written"


async def test_processes_share_the_daily_bound_on_savings_of_a_key(desk: Desk) -> None:
    """Each report saves 0.00055 USD, so that three fit into 0.002. The others are stored and save nothing."""
    reports = [msgspec.structs.replace(report(), id=f"req_{number}-edge") for number in range(10)]
    tries = [
        (desk.ann if number % 2 else desk.bob).write(one, BY, SavingsBound("till", Decimal("0.002")))
        for number, one in enumerate(reports)
    ]
    assert sorted(await asyncio.gather(*tries)) == ["uncounted"] * 7 + ["written"] * 3
    posted = await desk.posted()
    assert sorted(one.savings_usd for one in posted) == [0] * 7 + [Decimal("0.00055")] * 3
    assert {one.student for one in posted} == {reports[0].student}
    sums = SumRow()
    for one in posted:
        sums.merge(SumRow.of(one))
    assert (sums.savings_pico, sums.baseline_pico) == (1_650_000_000, 1_650_000_000)
    other = msgspec.structs.replace(report(), id="req_10-edge")
    assert await desk.ann.write(other, BY, SavingsBound("phone", Decimal("0.002"))) == "written"
    assert 0 < await desk.redis.ttl(desk.keys.device_savings("acme", "till")) <= 2 * 86_400


async def test_the_savings_of_a_key_begin_anew_each_day(desk: Desk) -> None:
    bound = SavingsBound("till", Decimal("0.00055"))
    first, second, third = (msgspec.structs.replace(report(), id=f"req_{number}-edge") for number in range(3))
    assert await desk.ann.write(first, BY, bound) == "written"
    assert await desk.ann.write(second, BY, bound) == "uncounted"
    key = desk.keys.device_savings("acme", "till")
    await desk.redis.hincrby(key, "day", -1)
    assert await desk.ann.write(third, BY, bound) == "written"


@pytest.mark.parametrize(
    "uncounted",
    [
        lambda: closing_receipt(given(), structs.replace(USAGE, finish_reason="length"), PRICES["big"]),
        lambda: closing_receipt(given(), structs.replace(USAGE, guided=False), PRICES["big"]),
    ],
    ids=["at its limit", "without the guidance"],
)
async def test_other_reports_save_nothing_within_the_bound(desk: Desk, uncounted: Any) -> None:
    await desk.ann.write(uncounted(), BY, SavingsBound("till", Decimal(1)))
    (posted,) = await desk.posted()
    assert (posted.savings_usd, posted.baseline_usd) == (0, 0)


async def test_a_report_that_is_sent_again_is_posted_once(desk: Desk) -> None:
    """A restarted Redis has no scripts."""
    one = report()
    await desk.ann.write(one, BY, BOUND)
    ledger = RedisLedger(desk.redis, desk.keys, "ann", TTL_S, 10.0)
    await ledger.exchange([], [Settlement(one, None)])
    assert await desk.posted() == [one]
    await desk.redis.delete(desk.keys.receipt("acme", one.id), desk.keys.outbox("acme"))
    await ledger.exchange([], [Settlement(one, None)])
    assert await desk.posted() == [one], "Redis had forgotten it"
