"""The queue view of a teacher is correct, has a bounded cost, and never raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from gateway.batching.redis_scheduler import RedisScheduler
from gateway.batching.ticket import SchedulerUpdate, TeacherLimits, Ticket
from gateway.batching.view import MAX_PERMITS, MAX_TENANTS, SCRIPT, SchedulerView, _per_s
from gateway.batching.window import SECOND
from gateway.local.redis import EmbeddedRedis
from tests.batching.process import Meter, process, ticket

if TYPE_CHECKING:
    from gateway.batching.view import QueueView
    from gateway.redis.keys import RedisKeys

LIMITS = TeacherLimits(4, 4, 100_000, max_cache_bytes=10_000)
LONG_S = 600.0


def wish(name: str, tenant: str = "acme", *, dedupe_key: str = "", weight: float = 1.0, cache_s: float = 0.0) -> Ticket:
    return Ticket(name, tenant, 10, 0.0, LONG_S, weight, dedupe_key, cache_s)


async def test_every_figure_of_a_board(redis: Redis, keys: RedisKeys) -> None:
    """Two processes, three tenants, four permits; one more follows a flight, and one guidance is kept."""
    view = SchedulerView(redis, keys, "big")
    ann, ben = (RedisScheduler(redis, keys, process_id, "big") for process_id in ("ann", "ben"))
    await ann.exchange(SchedulerUpdate(arrived=[wish("a0", dedupe_key="w0", cache_s=LONG_S)]), LIMITS)
    await ann.exchange(SchedulerUpdate(finished=[("a0", "guidance")]), LIMITS)
    await ann.exchange(
        SchedulerUpdate(arrived=[wish("a1", dedupe_key="w1"), wish("a2"), wish("i1", "initech")]), LIMITS
    )
    await ben.exchange(SchedulerUpdate(arrived=[wish("g1", "globex")]), LIMITS)
    await ben.exchange(
        SchedulerUpdate(arrived=[wish("g2", "globex", weight=3), wish("f", "globex", dedupe_key="w1")]), LIMITS
    )
    await ben.exchange(SchedulerUpdate(arrived=[wish("a3"), wish("a4")]), LIMITS)
    seen = await view.read(LIMITS)
    assert (seen.alone, seen.why, seen.complete, seen.unreadable) == (False, None, True, 0)
    assert (seen.waiting, seen.in_flight, seen.cap, seen.followers) == (3, 4, 4, 1)
    assert [(one.tenant, one.waiting, one.in_flight) for one in seen.tenants] == [
        ("acme", 2, 2),
        ("globex", 1, 1),
        ("initech", 0, 1),
    ]
    assert [one.weight for one in seen.tenants] == pytest.approx([1, 3, 1], rel=1e-3)
    assert [one.share for one in seen.tenants[:2]] == pytest.approx([0.25, 0.75], rel=1e-3)
    assert seen.tenants[2].share is None
    assert seen.more_tenants == seen.more_waiting == seen.more_processes == 0
    assert {one.process: one.in_flight for one in seen.processes} == {"ann": 3, "ben": 1}
    assert seen.batches == 3
    assert seen.cache is not None
    assert (seen.cache.entries, seen.cache.max_bytes) == (1, 10_000)
    assert seen.cache.bytes == int(await redis.hget(keys.teacher("big").state, "cache_bytes")) > 0
    seconds, micros = await redis.time()
    assert seen.redis_time == pytest.approx(seconds + micros / 1e6, abs=30)


async def test_waiting_times_use_the_clock_of_redis(redis: Redis, keys: RedisKeys) -> None:
    """The test sets the arrival times in the queue back."""
    names = keys.teacher("big")
    await RedisScheduler(redis, keys, "ann", "big").exchange(
        SchedulerUpdate(arrived=[wish(f"t{n}") for n in range(6)]), LIMITS
    )
    seconds, micros = await redis.time()
    now = seconds * 1_000_000 + micros
    places = sorted(await redis.zrange(names.queue, 0, -1))
    await redis.zrem(names.queue, *places)
    for place, age_s in zip(places, (90, 30), strict=True):
        tenant, _, name = place.decode().split("|")
        await redis.zadd(names.queue, {f"{tenant}|{now - age_s * 1_000_000:016d}|{name}": 0})
    await redis.zadd(names.owners, {"ann": now - 7_000_000})
    seen = await SchedulerView(redis, keys, "big").read(LIMITS)
    assert seen.oldest_wait_s == seen.tenants[0].oldest_wait_s == pytest.approx(90, abs=20)
    assert seen.oldest_wait_s >= 90
    assert seen.processes[0].heard_ago_s == pytest.approx(7, abs=20)


@pytest.mark.parametrize(
    ("age_s", "expected"), [(0.0, 50.0), (0.5, 30.0), (1.0, 10.0), (1.5, 5.0), (2.0, 0.0), (60.0, 0.0), (-1.0, 0.0)]
)
def test_rates_are_those_of_the_last_second(age_s: float, expected: float) -> None:
    """10 events in the counted second, 40 in the one before: as old as they are they fade."""
    numbers = {"a_start": 10**15, "a_before": 40, "a_current": 10}
    assert _per_s(numbers, "a", 10**15 + round(age_s * SECOND)) == expected


async def test_an_unused_scheduler_is_empty(redis: Redis, keys: RedisKeys) -> None:
    seen = await SchedulerView(redis, keys, "big").read(LIMITS)
    assert (seen.waiting, seen.in_flight, seen.oldest_wait_s, seen.tenants, seen.processes) == (0, 0, None, [], [])
    assert (seen.batches, seen.arrivals_per_s, seen.grants_per_s, seen.complete) == (0, 0, 0, True)


async def test_looking_changes_nothing_and_could_not(redis: Redis, keys: RedisKeys) -> None:
    """The script is marked as one that does not write; Redis refuses one that is so marked and writes."""
    await RedisScheduler(redis, keys, "ann", "big").exchange(
        SchedulerUpdate(arrived=[wish(f"t{n}") for n in range(9)]), LIMITS
    )
    names = [name async for name in redis.scan_iter(f"*{keys.prefix}*")]
    before = {name: await redis.dump(name) for name in names}
    await SchedulerView(redis, keys, "big").read(LIMITS)
    assert {name: await redis.dump(name) for name in before} == before
    assert {name async for name in redis.scan_iter(f"*{keys.prefix}*")} == set(names)
    mark = SCRIPT.splitlines()[0]
    with pytest.raises(ResponseError, match="Write commands are not allowed"):
        await redis.eval(mark + "\nreturn redis.call('SET', KEYS[1], 'x')", 1, f"{keys.prefix}:x")


async def test_unreadable_entries_are_counted_and_the_others_returned(redis: Redis, keys: RedisKeys) -> None:
    """Unreadable: a ticket, a permit, a lost description, a position, and a counter."""
    names = keys.teacher("big")
    await RedisScheduler(redis, keys, "ann", "big").exchange(
        SchedulerUpdate(arrived=[*(wish(f"a{n}") for n in range(7)), wish("z1", "zorg")]), LIMITS
    )
    granted = sorted(await redis.smembers(names.permits))
    head = (await redis.zrangebylex(names.queue, "[acme|", "(acme}", 0, 1))[0].decode().split("|")[2]
    await redis.hset(names.tickets, mapping={head: "W|what|is this", granted[0]: b"\xff\x00\x1b[2J"})
    await redis.hdel(names.tickets, granted[1])
    await redis.zadd(names.queue, {"no place at all": 0, "\x1b[2Jevil|1|x": 0})
    await redis.hset(names.state, "batches", "many")
    seen = await SchedulerView(redis, keys, "big").read(LIMITS)
    assert (seen.waiting, seen.in_flight, seen.batches) == (6, 4, 0)
    assert seen.unreadable == 6  # the head, two permits, two places (the second has a ticket's line missing), a counter
    by_name = {one.tenant: one for one in seen.tenants}
    assert by_name["acme"].waiting + by_name["zorg"].waiting == 4
    assert by_name["acme"].weight is None
    assert all(one.tenant.isprintable() for one in seen.tenants)
    assert sum(one.in_flight or 0 for one in seen.tenants) == 2


async def test_ten_thousand_tickets_of_a_thousand_tenants_cost_no_more(keys: RedisKeys) -> None:
    """Few commands and a small answer; who waits with more than a hundredth of all is in it, and the rest is summed."""
    async with EmbeddedRedis() as server, Redis.from_url(server.url) as redis:  # a Redis without other commands
        await _ten_thousand(redis, keys)


async def _ten_thousand(redis: Redis, keys: RedisKeys) -> None:
    limits = TeacherLimits(200, 50, 10**9, max_queue=10_000)
    scheduler = RedisScheduler(redis, keys, "ann", "big")
    tenants = ["zz-heavy-one"] * 600 + ["zz-heavy-two"] * 150 + [f"tenant-{n % 1000}" for n in range(9_450)]
    for start in range(0, len(tenants), 500):
        tickets = [wish(f"t{start + n}", tenant) for n, tenant in enumerate(tenants[start : start + 500])]
        await scheduler.exchange(SchedulerUpdate(arrived=tickets), limits)
    view = SchedulerView(redis, keys, "big")
    await view.read(limits)
    before = await _calls(redis)
    seen = await view.read(limits)
    after = await _calls(redis)
    assert after.pop("evalsha") - before.pop("evalsha") == 1
    assert sum(after.values()) - sum(before.values()) < 350
    assert (seen.waiting, seen.in_flight, seen.complete) == (10_000, 200, False)
    assert [one.tenant for one in seen.tenants[:2]] == ["zz-heavy-one", "zz-heavy-two"]
    heaviest = await redis.zrangebylex(keys.teacher("big").queue, "[zz-heavy-one|", "(zz-heavy-one}")
    assert seen.tenants[0].oldest_wait_s == pytest.approx(_oldest_wait_s(seen, heaviest), abs=1e-5)
    assert len(seen.tenants) == MAX_TENANTS
    assert seen.more_waiting == 10_000 - sum(one.waiting for one in seen.tenants)
    assert seen.more_tenants == 1002 - MAX_TENANTS
    assert {one.share for one in seen.tenants} == {None}
    script = redis.register_script(SCRIPT)
    reply = await script(keys=list(keys.teacher("big")), args=[100, 50, 256, 100, 512, "batches"])
    assert _size(reply) < 40_000


def _oldest_wait_s(seen: QueueView, places: list[bytes]) -> float:
    """Return the longest wait of these queue positions at the time of the read."""
    assert seen.redis_time is not None
    return seen.redis_time - min(int(place.split(b"|")[1]) for place in places) / SECOND


async def _calls(redis: Redis) -> dict[str, int]:
    """Return the number of calls of each command on this Redis, including those of scripts."""
    stats = await redis.info("commandstats")
    return {
        name.removeprefix("cmdstat_"): stats_of_command["calls"]
        for name, stats_of_command in stats.items()
        if "info" not in name
    }


def _size(reply: object) -> int:
    return sum(map(_size, reply)) if isinstance(reply, list) else len(str(reply))


async def test_of_sixty_tenants_all_are_found_and_fifty_listed(redis: Redis, keys: RedisKeys) -> None:
    """The list has the tenants with the most waiting tickets. The oldest wait includes all tenants."""
    names = keys.teacher("big")
    scheduler = RedisScheduler(redis, keys, "ann", "big")
    await scheduler.exchange(SchedulerUpdate(held=[wish(f"h{n}", "holder") for n in range(4)]), LIMITS)
    many = [wish(f"t{n}-{i}", f"tenant-{n:02}") for n in reversed(range(60)) for i in range(n + 1)]
    await scheduler.exchange(SchedulerUpdate(arrived=many), LIMITS)
    seen = await SchedulerView(redis, keys, "big").read(LIMITS)
    assert [(one.tenant, one.waiting) for one in seen.tenants] == [(f"tenant-{n:02}", n + 1) for n in range(59, 9, -1)]
    assert (seen.complete, seen.more_tenants, seen.more_waiting) == (True, 10, sum(range(1, 11)))
    places = await redis.zrange(names.queue, 0, -1)
    assert seen.oldest_wait_s == pytest.approx(_oldest_wait_s(seen, places), abs=1e-5)


async def test_with_too_many_permits_no_holders_are_listed(redis: Redis, keys: RedisKeys) -> None:
    """A partial count would look like a complete one."""
    limits = TeacherLimits(1000, 500, 10**9)
    scheduler = RedisScheduler(redis, keys, "ann", "big")
    await scheduler.exchange(SchedulerUpdate(arrived=[wish(f"t{n}") for n in range(MAX_PERMITS + 1)]), limits)
    seen = await SchedulerView(redis, keys, "big").read(limits)
    assert seen.in_flight == MAX_PERMITS + 1
    assert [one.in_flight for one in seen.processes] == [None]
    assert seen.tenants == []


async def test_a_key_of_another_kind_leaves_the_process_its_own_figures(
    redis: Redis, redis_url: str, keys: RedisKeys
) -> None:
    """A foreign value in the fair-order key makes the read fail in Redis. The process returns its own figures."""
    limits = TeacherLimits(1, 1, 100_000)
    async with process(redis_url, keys, limits) as queue:
        async with queue.acquire(ticket()) as waiter:
            assert waiter.holds_permit
            await redis.delete(keys.teacher("big").followers)
            await redis.set(keys.teacher("big").followers, "x")
            seen = await queue.view()
            assert (seen.alone, seen.in_flight, seen.cap, seen.waiting) == (True, 1, 1, 0)
            assert seen.why is not None
            assert "ResponseError" in seen.why
            assert [(one.tenant, one.in_flight) for one in seen.tenants] == [("acme", 1)]
            await redis.delete(keys.teacher("big").followers)
        await Meter().call(queue, 0)
