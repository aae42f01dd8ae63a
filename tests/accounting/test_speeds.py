"""Reading limits returns the script's counts and changes none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_asyncio
from redis.asyncio import Redis

from gateway.accounting.budgets import LimitUsage, RecentUsage
from tests.accounting.counts import LEASE_S, SLOT_US, Counted, key, tenant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.accounting.scopes import Scope


@pytest_asyncio.fixture
async def counted(redis_url: str) -> AsyncIterator[Counted]:
    async with Redis.from_url(redis_url) as redis:
        yield Counted(redis)


async def read_usage(counted: Counted, *scopes: Scope) -> list[RecentUsage]:
    return await LimitUsage(counted.redis, counted.keys, LEASE_S).read("acme", scopes)


async def test_the_next_request_sees_the_recorded_usage(counted: Counted) -> None:
    """Receipts correct the counts of tenant and key. Reading changes nothing."""
    both = tenant(rpm=3, tpm=1000, parallel=9), key(rpm=9, tpm=9000)
    await counted.ask(*both, tokens=100)
    await counted.ask(*both, tokens=70, by="bob")
    await counted.settle(counted.last, tokens=20, by="bob")
    await counted.ask(both[0], tokens=5)
    names = sorted(await counted.redis.keys(f"*{counted.keys.prefix}:*"))
    before = [await counted.redis.dump(name) for name in names]
    assert await read_usage(counted, *both) == [RecentUsage(3, 125, 2), RecentUsage(2, 120, 0)]
    assert [await counted.redis.dump(name) for name in names] == before
    refused = (await counted.ask(*both)).refusal
    assert refused is not None
    assert refused.used == "3"
    assert await read_usage(counted) == []
    assert await read_usage(counted, key(rpm=1, name="key:new")) == [RecentUsage(0, 0, 0)]


async def test_usage_older_than_a_minute_is_not_read(counted: Counted) -> None:
    """A read within the same tenth of a second equals the script, before the script removes expired slots."""
    scope = tenant(rpm=5)
    await counted.ask(scope, tokens=10)
    window = counted.keys.scope("acme", "tenant")[0]
    (came,) = (int(name[1:]) for name in await counted.redis.hkeys(window) if name[1:].isdigit() and name[:1] == b"r")
    seconds, microseconds = await counted.redis.time()
    await counted.grow_older(scope, 59 - ((seconds * 1_000_000 + microseconds) // SLOT_US - came) / 10)
    assert await read_usage(counted, scope) == [RecentUsage(1, 10, 0)]
    await counted.grow_older(scope, 1.2)
    assert await read_usage(counted, scope) == [RecentUsage(0, 0, 0)]
    assert await counted.redis.hget(window, "requests") == b"1"


async def test_a_process_without_heartbeat_for_a_lease_has_no_slots(counted: Counted) -> None:
    scope = tenant(parallel=5)
    await counted.ask(scope, by="ann")
    await counted.ask(scope, by="bob")
    assert await read_usage(counted, scope) == [RecentUsage(0, 0, 2)]
    await counted.redis.zadd(counted.keys.owners("acme"), {"bob": 1.0})
    assert await read_usage(counted, scope) == [RecentUsage(0, 0, 1)]
