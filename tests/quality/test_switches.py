"""Switches and the bound on agreement, in a real Redis."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from gateway.keys.audit import AuditTrail
from gateway.local.redis import EmbeddedRedis
from gateway.policy.guidance_off import GuidanceOff, GuidanceScope, GuidanceSwitches
from gateway.policy.route_rules import QualityRule
from gateway.quality.switches import MIN_SAMPLES, GuidanceSwitchStore, QualityFall, SwitchFollower
from gateway.redis.keys import RedisKeys
from gateway.telemetry.gauges import GuidanceOffGauge
from gateway.telemetry.series import SeriesLimit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHAT = GuidanceScope("acme", "chat")
OFF = GuidanceOff(0.0, "operator", "ann", "a test", "student")
RULE = QualityRule(min_agreement=0.8)


class Process:
    """The switches of a gateway process, their follower and the store."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self.switches, self.gauge = GuidanceSwitches(), GuidanceOffGauge(SeriesLimit(1))
        self.store = GuidanceSwitchStore(redis, RedisKeys(prefix))
        self.follower = SwitchFollower(self.store, self.switches, self.gauge)

    async def off(self) -> dict[GuidanceScope, GuidanceOff]:
        await self.follower.catch_up()
        return dict(self.switches.off)

    async def count(self, agreement: float, window: str = "w", **more: Any) -> QualityFall | None:
        arrived_s = more.get("arrived_s", int(time.time()) + 1)
        return await self.store.count("acme", "chat", window, RULE, arrived_s=arrived_s, agreement=agreement)

    async def fall_after(self, draw: Any, most: int) -> int | None:
        """Return the number of comparisons until the route falls, or None."""
        for number in range(1, most + 1):
            if await self.count(draw()) is not None:
                return number
        return None

    def series(self) -> dict[tuple[str, str, str], float]:
        (family,) = self.gauge.collect()
        return {
            (one.labels["tenant"], one.labels["route"], one.labels["by"]): one.value
            for one in family.samples
            if one.value
        }


@pytest_asyncio.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def processes(redis: Redis, request: pytest.FixtureRequest) -> list[Process]:
    return [Process(redis, request.node.name) for _ in range(2)]


@pytest.fixture
def trail(redis: Redis, request: pytest.FixtureRequest) -> AuditTrail:
    return AuditTrail(redis, RedisKeys(request.node.name).keyring().audit)


async def test_every_process_reads_a_switch_with_its_time_actor_and_reason(
    processes: list[Process], trail: AuditTrail
) -> None:
    one, other = processes
    scopes = GuidanceScope(), GuidanceScope("acme"), GuidanceScope("acme", "org/model")
    before = time.time()
    assert [await one.store.switch(scope, OFF, "ann") for scope in scopes] == [False] * 3
    found = await other.off()
    assert set(found) == set(scopes)
    for switch in found.values():
        assert (switch.by, switch.actor, switch.reason, switch.answer_by) == ("operator", "ann", "a test", "student")
        assert before - 2 < switch.since_s < time.time() + 2
    assert await one.store.switch(scopes[1], None, "bob") is True
    assert await one.store.switch(scopes[1], None, "bob") is False, "a second time changes nothing"
    assert set(await other.off()) == {scopes[0], scopes[2]}
    entries = [(one.actor, one.action, one.tenant, one.subject) for one in await trail.read(10)]
    assert entries == [
        ("bob", "guidance.on", "acme", ""),
        ("ann", "guidance.off", "acme", "org/model"),
        ("ann", "guidance.off", "acme", ""),
        ("ann", "guidance.off", "", ""),
    ]


async def test_an_imported_switch_replaces_none_and_reaches_every_process(processes: list[Process]) -> None:
    ann, bob = processes
    imported = GuidanceOff(1_700_000_000.123456, "quality", "", None, "teacher")
    assert await bob.off() == {}
    await ann.store.restore(CHAT, imported)
    assert await bob.off() == {CHAT: imported}
    await ann.store.restore(CHAT, OFF)
    assert await bob.off() == {CHAT: imported}


async def test_the_gauge_has_the_switches_and_bounds_its_series(processes: list[Process]) -> None:
    one, _ = processes
    for tenant in ("acme", "globex", "initech"):
        await one.store.switch(GuidanceScope(tenant, "chat"), OFF, "ann")
    await one.off()
    assert one.series() == {
        ("acme", "chat", "operator"): 1.0,
        ("(other)", "(other)", "operator"): 1.0,
    }
    await one.store.switch(GuidanceScope(), OFF, "ann")
    await one.off()
    assert one.series()["(all)", "(all)", "operator"] == 1.0


async def test_bad_answers_switch_the_route_off_once_over_all_processes(
    processes: list[Process], trail: AuditTrail
) -> None:
    falls = await asyncio.gather(*(processes[number % 2].count(0.3) for number in range(100)))
    (fall,) = [fall for fall in falls if fall is not None]
    assert fall.samples >= MIN_SAMPLES
    assert fall.agreement == 0.3
    for process in processes:
        (switch,) = (await process.off()).values()
        assert (switch.by, switch.answer_by) == ("quality", "teacher")
        assert switch.reason == (
            f"Guided answers agreed 0.300 with the teacher in {fall.samples} comparisons. min_agreement is 0.8."
        )
        assert process.series() == {("acme", "chat", "quality"): 1.0}
    (entry,) = await trail.read(10)
    assert (entry.actor, entry.action, entry.subject) == ("quality", "guidance.off", "chat")


