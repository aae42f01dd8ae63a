"""Stored responses in a real Redis: sizes, eviction, expiry, deletion and tenants."""

from __future__ import annotations

import asyncio
import os
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from gateway.local.redis import EmbeddedRedis
from gateway.pipeline.redis_responses import RedisResponses, StoredResponse
from gateway.policy.stored_responses import StoredResponsesRule
from gateway.protocol.structure import MAX_VALUES
from gateway.redis.keys import RedisKeys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RULE = StoredResponsesRule()


class World:
    """A Redis with stored responses, under a prefix of its own."""

    def __init__(self, redis: Redis, *, max_deleted: int = 1000) -> None:
        self.redis = redis
        self.names = RedisKeys(f"s{os.urandom(4).hex()}")
        self.store = RedisResponses(redis, self.names, max_deleted=max_deleted)

    async def save(
        self, response_id: str, text: str = "hello", *, tenant: str = "acme", rule: StoredResponsesRule = RULE
    ) -> str:
        return await self.store.save(tenant, response_id, stored(text), rule)

    async def held(self, *ids: str, tenant: str = "acme") -> list[str]:
        """Return those of the ids that the tenant has."""
        return [one for one in ids if await self.store.load(tenant, one) is not None]

    async def names_in_redis(self) -> set[str]:
        return {name.decode() async for name in self.redis.scan_iter(f"*{self.names.prefix}:*")}

    async def total(self, tenant: str = "acme") -> int:
        return int(await self.redis.get(self.names.stored_response(tenant, "").total) or 0)

    async def sum_of_sizes(self, tenant: str = "acme") -> int:
        members = await self.redis.zrange(self.names.stored_response(tenant, "").ends, 0, -1)
        return sum(int(member.rpartition(b"|")[2]) for member in members)


def stored(text: str) -> StoredResponse:
    return StoredResponse(orjson.dumps({"output": text}), orjson.dumps([{"role": "user", "content": text}]))


