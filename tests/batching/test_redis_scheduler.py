"""The board in a real Redis, on its clock and through its channels: what a process sends it and hears of it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from structlog.testing import capture_logs

from gateway.batching.redis_scheduler import RedisScheduler, listen_for_wakeups, read_wakeup
from gateway.batching.teacher_queue import QueueTimes
from gateway.batching.ticket import Grant, SchedulerUpdate, SharedGuidance, TeacherLimits, Ticket
from gateway.local.redis import EmbeddedRedis
from gateway.runtime.tasks import BackgroundTasks
from tests.batching.process import Meter, process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio.client import PubSub

    from gateway.batching.ticket import Outcome
    from gateway.redis.keys import RedisKeys

LIMITS = TeacherLimits(max_in_flight=8, max_size=4, max_prompt_tokens=1000)
LONG_S = 1000.0


def ticket(name: str, *, wait_s: float = LONG_S, deadline_s: float = LONG_S, **more: Any) -> Ticket:
    return Ticket(name, "acme", 10, wait_s, deadline_s, **more)


def schedulers(redis: Redis, keys: RedisKeys) -> list[RedisScheduler]:
    return [RedisScheduler(redis, keys, process_id, "big") for process_id in ("ann", "ben", "cat")]


@asynccontextmanager
async def listening(redis: Redis, keys: RedisKeys) -> AsyncIterator[PubSub]:
    """Every owner's wake-ups, from now on."""
    async with redis.pubsub() as pubsub:
        await pubsub.psubscribe(keys.wakeups("*"))
        confirmed = await pubsub.get_message(timeout=5)
        assert confirmed is not None
        assert confirmed["type"] == "psubscribe"
        yield pubsub


async def wakeups(pubsub: PubSub, keys: RedisKeys, tickets: int) -> dict[str, dict[str, Outcome]]:
    """Return the outcomes of the next wake-ups by process, until they include `tickets` tickets."""
    received: dict[str, dict[str, Outcome]] = {}
    while sum(map(len, received.values())) < tickets:
        message = await pubsub.get_message(timeout=2)
        assert message is not None, f"heard {received}, waited for {tickets} tickets"
        process_id = message["channel"].decode().removeprefix(keys.wakeups(""))
        teacher, outcomes = read_wakeup(message["data"])
        assert teacher == "big"
        received.setdefault(process_id, {}).update(outcomes)
    return received


async def left_in_redis(redis: Redis, keys: RedisKeys) -> tuple[int, int, int]:
    """Return the numbers of queued tickets, ticket descriptions and permits."""
    names = keys.teacher("big")
    return await redis.zcard(names.queue), await redis.hlen(names.tickets), await redis.scard(names.permits)


async def test_a_ticket_without_a_window_is_granted_in_the_same_exchange(redis: Redis, keys: RedisKeys) -> None:
    """The ticket gets its permit in one round trip while the teacher has capacity."""
    decision = await schedulers(redis, keys)[0].exchange(SchedulerUpdate([ticket("a", wait_s=0)]), LIMITS)
    assert decision.outcomes == {"a": Grant("b1", 1)}
    assert decision.next_exchange_s is None
    assert await left_in_redis(redis, keys) == (0, 1, 1)


async def test_a_ticket_waits_for_its_window_and_its_process_gets_the_time(redis: Redis, keys: RedisKeys) -> None:
    """Before the window nothing opens; at the told time, on Redis's own clock, the batch does."""
    scheduler = schedulers(redis, keys)[0]
    decision = await scheduler.exchange(SchedulerUpdate([ticket("a", wait_s=0.05)]), LIMITS)
    assert decision.outcomes == {}
    assert decision.next_exchange_s is not None
    assert 0 < decision.next_exchange_s <= 0.05
    await asyncio.sleep(decision.next_exchange_s + 0.002)
    assert (await scheduler.exchange(SchedulerUpdate(), LIMITS)).outcomes == {"a": Grant("b1", 1)}


