"""The prepared calls of fleet_cost.py are admitted and settled by a real Redis."""

from __future__ import annotations

import asyncio

import pytest
from redis import Redis

from gateway.local.redis import EmbeddedRedis
from gateway.redis.keys import RedisKeys
from load_tests import redis_limit


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("together", [1, 4])
async def test_each_request_is_admitted_and_each_but_the_last_settled(together: int, limited: bool) -> None:
    prepared = await asyncio.to_thread(redis_limit.prepare, 800, together, limited=limited)

    async with EmbeddedRedis() as server:
        with Redis.from_url(server.url) as redis:
            sent = await asyncio.to_thread(redis_limit.send, server.socket_path, redis, prepared)

            keys = RedisKeys("limit")
            outboxes = [redis.xlen(keys.outbox(name)) for name in redis_limit.TENANTS]
            intents = [redis.hlen(key) for key in redis.scan_iter("*intents*")]
    assert sent.requests == 800
    assert sum(intents) == together * len(redis_limit.TENANTS)  # those of each tenant's last call
    assert sum(outboxes) == 800 - sum(intents)
