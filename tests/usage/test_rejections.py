"""Rejections of several processes in Redis: their sum, their bound, and outages of Redis."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisGone

from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.series import OTHER
from gateway.usage.rejections import DAY_S, MAX_ROWS, Rejection, Rejections

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Fleet:
    """Two processes with one Redis."""

    def __init__(self, client: RedisClient, redis: Redis) -> None:
        self.redis, self.keys = redis, RedisKeys(f"r{secrets.token_hex(6)}")
        self.ann, self.bob = (Rejections(client, self.keys) for _ in range(2))

    async def flush(self) -> None:
        await self.ann.flush()
        await self.bob.flush()


@pytest_asyncio.fixture
async def fleet(redis_url: str) -> AsyncIterator[Fleet]:
    client = RedisClient(redis_url, timeout_s=1, metrics=Metrics())
    async with Redis.from_url(redis_url) as redis:
        yield Fleet(client, redis)
    await client.close()


@pytest.mark.parametrize("ago_s", [600, 20 * DAY_S])
async def test_hours_and_days_contain_the_rejections_of_all_processes(fleet: Fleet, ago_s: int) -> None:
    for process in (fleet.ann, fleet.bob):
        process.count(401, "not_authenticated")
        process.count(429, "rate_limited", "acme")
    fleet.bob.count(401, "not_authenticated")
    await fleet.flush()
    now = time.time()
    found = await fleet.ann.read(now - ago_s, now, now)
    assert found.rows == {Rejection(401, "not_authenticated", None): 3, Rejection(429, "rate_limited", "acme"): 2}
    assert found.since <= now - ago_s
    assert found.until > now
    keys = [key async for key in fleet.redis.scan_iter(f"*{fleet.keys.prefix}*")]
    assert len(keys) in {2, 3, 4}, "an hour and a day, or two where one ended meanwhile"
    assert all([await fleet.redis.ttl(key) > 0 for key in keys])


async def test_a_flood_has_a_bounded_number_of_rows(fleet: Fleet) -> None:
    for number in range(3 * MAX_ROWS):
        for process, name in ((fleet.ann, "ann"), (fleet.bob, "bob")):
            process.count(404, "model_not_found", f"{name}-{number}")
            process.count(401, "not_authenticated")
    await fleet.flush()
    fleet.ann.count(429, "rate_limited", "acme")
    await fleet.flush()
    now = time.time()
    rows = (await fleet.ann.read(now - 60, now, now)).rows
    assert len(rows) <= MAX_ROWS + 3, "and a row of the others for each error"
    assert rows[Rejection(401, "not_authenticated", None)] == 6 * MAX_ROWS
    assert rows[Rejection(429, "rate_limited", OTHER)] == 1
    assert rows.total() == 12 * MAX_ROWS + 1


async def test_an_outage_loses_no_counts(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object) -> None:
        raise RedisGone

    fleet.ann.count(401, "not_authenticated")
    with monkeypatch.context() as patch:
        patch.setattr("gateway.redis.script.RedisScript.run", fails)
        with pytest.raises(RedisGone):
            await fleet.ann.flush()
    fleet.ann.count(401, "not_authenticated")
    await fleet.flush()
    now = time.time()
    assert (await fleet.ann.read(now - 60, now, now)).rows == {Rejection(401, "not_authenticated", None): 2}