async def test_one_owners_news_wakes_the_others(redis: Redis, keys: RedisKeys) -> None:
    """Three owners' tickets share a batch; who completes it gets its own grant, the others hear theirs."""
    ann, ben, cat = schedulers(redis, keys)
    async with listening(redis, keys) as pubsub:
        assert (await ann.exchange(SchedulerUpdate([ticket("a"), ticket("A")]), LIMITS)).outcomes == {}
        assert (await ben.exchange(SchedulerUpdate([ticket("b")]), LIMITS)).outcomes == {}
        assert (await cat.exchange(SchedulerUpdate([ticket("c")]), LIMITS)).outcomes == {"c": Grant("b1", 4)}
        assert await wakeups(pubsub, keys, 3) == {
            "ann": {"a": Grant("b1", 4), "A": Grant("b1", 4)},
            "ben": {"b": Grant("b1", 4)},
        }


async def test_guidance_reaches_other_processes_unchanged(redis: Redis, keys: RedisKeys) -> None:
    """The text contains line breaks, separators, quotes and several scripts."""
    ann, ben, _ = schedulers(redis, keys)
    text = '["a|b \\n {\\"c\\"} é 水", "stop", null]'
    async with listening(redis, keys) as pubsub:
        await ann.exchange(SchedulerUpdate([ticket("a", wait_s=0, dedupe_key="w", cache_ttl_s=60)]), LIMITS)
        await ben.exchange(SchedulerUpdate([ticket("b", dedupe_key="w")]), LIMITS)
        await ann.exchange(SchedulerUpdate(finished=[("a", text)]), TeacherLimits(8, 4, 1000, max_cache_bytes=1000))
        assert await wakeups(pubsub, keys, 1) == {"ben": {"b": SharedGuidance(text, cached=False)}}
    later = await ben.exchange(SchedulerUpdate([ticket("c", dedupe_key="w", cache_ttl_s=60)]), LIMITS)
    assert later.outcomes == {"c": SharedGuidance(text, cached=True)}


async def test_the_cap_is_the_fleets(redis: Redis, keys: RedisKeys) -> None:
    """Permits of all owners count; a returned one goes to the oldest ticket of any owner."""
    ann, ben, _ = schedulers(redis, keys)
    limits = TeacherLimits(2, 4, 1000)
    async with listening(redis, keys) as pubsub:
        assert (
            len((await ann.exchange(SchedulerUpdate([ticket("a", wait_s=0), ticket("A", wait_s=0)]), limits)).outcomes)
            == 2
        )
        assert (
            await ben.exchange(SchedulerUpdate([ticket("b", wait_s=0), ticket("B", wait_s=0)]), limits)
        ).outcomes == {}
        assert (await ann.exchange(SchedulerUpdate([ticket("x", wait_s=0)], released=["a"]), limits)).outcomes == {}
        assert await wakeups(pubsub, keys, 1) == {"ben": {"b": Grant("b2", 1)}}
    assert await redis.scard(keys.teacher("big").permits) == 2


async def test_a_forgotten_script_is_loaded_again(redis: Redis, keys: RedisKeys) -> None:
    """Redis forgets scripts when it restarts."""
    scheduler = schedulers(redis, keys)[0]
    await scheduler.exchange(SchedulerUpdate(), LIMITS)
    await redis.script_flush()
    assert (await scheduler.exchange(SchedulerUpdate([ticket("a", wait_s=0)]), LIMITS)).outcomes == {
        "a": Grant("b1", 1)
    }


async def test_the_largest_batch_the_configuration_allows(redis: Redis, keys: RedisKeys) -> None:
    """4096 tickets at once: Lua's unpack, the arguments of one call and one wake-up carry them."""
    ann, ben, _ = schedulers(redis, keys)
    limits = TeacherLimits(100_000, 4096, 100_000_000, max_queue=10_000)
    async with listening(redis, keys) as pubsub:
        assert (await ann.exchange(SchedulerUpdate([ticket(f"a{n}") for n in range(4095)]), limits)).outcomes == {}
        assert (await ben.exchange(SchedulerUpdate([ticket("b")]), limits)).outcomes == {"b": Grant("b1", 4096)}
        assert len((await wakeups(pubsub, keys, 4095))["ann"]) == 4095
    await ann.exchange(SchedulerUpdate(released=[f"a{n}" for n in range(4095)]), limits)
    assert await left_in_redis(redis, keys) == (0, 1, 1)