def noise(size: int, seed: int = 0) -> str:
    """Return text that cannot be compressed to much less than three quarters."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return "".join(random.Random(seed).choices(letters, k=size))


def rule(**fields: object) -> StoredResponsesRule:
    return StoredResponsesRule.model_validate(fields)


@pytest_asyncio.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest_asyncio.fixture
async def world(redis: Redis) -> World:
    return World(redis)


@pytest.mark.parametrize("size", [10, 5_000, 400_000])
async def test_a_response_and_its_conversation_are_read_as_they_were_stored(world: World, size: int) -> None:
    """Small values are plain, others compressed, large ones in a thread."""
    text = noise(size) + "\n\u2028"
    assert await world.save("resp_1", text) == "stored"
    assert await world.store.load("acme", "resp_1") == stored(text)


async def test_long_conversations_are_compressed(world: World) -> None:
    await world.save("resp_1", "The same sentence again. " * 10_000)
    assert await world.total() < 5_000


async def test_a_tenant_neither_reads_nor_deletes_the_responses_of_another(world: World) -> None:
    await world.save("resp_1", "secret of acme")
    assert await world.store.load("globex", "resp_1") is None
    assert not await world.store.delete("globex", "resp_1")
    assert await world.save("resp_1", "of globex", tenant="globex") == "stored"
    assert await world.store.load("acme", "resp_1") == stored("secret of acme")


async def test_a_deleted_response_is_gone_and_its_size_is_free(world: World) -> None:
    await world.save("resp_1", noise(5_000))
    await world.save("resp_2", "kept")
    assert await world.store.delete("acme", "resp_1")
    assert not await world.store.delete("acme", "resp_1")
    assert await world.held("resp_1", "resp_2") == ["resp_2"]
    assert 0 < await world.total() == await world.sum_of_sizes() < 1_000


async def test_a_response_expires_and_its_size_is_free_at_the_next_save(world: World) -> None:
    await world.save("resp_1", noise(5_000), rule=rule(ttl=2.0))
    await world.save("resp_2", "kept")
    assert await world.held("resp_1", "resp_2") == ["resp_1", "resp_2"]
    await asyncio.sleep(2.1)
    assert await world.held("resp_1", "resp_2") == ["resp_2"]
    await world.save("resp_3")
    assert 0 < await world.total() == await world.sum_of_sizes() < 2_000


async def test_each_key_of_a_tenant_expires_with_its_last_response(world: World) -> None:
    await world.save("resp_1", rule=rule(ttl=600.0))
    await world.save("resp_2", rule=rule(ttl=900.0))
    left_ms = {name: await world.redis.pttl(name) for name in await world.names_in_redis()}
    first = left_ms.pop(world.names.stored_response("acme", "resp_1").response)
    assert 500_000 < first <= 600_000
    assert len(left_ms) == 3
    assert all(800_000 < left <= 900_000 for left in left_ms.values()), left_ms


async def test_the_oldest_responses_make_room_for_a_new_one(world: World) -> None:
    small = rule(max_response=45_000, max_total=90_000)  # five responses of 17,000 bytes
    for number in range(5):
        assert await world.save(f"resp_{number}", noise(22_000, number), rule=small) == "stored"
    await world.save("resp_other", noise(22_000), tenant="globex", rule=small)
    ids = [f"resp_{number}" for number in range(7)]
    assert await world.held(*ids) == ids[:5]
    for number in (5, 6):
        assert await world.save(f"resp_{number}", noise(22_000, number), rule=small) == "stored"
        assert await world.total() == await world.sum_of_sizes() <= 90_000
    assert await world.held(*ids) == ids[2:]
    assert await world.held("resp_other", tenant="globex") == ["resp_other"]


async def test_a_script_deletes_a_limited_number_of_responses(redis: Redis) -> None:
    """The store repeats the script until the response fits. With too many to delete it is not stored this time."""
    world, large = World(redis, max_deleted=10), rule(max_response=20_000, max_total=40_000)
    for number in range(69):
        assert await world.save(f"resp_{number}", rule=large) == "stored"
    assert await world.save("resp_large", noise(9_000), rule=large) == "stored"
    assert await world.held("resp_68", "resp_large") == ["resp_68", "resp_large"]
    for number in range(100, 200):
        await world.save(f"resp_{number}")
    assert await world.save("resp_larger", noise(9_000, 1), rule=large) == "full"
    assert await world.save("resp_larger", noise(9_000, 1), rule=large) == "full"
    assert await world.save("resp_larger", noise(9_000, 1), rule=large) == "stored"
    assert await world.total() == await world.sum_of_sizes() <= 40_000


async def test_a_response_over_the_limit_is_not_stored(world: World) -> None:
    small = rule(max_response=10_000, max_total=20_000)
    assert await world.save("resp_1", noise(6_000), rule=small) == "too_large"
    assert await world.store.save("acme", "resp_2", StoredResponse(b"{}", b"[" + b"0," * MAX_VALUES + b"0]"), RULE) == (
        "too_large"
    )
    assert await world.names_in_redis() == set()


async def test_a_response_that_is_saved_twice_counts_once(world: World) -> None:
    """The Redis client repeats a command after a lost connection."""
    await world.save("resp_1", noise(5_000))
    total = await world.total()
    assert await world.save("resp_1", noise(5_000)) == "stored"
    assert await world.total() == total


async def test_concurrent_saves_and_deletions_keep_the_total_exact(world: World) -> None:
    small = rule(max_response=10_000, max_total=30_000)

    async def one(number: int) -> None:
        await world.save(f"resp_{number}", noise(2_000, number), rule=small)
        if number % 3 == 0:
            await world.store.delete("acme", f"resp_{number}")

    await asyncio.gather(*(one(number) for number in range(100)))
    ids = [f"resp_{number}" for number in range(100)]
    held = await world.held(*ids)
    assert 3 < len(held) < 20
    assert await world.total() == await world.sum_of_sizes() <= 30_000
    assert await world.redis.zcard(world.names.stored_response("acme", "").ends) == len(held)


async def test_stored_responses_leave_a_fifth_of_redis_memory_free() -> None:
    """Receipts and budgets are written, though tenants store as much as they can."""
    async with EmbeddedRedis() as server, Redis.from_url(server.url) as redis:
        world = World(redis)
        used = (await redis.info("memory"))["used_memory"]
        await redis.config_set("maxmemory", used + 4_000_000)
        results = [await world.save(f"resp_{number}", noise(150_000, number)) for number in range(40)]
        memory = await redis.info("memory")
        assert results[0] == "stored"
        assert results[-1] == "full"
        assert memory["used_memory"] < 0.85 * memory["maxmemory"]
        await redis.set("a receipt", noise(100_000))
        assert await world.store.delete("acme", "resp_0")
        await redis.config_set("maxmemory", used)
        assert await world.save("resp_small") == "full"


async def test_a_full_redis_deletes_no_response_for_one_that_is_not_stored() -> None:
    """Others fill Redis. A tenant at its limit keeps its responses, and still replaces them while there is room."""
    async with EmbeddedRedis() as server, Redis.from_url(server.url) as redis:
        world, small = World(redis), rule(max_response=45_000, max_total=90_000)  # five responses of 17,000 bytes
        ids = [f"resp_{number}" for number in range(9)]
        for number in range(5):
            await world.save(ids[number], noise(22_000, number), rule=small)
        used = (await redis.info("memory"))["used_memory"]
        await redis.config_set("maxmemory", used)
        for number in range(5, 8):
            assert await world.save(ids[number], noise(22_000, number), rule=small) == "full"
        assert await world.held(*ids) == ids[:5]
        await redis.config_set("maxmemory", round((used + 100_000) / 0.8))
        assert await world.save(ids[8], noise(22_000, 8), rule=small) == "stored"
        assert await world.held(*ids) == [*ids[1:5], ids[8]]


async def test_the_documented_pattern_matches_the_stored_responses_of_one_tenant_alone() -> None:
    """The pattern is that of the redis-cli command in docs/policies.md."""
    page = Path(__file__).parents[2].joinpath("docs/policies.md").read_text("utf-8")
    (pattern,) = re.findall(r"redis-cli --scan --pattern '([^']+)' \| xargs -r redis-cli unlink", page)
    async with EmbeddedRedis() as server, Redis.from_url(server.url) as redis:
        names = RedisKeys("gkt")
        store = RedisResponses(redis, names)
        for tenant in ("acme", "acme2", "globex"):
            for number in range(3):
                await store.save(tenant, f"resp_x-_{number}", stored("x"), RULE)
        others = [names.outbox("acme"), names.receipt("acme", "req_1"), *names.scope("acme", "key:a:stored_response")]
        await redis.mset(dict.fromkeys(others, "x"))
        matched = {name.decode() async for name in redis.scan_iter(pattern)}
        keys = names.stored_response("acme", "")
        assert matched == {keys.ends, keys.total, *(f"{keys.response}resp_x-_{number}" for number in range(3))}


def test_the_total_size_must_hold_several_responses() -> None:
    with pytest.raises(ValueError, match="at least twice max_response"):
        rule(max_response=1_000_000, max_total=1_500_000)
    assert rule(max_response=1_000_000, max_total=2_000_000).max_total_bytes == 2_000_000
