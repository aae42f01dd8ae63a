"""Minutes of engines by several processes, and the result in Redis."""

from __future__ import annotations

import asyncio
import secrets
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisGone

from gateway.pricing import dollars
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from gateway.usage.uptime import DAY_S, EngineUptime, Uptime
from gateway.usage.uptime_table import minutes_in_redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

DAY = (int(time.time()) // DAY_S - 4) * DAY_S
"""A recent day: Redis stores days for eight days only."""
PRICES = {"small": Decimal("1.20"), "big": Decimal(8)}


class Clock:
    def __init__(self) -> None:
        self.now = float(DAY)

    def __call__(self) -> float:
        return self.now


class Fleet:
    """Two processes that check the same engines with one clock."""

    def __init__(self, client: RedisClient, redis: Redis) -> None:
        self.redis, self.client = redis, client
        self.keys = RedisKeys(f"u{secrets.token_hex(6)}")
        self.clock = Clock()
        self.ann, self.bob = (self.process() for _ in range(2))

    def process(self, prices: dict[str, Decimal] = PRICES) -> Uptime:
        return Uptime(self.client, self.keys, prices, self.clock, retry_s=0.01)

    async def read(self, day: int = DAY) -> dict[str, EngineUptime]:
        """Return the uptime that the usage worker reads."""
        found = await minutes_in_redis(self.redis, self.keys.ledger(), [day])
        return {one.engine: EngineUptime(dollars(one.hourly_pico), *map(_minutes, (one.up, one.seen))) for one in found}


def _minutes(bitmap: bytes) -> int:
    return sum(map(int.bit_count, bitmap))


@pytest_asyncio.fixture
async def fleet(redis_url: str) -> AsyncIterator[Fleet]:
    client = RedisClient(redis_url, timeout_s=1, metrics=Metrics())
    async with Redis.from_url(redis_url) as redis:
        yield Fleet(client, redis)
    await client.close()


async def test_a_minute_is_up_if_any_probe_succeeded(fleet: Fleet) -> None:
    """A minute counts once for many checks, even if another check finds the engine down."""
    fleet.ann.record("small", up=True)
    fleet.bob.record("small", up=False)
    for minute in (1, 1, 2):
        fleet.clock.now = DAY + minute * 60.0
        fleet.ann.record("small", up=True)
        fleet.bob.record("small", up=True)
    fleet.clock.now = DAY + 3 * 60.0
    fleet.bob.record("small", up=False)
    for one in (fleet.ann, fleet.bob):
        await one.flush()
    assert await fleet.read() == {"small": EngineUptime(Decimal("1.20"), up_minutes=3, seen_minutes=4)}


async def test_each_day_has_its_own_minutes_and_price(fleet: Fleet) -> None:
    fleet.clock.now = DAY + DAY_S - 1.0
    fleet.ann.record("small", up=True)
    fleet.clock.now += 1
    fleet.ann.record("small", up=True)
    await fleet.ann.flush()
    later = fleet.process({"small": Decimal(3)})
    fleet.clock.now += 60
    later.record("small", up=True)
    await later.flush()
    found = [await fleet.read(day) for day in (DAY - DAY_S, DAY, DAY + DAY_S)]
    assert found == [{}, {"small": EngineUptime(Decimal("1.20"), 1, 1)}, {"small": EngineUptime(Decimal(3), 2, 2)}]


async def test_an_engine_that_is_paid_by_the_token_is_not_written_down(fleet: Fleet) -> None:
    fleet.ann.record("hosted", up=True)
    await fleet.ann.flush()
    assert await fleet.read() == {}
    assert await fleet.redis.keys(f"*{fleet.keys.prefix}*") == []


async def test_prices_follow_an_edit_of_config_yaml(fleet: Fleet) -> None:
    """Unwritten minutes of an engine that is no longer paid by the hour are still written."""
    for engine in ("small", "big"):
        fleet.ann.record(engine, up=True)
    fleet.ann.use_prices({"big": Decimal(9), "new": Decimal(1)})
    fleet.clock.now += 60
    for engine in ("small", "big", "new"):
        fleet.ann.record(engine, up=True)
    await fleet.ann.flush()
    assert await fleet.read() == {
        "small": EngineUptime(Decimal("1.20"), 1, 1),
        "big": EngineUptime(Decimal(9), 2, 2),
        "new": EngineUptime(Decimal(1), 1, 1),
    }


async def test_a_day_takes_a_few_hundred_bytes_and_expires(fleet: Fleet) -> None:
    """Each engine has two bitmaps of 180 bytes and a price."""
    for minute in range(1_440):
        fleet.clock.now = DAY + minute * 60.0
        fleet.ann.record("small", up=True)
    await fleet.ann.flush()
    names = await fleet.redis.keys(f"*{fleet.keys.prefix}*")
    bitmaps = [name for name in names if b":rates:" not in name]
    assert [await fleet.redis.strlen(name) for name in bitmaps] == [180, 180]
    assert len(names) == 3
    assert {await fleet.redis.expiretime(name) for name in names} == {DAY + 9 * DAY_S}
    assert await fleet.read() == {"small": EngineUptime(Decimal("1.20"), 1_440, 1_440)}


async def test_unsent_minutes_are_written_after_an_outage(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The background task writes it, including the records of the meantime."""
    await fleet.client.require()
    failing = [RedisGone("away")]
    pipeline = fleet.client.commands.pipeline

    def broken(**options: Any) -> Any:
        if failing:
            raise failing.pop()
        return pipeline(**options)

    monkeypatch.setattr(fleet.client.commands, "pipeline", broken)
    fleet.ann.record("small", up=True)
    tasks = BackgroundTasks()
    tasks.keep("uptime", fleet.ann.run())
    tasks.keep("redis", fleet.client.watch())
    try:
        async with asyncio.timeout(20):
            while failing:
                await asyncio.sleep(0.01)
            fleet.clock.now += 60
            fleet.ann.record("small", up=True)
            while await fleet.read() != {"small": EngineUptime(Decimal("1.20"), 2, 2)}:
                await asyncio.sleep(0.01)
    finally:
        await tasks.close()


async def test_the_buffer_during_an_outage_is_bounded(fleet: Fleet) -> None:
    """The process buffers the last three days, and each minute once."""
    for minute in range(5 * 1_440):
        fleet.clock.now = DAY + minute * 60.0
        for _ in range(3):
            fleet.ann.record("small", up=True)
    await fleet.ann.flush()
    whole = {"small": EngineUptime(Decimal("1.20"), 1_440, 1_440)}
    assert [await fleet.read(DAY + day * DAY_S) for day in range(5)] == [{}, {}, whole, whole, whole]