async def test_tenants_that_do_not_wait_cost_an_exchange_nothing(keys: RedisKeys) -> None:
    """Three hundred were served a moment ago; a ticket needs no more commands than it did after three of them."""
    async with EmbeddedRedis() as server, Redis.from_url(server.url) as redis:  # a Redis without other commands
        scheduler = RedisScheduler(redis, keys, "ann", "big")
        needed = []
        for many in (3, 300):
            for n in range(many):
                one = Ticket(f"{many}-{n}", f"tenant-{n}", 10, 0.0, LONG_S)
                await scheduler.exchange(SchedulerUpdate([one]), LIMITS)
                await scheduler.exchange(SchedulerUpdate(released=[one.id]), LIMITS)
            before = await commands(redis)
            last = Ticket(f"{many}-last", f"tenant-{many - 1}", 10, 0.0, LONG_S)
            assert (await scheduler.exchange(SchedulerUpdate([last]), LIMITS)).opened == [1]
            needed.append(await commands(redis) - before)
            await scheduler.exchange(SchedulerUpdate(released=[last.id]), LIMITS)
    assert abs(needed[1] - needed[0]) < 40, "once a second it does a little more"


async def commands(redis: Redis) -> int:
    """Return the number of commands of this Redis, including those of scripts."""
    return sum(stats["calls"] for stats in (await redis.info("commandstats")).values())


async def test_a_tenant_without_tickets_is_deleted_when_its_pass_is_behind(redis: Redis, keys: RedisKeys) -> None:
    """Until then its pass stands apart from the order of those that wait."""
    scheduler, names = schedulers(redis, keys)[0], keys.teacher("big")
    await scheduler.exchange(SchedulerUpdate([Ticket("s", "served", 10, 0.0, LONG_S)]), LIMITS)
    await scheduler.exchange(SchedulerUpdate(released=["s"]), LIMITS)
    assert (await redis.zcard(names.passes), await redis.zscore(names.idle, "served")) == (0, 10_000)
    for n in range(3):
        await scheduler.exchange(SchedulerUpdate([ticket(f"a{n}", wait_s=0)]), LIMITS)
        await scheduler.exchange(SchedulerUpdate(released=[f"a{n}"]), LIMITS)
    await asyncio.sleep(1.01)
    await scheduler.exchange(SchedulerUpdate(), LIMITS)
    assert (await redis.zcard(names.passes), await redis.zrange(names.idle, 0, -1)) == (0, [b"acme"])


async def test_teachers_do_not_share_queues_or_caps(redis: Redis, keys: RedisKeys) -> None:
    """A full teacher says nothing about another one."""
    big, other = (RedisScheduler(redis, keys, "ann", teacher) for teacher in ("big", "other"))
    limits = TeacherLimits(1, 4, 1000)
    assert len((await big.exchange(SchedulerUpdate([ticket("a", wait_s=0)]), limits)).outcomes) == 1
    assert len((await other.exchange(SchedulerUpdate([ticket("b", wait_s=0)]), limits)).outcomes) == 1


async def test_all_keys_expire_after_the_fleet_has_ended(redis: Redis, keys: RedisKeys) -> None:
    """No key is kept for ever: each has a time to live that an exchange of a later second renews."""
    scheduler = schedulers(redis, keys)[0]
    limits = TeacherLimits(1, 4, 1000, max_cache_bytes=1000)
    arrived = [
        ticket(name, wait_s=0, dedupe_key=dedupe_key, cache_ttl_s=60)
        for name, dedupe_key in (("a", "v"), ("b", "w"), ("c", "w"))
    ]
    await scheduler.exchange(SchedulerUpdate([Ticket("s", "served", 10, 0.0, LONG_S, weight=0.1)]), limits)
    await scheduler.exchange(SchedulerUpdate(arrived, released=["s"]), limits)
    await scheduler.exchange(SchedulerUpdate([ticket("d", wait_s=0)], finished=[("a", "text")]), limits)
    await asyncio.sleep(1.01)
    await scheduler.exchange(SchedulerUpdate(), limits)
    there = [name for name in keys.teacher("big") if await redis.exists(name)]
    assert set(keys.teacher("big")) - set(there) == {keys.teacher("big").settled}, "there after outages only"
    assert all([86_000 < await redis.ttl(name) <= 86_400 for name in there])


