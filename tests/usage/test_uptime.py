"""Minutes of engines that several processes publish in a real Redis, counted once in a real database."""

from __future__ import annotations

import secrets
from decimal import Decimal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest_asyncio

from gateway.accounting.engine_set import EngineSet
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.telemetry.metrics import Metrics
from gateway.usage.queries import UsageQueries
from gateway.usage.uptime import DAY_S, KEPT_MINUTES, EngineUptime, UptimeReporter
from gateway.usage.uptime_table import add_minutes, last_minute, minutes_in_redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.usage.books import UsageBook

DAY = 20_000
FIRST = DAY * 1_440
"""The first minute of the day."""


class Fleet:
    """Gateway processes with one clock, and a database in which workers count their engines."""

    def __init__(self, client: RedisClient, book: UsageBook) -> None:
        self.client, self.book = client, book
        self.keys = RedisKeys(f"u{secrets.token_hex(6)}").ledger()
        self.minute = 0  # of the day

    async def publish(self, minute: int, *, price: str | None = "1.20", **up: bool | None) -> None:
        """Publish from a process in which the engines are up, down, or not probed yet (None)."""
        rule = SimpleNamespace(hourly_usd=None if price is None else Decimal(price))
        engines: Any = {name: SimpleNamespace(state=SimpleNamespace(up=is_up)) for name, is_up in up.items()}
        models: Any = {name: SimpleNamespace(price_rule=rule) for name in up}
        current = EngineSet(engines, models=models)
        now = (FIRST + minute) * 60.0 + 59.0
        await UptimeReporter(self.client, self.keys, current, lambda: now).publish()

    async def count(self, first: int, last: int) -> None:
        """Count minutes of the day, from the first to the last."""
        minutes = range(FIRST + first, FIRST + last + 1)
        if found := await minutes_in_redis(self.client.commands, self.keys, minutes):
            with self.book.engine.writing() as connection:
                add_minutes(connection, found)

    async def uptime(self, day: int = DAY) -> dict[str, EngineUptime]:
        (found,) = await self.book.reader.uptime([day * DAY_S])
        return found


@pytest_asyncio.fixture
async def fleet(redis_url: str, book: UsageBook) -> AsyncIterator[Fleet]:
    client = RedisClient(redis_url, timeout_s=1, metrics=Metrics())
    yield Fleet(client, book)
    await client.close()


async def test_a_minute_is_up_if_any_process_found_the_engine_up(fleet: Fleet) -> None:
    await fleet.publish(0, small=True, big=False)
    await fleet.publish(0, small=False, big=False)
    await fleet.publish(1, small=False, big=None)
    await fleet.publish(3, small=True, big=True)
    await fleet.count(0, 3)
    assert await fleet.uptime() == {
        "small": EngineUptime(Decimal("1.2"), up_minutes=2, seen_minutes=3),
        "big": EngineUptime(Decimal("1.2"), up_minutes=1, seen_minutes=2),
    }


async def test_a_minute_counts_once_for_several_workers(fleet: Fleet) -> None:
    """A worker that counted less than another adds only the rest, and one that is behind adds nothing."""
    for minute in range(4):
        await fleet.publish(minute, small=True)
    for first, last in ((0, 1), (0, 3), (0, 3), (1, 2)):
        await fleet.count(first, last)
    assert await fleet.uptime() == {"small": EngineUptime(Decimal("1.2"), 4, 4)}


async def test_an_engine_that_comes_up_in_a_counted_minute_counts_as_up(fleet: Fleet) -> None:
    await fleet.publish(5, small=False)
    await fleet.count(5, 5)
    await fleet.publish(5, small=True)
    await fleet.count(5, 6)
    assert await fleet.uptime() == {"small": EngineUptime(Decimal("1.2"), 1, 1)}


async def test_each_day_has_its_own_minutes_and_its_last_price(fleet: Fleet) -> None:
    await fleet.publish(0, price="1.20", small=True)
    await fleet.publish(1_439, price="3", small=True)
    await fleet.publish(1_440, price="4", small=True)
    await fleet.count(0, 1_440)
    assert await fleet.uptime() == {"small": EngineUptime(Decimal(3), 2, 2)}
    assert await fleet.uptime(DAY + 1) == {"small": EngineUptime(Decimal(4), 1, 1)}
    with fleet.book.engine.reading() as connection:
        assert last_minute(UsageQueries(connection)) == FIRST + 1_440


async def test_an_engine_that_is_paid_by_the_token_is_not_published(fleet: Fleet) -> None:
    await fleet.publish(0, price=None, hosted=True)
    assert await fleet.client.commands.exists(fleet.keys.engine_minute(FIRST)) == 0


async def test_minutes_expire_in_redis(fleet: Fleet) -> None:
    await fleet.publish(0, small=True)
    assert 0 < await fleet.client.commands.ttl(fleet.keys.engine_minute(FIRST)) <= KEPT_MINUTES * 60
