"""A worker copies minutes of engines from Redis to the usage database."""

from __future__ import annotations

import secrets
import time
from decimal import Decimal
from typing import TYPE_CHECKING

from redis.asyncio import Redis

from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.telemetry.metrics import Metrics
from gateway.usage.uptime import DAY_S, EngineUptime, Uptime
from gateway.usage.uptime_table import add_minutes, minutes_in_redis

if TYPE_CHECKING:
    from tests.usage.books import UsageBook

DAY = (int(time.time()) // DAY_S - 4) * DAY_S
PRICES = {"small": Decimal("1.20"), "big": Decimal(8)}


class Clock:
    now = float(DAY)

    def __call__(self) -> float:
        return self.now


async def test_the_database_stores_the_minutes_of_redis(book: UsageBook, redis_url: str) -> None:
    """A Redis that lost its data adds minutes and removes none. The last price of a day applies."""
    client = RedisClient(redis_url, timeout_s=1, metrics=Metrics())
    clock = Clock()
    async with Redis.from_url(redis_url) as redis:

        async def copied(
            prices: dict[str, Decimal], keys: RedisKeys, minutes: dict[int, bool]
        ) -> list[dict[str, EngineUptime]]:
            uptime = Uptime(client, keys, prices, clock)
            for minute, up in minutes.items():
                clock.now = DAY + 60.0 * minute
                uptime.record("small", up)
                uptime.record("big", up=True)
            await uptime.flush()
            for _ in range(2):
                found = await minutes_in_redis(redis, keys.ledger(), [DAY, DAY + DAY_S])
                with book.engine.writing() as connection:
                    add_minutes(connection, found)
            return await book.reader.uptime([DAY + DAY_S, DAY])

        keys, lost = (RedisKeys(f"u{secrets.token_hex(6)}") for _ in range(2))
        first = await copied(PRICES, keys, {1: True, 2: True, 3: False, 1439: True, 1440: False})
        assert first == [
            {"small": EngineUptime(Decimal("1.2"), 0, 1), "big": EngineUptime(Decimal(8), 1, 1)},
            {"small": EngineUptime(Decimal("1.2"), 3, 4), "big": EngineUptime(Decimal(8), 4, 4)},
        ]
        again = await copied({"small": Decimal(2), "big": Decimal(8)}, lost, {2: True, 3: True, 1440: True})
        assert again == [
            {"small": EngineUptime(Decimal(2), 1, 1), "big": EngineUptime(Decimal(8), 1, 1)},
            {"small": EngineUptime(Decimal(2), 4, 4), "big": EngineUptime(Decimal(8), 4, 4)},
        ]
    await client.close()