@pytest.mark.parametrize("mean", [0.8, 0.9])
async def test_noise_at_or_above_the_bound_switches_nothing_off(processes: list[Process], mean: float) -> None:
    """Agreements of 0 or 1 have the largest noise: ten wrong answers in a row can occur by chance."""
    luck = random.Random(7)
    assert await processes[0].fall_after(lambda: float(luck.random() < mean), 1500) is None


async def test_a_fall_after_many_good_answers_is_found_soon(processes: list[Process]) -> None:
    luck = random.Random(7)
    process, noise = processes[0], lambda mean: min(1.0, max(0.0, luck.gauss(mean, 0.2)))
    assert await process.fall_after(lambda: noise(0.9), 600) is None
    number = await process.fall_after(lambda: noise(0.65), 300)
    assert number is not None
    assert number < 150


async def test_few_comparisons_decide_nothing(processes: list[Process]) -> None:
    falls = [await processes[0].count(0.0) for _ in range(MIN_SAMPLES)]
    assert [number for number, fall in enumerate(falls, 1) if fall is not None] == [MIN_SAMPLES]


async def test_a_restoration_begins_anew_and_older_samples_do_not_count(processes: list[Process]) -> None:
    one, other = processes
    number = await one.fall_after(lambda: 0.3, 100)
    assert number is not None
    assert [await other.count(0.0) for _ in range(50)] == [None] * 50, "it is off already"
    before = int(time.time())
    await other.store.switch(CHAT, None, "ann")
    assert await one.off() == {}
    assert [await one.count(0.0, arrived_s=before) for _ in range(50)] == [None] * 50
    assert await one.fall_after(lambda: 0.3, 100) == number, "as many new comparisons are needed as at first"


async def test_switching_a_wider_scope_off_and_on_begins_anew(processes: list[Process]) -> None:
    one, _ = processes
    assert [await one.count(0.3) for _ in range(15)] == [None] * 15
    await one.store.switch(GuidanceScope("acme"), OFF, "ann")
    await one.store.switch(GuidanceScope("acme"), None, "ann")
    number = await one.fall_after(lambda: 0.3, 100)
    assert number is not None
    assert number >= MIN_SAMPLES


async def test_comparisons_of_other_settings_do_not_decide(processes: list[Process]) -> None:
    one, _ = processes
    falls = [await one.count(0.3, window) for _ in range(15) for window in ("old", "new")]
    assert falls == [None] * 30


async def test_nothing_stays_in_redis_without_an_expiry_but_the_switches(
    processes: list[Process], redis: Redis, request: pytest.FixtureRequest
) -> None:
    one, _ = processes
    await one.count(0.3)
    await one.store.switch(CHAT, OFF, "ann")
    await one.store.switch(CHAT, None, "ann")
    lasting = [key.decode() async for key in redis.scan_iter(f"*{request.node.name}*") if await redis.ttl(key) < 0]
    keys = RedisKeys(request.node.name).guidance_off()
    assert set(lasting) == {keys.version, keys.audit}


async def test_a_switch_of_a_later_version_is_off(processes: list[Process], redis: Redis) -> None:
    """Fields that this version does not know are ignored. What it cannot read at all is off, too."""
    one, _ = processes
    keys = one.store._keys
    later = b'5000000|{"by": "schedule", "answer_by": "cache", "until": 7, "reason": "x"}'
    await redis.hset(keys.off, mapping={"acme": later, "globex": b"2;what?"})
    await redis.set(keys.version, "later")
    assert await one.off() == {
        GuidanceScope("acme"): GuidanceOff(5.0, "operator", "", "x", "student"),
        GuidanceScope("globex"): GuidanceOff(0.0),
    }


@pytest.mark.parametrize("loses", [False, True])
async def test_without_redis_the_last_known_switches_apply(*, loses: bool) -> None:
    """They apply until Redis is back. Its content then applies, as that of keys and budgets does."""
    async with EmbeddedRedis() as server, Redis.from_url(server.url, socket_timeout=1) as client:
        process = Process(client, "away")
        await process.store.switch(CHAT, OFF, "ann")
        await process.off()
        following = asyncio.create_task(process.follower.follow())  # noqa: TID251
        try:
            if loses:
                await client.flushall()
                await _until(lambda: not process.switches.off)
                return
            await server.stop()
            await asyncio.sleep(1.2)
            assert process.switches.find("acme", "chat") is not None
            started = Process(client, "away")
            await started.follower.start()
            assert started.switches.find("acme", "chat") is None, "without Redis a new process uses the policies"
        finally:
            following.cancel()
            await asyncio.wait([following])  # else its connection may stay open


async def _until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.05)
