"""Samples of requests in a real Redis: bounds, the draw, expiry, deletion and tenants."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest_asyncio
from redis.asyncio import Redis

from gateway.local.redis import EmbeddedRedis
from gateway.policy.route_rules import CollectRule
from gateway.quality.request_sample import RedisSamples
from gateway.redis.keys import RedisKeys
from tests.batching.process import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RULE = CollectRule(max_requests=50, max_total_bytes=200_000)


class World:
    """A Redis with samples, under a prefix of its own. Priorities are random unless a test gives some."""

    def __init__(self, redis: Redis, *priorities: float) -> None:
        self.redis = redis
        self.names = RedisKeys(f"c{os.urandom(4).hex()}")
        given = iter(priorities)
        self.samples = RedisSamples(redis, self.names, **({"priority": lambda: next(given)} if priorities else {}))

    async def add(
        self, name: str, content: bytes = b"{}", *, tenant: str = "acme", route: str = "chat", rule: CollectRule = RULE
    ) -> str:
        return await self.samples.add(tenant, route, rule, name, content)

    async def held(self, tenant: str = "acme", route: str = "chat") -> list[bytes]:
        return (await self.samples.read(tenant, route, 1000)).requests

    async def names_in_redis(self) -> set[str]:
        return {name.decode() async for name in self.redis.scan_iter(f"*{self.names.prefix}:*")}


@pytest_asyncio.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest_asyncio.fixture
async def world(redis: Redis) -> World:
    return World(redis)


async def test_requests_below_the_limits_are_all_kept(world: World) -> None:
    contents = [b'{"id":"%d"}' % number for number in range(20)]
    assert {await world.add(str(number), content) for number, content in enumerate(contents)} == {"stored"}
    assert sorted(await world.held()) == sorted(contents)
    (sample,) = await world.samples.routes("acme")
    assert (sample.route, sample.seen, sample.kept, sample.skipped) == ("chat", 20, 20, {})
    assert sample.size_bytes > sum(map(len, contents))


async def test_beyond_the_number_a_uniform_sample_is_kept(world: World) -> None:
    """The mean position of 50 of 1,000 requests in a uniform sample: 500, with a standard deviation of 40."""
    for number in range(1000):
        await world.add(str(number), b"%d" % number)
    held = [int(content) for content in await world.held()]
    assert len(held) == 50
    assert 300 < sum(held) / len(held) < 700, "neither the first nor the last requests"
    (sample,) = await world.samples.routes("acme")
    assert (sample.seen, sample.kept) == (1000, 50)


async def test_beyond_the_memory_the_sample_does_not_prefer_short_requests(redis: Redis) -> None:
    """Two of three long requests fit. The room that remains is not for a short one with a higher priority."""
    world = World(redis, 0.9, 0.1, 0.5, 0.95, 0.3)
    results = [await world.add(name, b"x" * 90_000) for name in ("first", "second", "third")]
    assert results == ["stored"] * 3
    assert await world.add("short", b"short") == "not_drawn", "the first one left at a lower priority"
    assert await world.add("drawn", b"drawn") == "stored"
    assert [len(content) for content in await world.held()] == [90_000, 5, 90_000]
    (sample,) = await world.samples.routes("acme")
    assert sample.size_bytes <= RULE.max_total_bytes


async def test_the_limits_hold_after_the_policy_lowers_them(world: World) -> None:
    for number in range(50):
        await world.add(str(number))
    await world.add("new", rule=CollectRule(max_requests=5))
    assert len(await world.held()) == 5


async def test_a_request_is_kept_once(redis: Redis) -> None:
    """A script whose reply was lost may run twice."""
    world = World(redis, 0.5, 0.4)
    assert [await world.add("one"), await world.add("one")] == ["stored", "stored"]
    (sample,) = await world.samples.routes("acme")
    assert sample.kept == 1


async def test_no_tenant_and_no_route_displaces_requests_of_another(world: World) -> None:
    await world.add("ours", b"ours")
    await world.add("other route", b"other route", route="chat-2")
    for number in range(200):
        await world.add(str(number), b"y" * 20_000, tenant="globex")
    assert await world.held() == [b"ours"]
    assert await world.held(route="chat-2") == [b"other route"]
    assert [sample.route for sample in await world.samples.routes("acme")] == ["chat", "chat-2"]
    assert [sample.route for sample in await world.samples.routes("globex")] == ["chat"]
    assert await world.samples.routes("initech") == []


async def test_a_sample_expires_as_a_whole_and_the_next_one_begins(world: World) -> None:
    short = CollectRule(ttl_s=3.0)
    await world.add("first", b"first", rule=short)
    (begun,) = await world.samples.routes("acme")
    assert begun.ends_s - begun.since_s == 3
    await asyncio.sleep(0.05)  # a new end would differ
    await world.add("second", b"second", rule=short)
    (sample,) = await world.samples.routes("acme")
    assert (sample.kept, sample.ends_s) == (2, begun.ends_s), "the second request does not prolong the sample"

    async def expired() -> bool:
        return await world.names_in_redis() == set()

    await until(expired, 10)
    seconds, micros = await world.redis.time()
    assert seconds + micros / 1e6 >= begun.ends_s
    assert await world.samples.routes("acme") == []
    await world.add("third", b"third", rule=short)
    assert await world.held() == [b"third"]


async def test_a_shorter_time_applies_to_the_current_sample_and_a_longer_one_does_not(world: World) -> None:
    await world.add("one", rule=CollectRule(ttl_s=100.0))
    await world.add("two", rule=CollectRule(ttl_s=1000.0))
    (sample,) = await world.samples.routes("acme")
    assert sample.ends_s - sample.since_s == 100
    await world.add("three", rule=CollectRule(ttl_s=50.0))
    (sample,) = await world.samples.routes("acme")
    assert sample.ends_s - sample.since_s == 50
    keys = world.names.collected("acme", "chat")
    for key in keys:
        assert 0 < await world.redis.ttl(key) <= 100, key


async def test_skipped_and_dropped_requests_are_counted(world: World) -> None:
    add = world.samples.add
    assert await add("acme", "chat", RULE, "one", b"", reason="tools") == "skipped"
    assert await add("acme", "chat", RULE, "two", b"{}", dropped=3) == "stored"
    (sample,) = await world.samples.routes("acme")
    assert (sample.seen, sample.kept, sample.skipped) == (5, 1, {"dropped": 3, "tools": 1})


async def test_pages_have_every_request_once_and_a_first_page_is_a_sample(world: World) -> None:
    for number in range(45):
        await world.add(str(number), b"%d" % number)
    pages: list[list[bytes]] = []
    after = None
    while not pages or after is not None:
        page = await world.samples.read("acme", "chat", 10, after=after)
        pages.append(page.requests)
        after = page.following
    assert [len(page) for page in pages] == [10, 10, 10, 10, 5]
    assert sorted(int(one) for page in pages for one in page) == list(range(45))
    assert [int(one) for one in pages[0]] != list(range(10))


async def test_a_page_ends_at_its_size(world: World) -> None:
    for number in range(50):
        await world.add(str(number), b"z" * 1000)
    page = await world.samples.read("acme", "chat", 50, max_bytes=2000)
    assert 2 <= len(page.requests) < 50
    assert page.following is not None
    rest = await world.samples.read("acme", "chat", 50, after=page.following)
    assert len(page.requests) + len(rest.requests) == 50


async def test_a_deleted_sample_is_gone_and_others_stay(world: World) -> None:
    await world.add("one")
    await world.add("two", route="chat-2")
    assert await world.samples.delete("acme", "chat") == 1
    assert await world.held() == []
    assert [sample.route for sample in await world.samples.routes("acme")] == ["chat-2"]
    assert await world.samples.delete("acme", "chat-2") == 1
    assert await world.names_in_redis() == set()


async def test_collected_requests_leave_a_fifth_of_the_memory() -> None:
    async with EmbeddedRedis() as own, Redis.from_url(own.url) as redis:
        world = World(redis)
        used = (await redis.info("memory"))["used_memory"]
        await redis.config_set("maxmemory", used + 4_000_000)
        rule = CollectRule(max_requests=1000, max_total_bytes=100_000_000)
        results = [await world.add(str(number), b"a" * 150_000, rule=rule) for number in range(40)]
        assert (results[0], results[-1]) == ("stored", "full")
        memory = await redis.info("memory")
        assert memory["used_memory"] < 0.85 * memory["maxmemory"]
        (sample,) = await world.samples.routes("acme")
        assert (sample.kept, sample.skipped) == (results.count("stored"), {"no_memory": results.count("full")})