def test_all_keys_of_the_script_are_in_one_slot(keys: RedisKeys) -> None:
    """A Redis Cluster runs a script only on keys of one slot: one hash tag in all of them."""
    for teacher in ("big", "a:b", "with{braces}", "70b"):
        names = list(keys.teacher(teacher))
        tags = {name[name.index("{") + 1 : name.index("}")] for name in names}
        assert len(tags) == 1
        assert tags != {""}
        assert len(set(names)) == len(names)


async def test_a_message_that_is_none_of_ours_does_not_end_the_listening(redis: Redis, keys: RedisKeys) -> None:
    """Garbage on the channel is logged, what was meant is asked for, and the next wake-up is heard as ever."""
    channel = keys.wakeups("ann")
    received: asyncio.Queue[tuple[str, dict[str, Outcome]]] = asyncio.Queue()
    missed: asyncio.Queue[None] = asyncio.Queue()
    tasks = BackgroundTasks()
    tasks.keep(
        "wakeups",
        listen_for_wakeups(
            redis,
            channel,
            lambda teacher, outcomes: received.put_nowait((teacher, dict(outcomes))),
            lambda: missed.put_nowait(None),
        ),
    )
    garbage = [b"big\na|b", b"\xff\xfe", b"big\na|G|many|b1", b"big\na|?|1|b1", b"big\n"]
    try:
        with capture_logs() as logs:
            async with asyncio.timeout(5):
                await missed.get()  # subscribed
                for message in garbage:
                    await redis.publish(channel, message)
                    await missed.get()
                await redis.publish(channel, b"big\na|G|3|b1\nb|S|-|x|y")
                assert await received.get() == ("big", {"a": Grant("b1", 3), "b": SharedGuidance("x|y", cached=False)})
    finally:
        await tasks.close()
    assert [line["event"] for line in logs] == ["wakeup_unreadable"] * len(garbage)
    assert missed.empty()


async def test_a_wake_up_without_outcomes_is_answered_at_once(redis: Redis, redis_url: str, keys: RedisKeys) -> None:
    """Ben comes back while ann has nothing to tell for two seconds: her next request waits for none of them."""
    async with process(redis_url, keys, LIMITS, times=QueueTimes(heartbeat_s=2.5)) as ann:
        ben = RedisScheduler(redis, keys, "ben", "big")
        async with asyncio.timeout(5):
            while (await ben.exchange(SchedulerUpdate(complete=True, fleet_size=2), LIMITS)).fleet_size < 2:
                await asyncio.sleep(0.01)
        await Meter().call(ann, 0)
        await ben.exchange(SchedulerUpdate(complete=True, rejoining=True, fleet_size=2), LIMITS)
        async with asyncio.timeout(1):
            await Meter().call(ann, 0)


async def test_a_broken_subscription_is_restarted(redis: Redis, keys: RedisKeys) -> None:
    """An error in the callback does not end the subscription. Missed outcomes are requested again."""
    subscribed: asyncio.Queue[None] = asyncio.Queue()
    received: asyncio.Queue[str] = asyncio.Queue()

    def on_wakeup(teacher: str, _: object) -> None:
        if teacher == "bad":
            raise ZeroDivisionError
        received.put_nowait(teacher)

    tasks = BackgroundTasks()
    tasks.keep(
        "wakeups",
        listen_for_wakeups(
            redis, keys.wakeups("ann"), on_wakeup, lambda: subscribed.put_nowait(None), reconnect_s=0.01
        ),
    )
    try:
        with capture_logs() as logs:
            async with asyncio.timeout(5):
                for teacher in ("bad", "big"):
                    await subscribed.get()
                    await redis.publish(keys.wakeups("ann"), f"{teacher}\na|G|3|b1")
                assert await received.get() == "big"
    finally:
        await tasks.close()
    assert [line["event"] for line in logs] == ["wakeup_handler_failed"]
