"""Permits of the fleet, or of the local scheduler while Redis is unavailable."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from structlog.testing import capture_logs

from gateway.batching.redis_scheduler import RedisScheduler
from gateway.batching.single_flight import SingleFlight
from gateway.batching.teacher_queue import QueueTimes
from gateway.batching.ticket import Grant, SchedulerDecision, SchedulerUpdate, SharedGuidance, TeacherLimits, Ticket
from gateway.errors import PermitUnavailable, QueueFull, StoreUnavailable
from gateway.local.redis import EmbeddedRedis
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.batching.process import HASTY_S, LONG_S, REDIS_TIMEOUT_S, Meter, nothing_left, process, ticket, until
from tests.redis_faults import paused

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.batching.teacher_queue import OnFailure, TeacherQueue
    from gateway.redis.keys import RedisKeys

LIMITS = TeacherLimits(max_in_flight=64, max_size=32, max_prompt_tokens=100_000)
NEVER_S = 600.0
NO_HEARTBEAT = QueueTimes(heartbeat_s=NEVER_S)


async def permits(redis: Redis, keys: RedisKeys) -> set[str]:
    return {name.decode() for name in await redis.smembers(keys.teacher("big").permits)}


def is_alone(queue: TeacherQueue) -> bool:
    """Return whether the process uses its local scheduler."""
    return queue.membership.outage_since is not None


async def queued(redis: Redis, keys: RedisKeys) -> int:
    return int(await redis.zcard(keys.teacher("big").queue))


async def test_requests_of_two_processes_share_a_batch(redis_url: str, redis: Redis, keys: RedisKeys) -> None:
    """Twenty concurrent requests in two processes fill one batch and carry its id and size."""
    limits = TeacherLimits(64, 20, 100_000)
    async with process(redis_url, keys, limits) as ann, process(redis_url, keys, limits, process_id="ben") as ben:
        meter = Meter()
        waits = [meter.call(queue, 0.01, ticket(wait_s=LONG_S)) for queue in (ann, ben) for _ in range(10)]
        grants = await asyncio.gather(*waits)
        assert set(grants) == {Grant("b1", 20)}
        await nothing_left(redis, keys, ann, ben)


async def test_a_lone_request_does_not_wait_past_its_window(redis_url: str, keys: RedisKeys) -> None:
    """A single ticket is granted when its window is over."""
    async with process(redis_url, keys, LIMITS) as queue:
        began = time.monotonic()
        grant = await Meter().call(queue, 0, ticket(wait_s=0.1))  # which gives up after ten seconds
        assert grant.batch_size == 1
        assert time.monotonic() - began >= 0.09


async def exchanges(redis: Redis) -> int:
    """Return the number of script calls of this Redis."""
    stats = await redis.info("commandstats")
    return sum(one["calls"] for name, one in stats.items() if name == "cmdstat_evalsha")


async def test_a_returned_permit_shares_the_exchange_of_the_next_ticket(keys: RedisKeys) -> None:
    """Ten calls in turn at an idle teacher take one exchange each. The last permit is returned soon."""
    async with (
        EmbeddedRedis() as server,  # a Redis without script calls of other processes
        Redis.from_url(server.url) as redis,
        process(server.url, keys, LIMITS, times=NO_HEARTBEAT._replace(linger_s=0.5)) as queue,
    ):
        await Meter().call(queue, 0)
        before = await exchanges(redis)
        for _ in range(10):
            await Meter().call(queue, 0)
        assert await exchanges(redis) - before == 10
        await nothing_left(redis, keys, queue)


async def test_a_permit_of_a_busy_teacher_is_returned_at_once(redis_url: str, keys: RedisKeys) -> None:
    """With one permit, three calls do not wait for the delay of returned permits."""
    limits = TeacherLimits(1, 1, 100_000)
    async with process(redis_url, keys, limits, times=NO_HEARTBEAT._replace(linger_s=NEVER_S)) as queue:
        meter = Meter()
        await asyncio.gather(*(meter.call(queue, 0.01) for _ in range(3)))
        assert meter.most == 1


async def test_the_cap_over_two_processes_is_reached_and_never_passed(
    redis_url: str, redis: Redis, keys: RedisKeys
) -> None:
    """160 calls of random length under a limit of five, counted while they run."""
    limits = TeacherLimits(5, 4, 100_000)
    meter, chance = Meter(), random.Random(7)
    async with process(redis_url, keys, limits) as ann, process(redis_url, keys, limits, process_id="ben") as ben:
        await asyncio.gather(
            *(
                meter.call(queue, chance.uniform(0.01, 0.03), ticket(wait_s=chance.choice([0, 0.005])))
                for _ in range(80)
                for queue in (ann, ben)
            )
        )
        assert meter.most == 5
        await nothing_left(redis, keys, ann, ben)


@pytest.mark.parametrize("ending", ["success", "exception", "cancellation", "deadline"])
async def test_a_permit_is_returned_however_the_call_ends(
    redis_url: str, redis: Redis, keys: RedisKeys, ending: str
) -> None:
    """The only permit serves the next request. Redis and memory are empty afterwards."""
    async with process(redis_url, keys, TeacherLimits(1, 4, 1000)) as queue:
        inside = asyncio.Event()

        async def call() -> None:
            async with asyncio.timeout(5) as limit, queue.acquire(ticket()):
                inside.set()
                if ending == "deadline":
                    limit.reschedule(asyncio.get_running_loop().time() + 0.05)
                if ending == "exception":
                    raise LookupError
                if ending != "success":
                    await asyncio.Event().wait()

        running = asyncio.ensure_future(call())  # noqa: TID251  the test cancels it
        await inside.wait()
        if ending == "cancellation":
            assert len(await permits(redis, keys)) == 1
            running.cancel()
        (outcome,) = await asyncio.gather(running, return_exceptions=True)
        kinds = {"exception": LookupError, "cancellation": asyncio.CancelledError, "deadline": TimeoutError}
        assert type(outcome) is kinds.get(ending, type(None))
        await nothing_left(redis, keys, queue)
        await Meter().call(queue, 0)


async def test_a_disconnect_withdraws_the_waiting_ticket(redis_url: str, redis: Redis, keys: RedisKeys) -> None:
    """The ticket fills no batch and gets no permit later."""
    async with process(redis_url, keys, LIMITS) as queue:
        waiting = asyncio.ensure_future(Meter().call(queue, 0, ticket(wait_s=LONG_S)))  # noqa: TID251
        await until(lambda: queued(redis, keys))
        waiting.cancel()
        await asyncio.wait([waiting])
        await nothing_left(redis, keys, queue)


async def test_a_disconnect_during_the_grant_returns_the_permit(
    redis_url: str, redis: Redis, keys: RedisKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A permit granted to a request that is canceled before it runs is returned."""
    async with process(redis_url, keys, TeacherLimits(1, 4, 1000)) as queue:
        one = ticket(wait_s=0.02)
        waiting = asyncio.ensure_future(Meter().call(queue, 0, one))  # noqa: TID251
        deliver = queue.deliver

        def deliver_and_cancel(grants: dict[str, Grant]) -> None:
            deliver(grants)
            if one.id in grants:
                waiting.cancel()

        monkeypatch.setattr(queue, "deliver", deliver_and_cancel)
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        await nothing_left(redis, keys, queue)
        await Meter().call(queue, 0)


async def test_a_grant_after_a_disconnect_is_returned(redis_url: str, redis: Redis, keys: RedisKeys) -> None:
    """Another process opened the batch after the caller left: the permit is returned before its deadline."""
    async with process(redis_url, keys, LIMITS) as queue:
        left = RedisScheduler(redis, keys, "ann", "big")
        await left.exchange(SchedulerUpdate([Ticket("left", "acme", 10, LONG_S, LONG_S)]), LIMITS)
        opened = await RedisScheduler(redis, keys, "ben", "big").exchange(
            SchedulerUpdate([Ticket("here", "acme", 10, 0, LONG_S)]), LIMITS
        )
        assert opened.outcomes == {"here": Grant("b1", 2)}

        async def only_here() -> bool:
            return await permits(redis, keys) == {"here"}

        await until(only_here, 2)
        assert queue._waiters == {}


async def test_a_deadline_that_is_over_gets_no_permit(redis_url: str, redis: Redis, keys: RedisKeys) -> None:
    """The caller's timeout ends the wait, and the teacher is not called."""
    async with process(redis_url, keys, LIMITS) as queue:
        for deadline_s in (0.0, -5.0):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), queue.acquire(ticket(deadline_s=deadline_s)):
                    pytest.fail("granted")
        await nothing_left(redis, keys, queue)


async def test_two_tickets_with_one_id_are_refused(redis_url: str, keys: RedisKeys) -> None:
    """A ticket would get the grant of the other with the same id, or return its permit."""
    async with process(redis_url, keys, LIMITS) as queue:
        one = ticket()
        async with queue.acquire(one):
            with pytest.raises(AssertionError, match="one id"):
                await Meter().call(queue, 0, one)
        await Meter().call(queue, 0, one)


async def test_a_lost_wakeup_is_recovered_when_the_subscription_is_back(
    redis_url: str, redis: Redis, keys: RedisKeys
) -> None:
    """The grant was published without a subscriber."""
    async with process(redis_url, keys, LIMITS, times=NO_HEARTBEAT) as queue:  # so that nothing else recovers it
        waiting = asyncio.ensure_future(Meter().call(queue, 0, ticket(wait_s=LONG_S)))  # noqa: TID251
        await until(lambda: queued(redis, keys))
        assert await redis.client_kill_filter(_type="pubsub") >= 1
        await RedisScheduler(redis, keys, "ben", "big").exchange(
            SchedulerUpdate([Ticket("b", "acme", 10, 0, LONG_S)]), LIMITS
        )
        assert not waiting.done()
        assert await asyncio.wait_for(waiting, 3) == Grant("b1", 2)


async def test_a_lost_wakeup_is_recovered_within_a_second_in_any_case(
    redis_url: str, redis: Redis, keys: RedisKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The subscription is open but delivers nothing; waiting tickets are sent again."""
    async with process(redis_url, keys, LIMITS) as queue:
        monkeypatch.setattr(queue, "on_wakeup", lambda *_: None)
        waiting = asyncio.ensure_future(Meter().call(queue, 0, ticket(wait_s=LONG_S)))  # noqa: TID251
        await until(lambda: queued(redis, keys))
        await RedisScheduler(redis, keys, "ben", "big").exchange(
            SchedulerUpdate([Ticket("b", "acme", 10, 0, LONG_S)]), LIMITS
        )
        assert await asyncio.wait_for(waiting, QueueTimes().heartbeat_s + 1) == Grant("b1", 2)


async def test_a_redis_that_lost_its_data_gets_all_tickets_again(redis_url: str, redis: Redis, keys: RedisKeys) -> None:
    """After Redis restarted empty unnoticed, tickets are served and permits in use are counted."""
    limits = TeacherLimits(2, 4, 1000)
    async with process(redis_url, keys, limits) as queue, queue.acquire(ticket()) as first:
        second = asyncio.ensure_future(Meter().call(queue, 0.8, ticket(wait_s=0.5)))  # noqa: TID251
        await until(lambda: queued(redis, keys))
        await redis.delete(*keys.teacher("big"))

        async def both() -> bool:
            return len(await permits(redis, keys)) == 2

        await until(both, 3)
        other = await RedisScheduler(redis, keys, "ben", "big").exchange(
            SchedulerUpdate([Ticket("b", "acme", 10, 0, LONG_S)]), limits
        )
        assert other.outcomes == {}
        assert (first.outcome, (await second).batch_size) == (Grant("b1", 1), 1)


async def test_waiting_costs_few_exchanges(
    redis_url: str, redis: Redis, keys: RedisKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a running window nor a full teacher makes the loop busy."""
    looks: list[float | None] = []
    exchange = RedisScheduler.exchange

    async def counted(self: RedisScheduler, update: SchedulerUpdate, limits: TeacherLimits) -> SchedulerDecision:
        decision = await exchange(self, update, limits)
        looks.append(decision.next_exchange_s)
        return decision

    monkeypatch.setattr(RedisScheduler, "exchange", counted)
    async with process(redis_url, keys, TeacherLimits(1, 4, 1000)) as queue:
        meter = Meter()
        await meter.call(queue, 0, ticket(wait_s=0.3))
        await asyncio.gather(meter.call(queue, 0.3), meter.call(queue, 0), meter.call(queue, 0))
        await nothing_left(redis, keys, queue)
    assert 4 <= len(looks) <= 25


async def test_the_loop_survives_an_unexpected_error(redis_url: str, redis: Redis, keys: RedisKeys) -> None:
    """The loop logs the error, pauses and sends a complete update, since later requests need it."""
    broken = [False]

    def limits() -> TeacherLimits:
        if broken[0]:
            raise ZeroDivisionError
        return LIMITS

    async with process(redis_url, keys, limits, times=QueueTimes(retry_s=0.05)) as queue:
        await Meter().call(queue, 0)
        broken[0] = True
        with capture_logs() as logs:
            waiting = asyncio.ensure_future(Meter().call(queue, 0))  # noqa: TID251
            await until(lambda: any(line["event"] == "exchange_failed" for line in logs))
            broken[0] = False
            await asyncio.wait_for(waiting, 2)
        await nothing_left(redis, keys, queue)


async def test_a_failed_exchange_serves_all_waiting_requests(
    redis_url: str, redis: Redis, keys: RedisKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected error is logged with its trace, and requests are served as without Redis."""
    exchange = RedisScheduler.exchange
    async with process(redis_url, keys, LIMITS, times=QueueTimes(retry_s=0.1)) as queue:

        async def broken(*_: object) -> SchedulerDecision:
            raise AttributeError("reader")

        monkeypatch.setattr(RedisScheduler, "exchange", broken)
        with capture_logs() as logs:
            grant = await Meter().call(queue, 0)
        assert grant.batch_id.startswith("local-")
        (broke,) = [line for line in logs if line["event"] == "exchange_failed"]
        assert broke["exc_info"] is True
        monkeypatch.setattr(RedisScheduler, "exchange", exchange)
        await until(lambda: not is_alone(queue))
        assert (await Meter().call(queue, 0)).batch_id == "b1"
        await nothing_left(redis, keys, queue)


@pytest.mark.parametrize("on_failure", ["degrade", "reject"])
async def test_a_permit_of_a_late_reply_is_released(
    redis_url: str, redis: Redis, keys: RedisKeys, monkeypatch: pytest.MonkeyPatch, on_failure: OnFailure
) -> None:
    """Redis granted the ticket but the reply timed out. The release is sent later, so the only permit is free
    before its deadline."""
    exchange = RedisScheduler.exchange
    async with process(
        redis_url, keys, TeacherLimits(1, 4, 1000), on_failure=on_failure, times=QueueTimes(retry_s=0.2)
    ) as queue:

        async def late(self: RedisScheduler, update: SchedulerUpdate, limits: TeacherLimits) -> SchedulerDecision:
            await exchange(self, update, limits)
            raise RedisTimeoutError

        monkeypatch.setattr(RedisScheduler, "exchange", late)
        one = ticket()
        if on_failure == "degrade":
            assert (await Meter().call(queue, 0, one)).batch_id.startswith("local-")
        else:
            with pytest.raises(StoreUnavailable):
                await Meter().call(queue, 0, one)
        assert await permits(redis, keys) == {one.id}
        monkeypatch.setattr(RedisScheduler, "exchange", exchange)
        await nothing_left(redis, keys, queue)
        await until(lambda: not is_alone(queue))
        assert (await Meter().call(queue, 0)).batch_id == "b2"


async def test_a_permit_given_while_alone_is_counted_by_the_fleet_when_redis_is_back(
    redis_url: str, redis: Redis, keys: RedisKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ticket that waited locally is queued in the fleet; both are sent in the first exchange."""
    exchange = RedisScheduler.exchange
    async with process(
        redis_url, keys, TeacherLimits(1, 4, 1000), times=QueueTimes(heartbeat_s=NEVER_S, retry_s=0.1)
    ) as queue:
        await Meter().call(queue, 0)

        async def away(*_: object) -> SchedulerDecision:
            raise RedisTimeoutError

        monkeypatch.setattr(RedisScheduler, "exchange", away)
        held = ticket()
        async with queue.acquire(held):
            waiting = asyncio.ensure_future(Meter().call(queue, 0))  # noqa: TID251
            await until(lambda: is_alone(queue))
            monkeypatch.setattr(RedisScheduler, "exchange", exchange)
            await until(lambda: queued(redis, keys))
            assert await permits(redis, keys) == {held.id}
        assert (await waiting).batch_id == "b2"
        await nothing_left(redis, keys, queue)


async def _both_counted(*queues: TeacherQueue) -> None:
    """Wait until each process knows the others."""
    while any(queue.membership.fleet_size != len(queues) for queue in queues):
        await asyncio.gather(*(Meter().call(queue, 0) for queue in queues))


async def test_without_redis_each_process_serves_under_its_share_and_returns_to_the_fleet_by_itself(
    keys: RedisKeys,
) -> None:
    """Without Redis, each of two processes has at most half of the limit in flight. After Redis restarts empty,
    batches are the fleet's again, and a permit from before the outage is counted."""
    limits = TeacherLimits(8, 4, 1000, lease_s=1.0)
    async with (
        EmbeddedRedis() as server,
        process(server.url, keys, limits) as ann,
        process(server.url, keys, limits, process_id="ben") as ben,
    ):
        await _both_counted(ann, ben)
        held = ticket()
        with capture_logs() as logs:
            async with ann.acquire(held) as before:
                await server.stop()
                meters = {ann: Meter(), ben: Meter()}
                began = time.monotonic()
                grants = await asyncio.gather(
                    *(meter.call(queue, 0.01) for queue, meter in meters.items() for _ in range(30))
                )
                assert time.monotonic() - began < 3
                assert (meters[ann].most, meters[ben].most) == (3, 4)  # one of ann's four is `held`
                by_process = [{grant.batch_id for grant in half} for half in (grants[:30], grants[30:])]
                assert all(batch_id.startswith("local-") for half in by_process for batch_id in half)
                assert not by_process[0] & by_process[1]

                await server.start()
                await until(lambda: not is_alone(ann) and not is_alone(ben), 4)
                async with Redis.from_url(server.url) as redis:
                    await until(lambda: permits(redis, keys))
                    assert await permits(redis, keys) == {held.id}
            assert isinstance(before.outcome, Grant)
            assert before.outcome.batch_id.startswith("b")
        assert (await Meter().call(ann, 0)).batch_id.startswith("b")
        fleet_events = [line["event"] for line in logs if line["event"].startswith("fleet_")]
        assert sorted(fleet_events) == ["fleet_left", "fleet_left", "fleet_rejoined", "fleet_rejoined"]
        async with Redis.from_url(server.url) as redis:
            await nothing_left(redis, keys, ann, ben)


@pytest.mark.long
async def test_a_process_without_redis_reserves_the_permits_of_the_others(keys: RedisKeys) -> None:
    """Ann held one of eight permits at the start of the outage, and ben may hold seven. Until his calls must have
    ended, she has one call at a time; then she has half of the limit."""
    limits = TeacherLimits(8, 4, 1000, lease_s=5.0)
    async with (
        EmbeddedRedis() as server,
        process(server.url, keys, limits) as ann,
        process(server.url, keys, limits, process_id="ben") as ben,
    ):
        await _both_counted(ann, ben)
        early, late = Meter(), Meter()
        async with ann.acquire(ticket()):
            await server.stop()
            await until(lambda: is_alone(ann))
            waiting = asyncio.gather(*(early.call(ann, 0.01) for _ in range(20)))
            await asyncio.sleep(0.3)
            assert early.most == 0
        await waiting
        assert early.most == 1
        ends = (ann.membership.outage_since or 0.0) + 5.0
        assert asyncio.get_running_loop().time() < ends
        await asyncio.sleep(ends - asyncio.get_running_loop().time())
        await asyncio.gather(*(late.call(ann, 0.01) for _ in range(20)))
        assert late.most == 4


async def test_without_redis_requests_are_rejected_at_once_if_configured(keys: RedisKeys) -> None:
    """Waiting and new requests are rejected; after Redis returns, requests are served."""
    async with EmbeddedRedis() as server, process(server.url, keys, LIMITS, on_failure="reject") as queue:
        waiting = asyncio.ensure_future(Meter().call(queue, 0, ticket(wait_s=LONG_S)))  # noqa: TID251
        async with Redis.from_url(server.url) as redis:
            await until(lambda: queued(redis, keys))
        await server.stop()
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(waiting, 2)
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(StoreUnavailable):
                await Meter().call(queue, 0)
        assert time.monotonic() - began < REDIS_TIMEOUT_S, "all together take less than one that waits"
        await server.start()
        await until(lambda: not is_alone(queue), 4)
        assert (await Meter().call(queue, 0)).batch_id == "b1"
        async with Redis.from_url(server.url) as redis:
            await nothing_left(redis, keys, queue)


async def test_a_paused_redis_delays_only_the_first_requests(keys: RedisKeys) -> None:
    """While Redis is paused, the first requests are served after the timeout and later ones at once. The tickets that
    Redis processes after the pause are released."""
    async with (
        EmbeddedRedis() as server,
        Redis.from_url(server.url) as redis,
        process(server.url, keys, LIMITS, redis_timeout_s=HASTY_S) as queue,
    ):
        pid = (await redis.info("server"))["process_id"]
        await Meter().call(queue, 0)
        took: list[float] = []

        async def call(at_s: float) -> Grant:
            await asyncio.sleep(at_s)
            began = time.monotonic()
            grant = await Meter().call(queue, 0)
            took.append(time.monotonic() - began)
            return grant

        os.kill(pid, signal.SIGSTOP)
        try:
            grants = await asyncio.gather(*(call(n / 50) for n in range(50)))
        finally:
            os.kill(pid, signal.SIGCONT)
        assert all(grant.batch_id.startswith("local-") for grant in grants)
        assert sorted(took)[len(took) // 2] < HASTY_S  # had each waited for its own time-out, none were below
        await until(lambda: not is_alone(queue), 4)
        await nothing_left(redis, keys, queue)
        assert (await Meter().call(queue, 0)).batch_id.startswith("b")


async def test_without_redis_a_request_without_a_permit_waits_no_longer_than_max_wait_and_the_timeout(
    keys: RedisKeys,
) -> None:
    """Another process may hold all permits until the longest deadline. Requests that wait already end, too."""
    limits = TeacherLimits(2, 1, 1000)
    async with (
        EmbeddedRedis() as server,
        process(server.url, keys, limits, redis_timeout_s=HASTY_S) as ann,
        process(server.url, keys, limits, redis_timeout_s=HASTY_S, process_id="ben") as ben,
    ):
        await _both_counted(ann, ben)
        async with ben.acquire(ticket()), ben.acquire(ticket()):
            early = asyncio.ensure_future(Meter().call(ann, 0))  # noqa: TID251
            async with Redis.from_url(server.url) as redis:
                await until(lambda: queued(redis, keys))
            async with paused(server.url):
                with pytest.raises(PermitUnavailable):
                    await early
                for wait_s in (0.0, 0.1):
                    with pytest.raises(PermitUnavailable):
                        await Meter().call(ann, 0, ticket(wait_s=wait_s))
                assert not ann._waiters
            await until(lambda: not is_alone(ann) and not is_alone(ben), 10)
        assert (await Meter().call(ann, 0)).batch_id.startswith("b")
        async with Redis.from_url(server.url) as redis:
            await nothing_left(redis, keys, ann, ben)


async def test_a_long_outage_accumulates_no_tickets(keys: RedisKeys) -> None:
    """A long outage must not accumulate tickets that Redis never received."""
    async with EmbeddedRedis() as server, process(server.url, keys, LIMITS) as queue:
        await server.stop()
        await asyncio.gather(*(Meter().call(queue, 0) for _ in range(50)))
        await until(lambda: is_alone(queue))
        known = len(queue._unconfirmed)
        assert known <= 50
        for _ in range(3):
            await asyncio.gather(*(Meter().call(queue, 0) for _ in range(50)))
        await until(lambda: not queue._released)
        assert (len(queue._waiters), len(queue._unsent), len(queue._unconfirmed)) == (0, 0, known)


async def test_a_return_to_the_fleet_that_fails_keeps_no_permit_of_the_process(
    redis_url: str, keys: RedisKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis answers but rejects each script: ended calls free their permits, and tickets with the same key share
    guidance."""
    tries = 0

    async def refused(*_: object) -> SchedulerDecision:
        nonlocal tries
        tries += 1
        raise ResponseError("OOM command not allowed")

    async with process(
        redis_url, keys, TeacherLimits(4, 4, 1000), times=QueueTimes(retry_s=0.05, failure_backoff_s=0.0)
    ) as queue:
        monkeypatch.setattr(RedisScheduler, "exchange", refused)
        for _ in range(10):
            async with queue.acquire(ticket(dedupe_key="w")) as leader:
                follower = asyncio.ensure_future(_outcome(queue, ticket(dedupe_key="w")))  # noqa: TID251
                await asyncio.sleep(0.03)
                leader.finish("what it fetched")
            assert await asyncio.wait_for(follower, 5) == SharedGuidance("what it fetched", cached=False)
        assert tries > 10
        assert is_alone(queue)
        await until(lambda: queue._local and not queue._local._entries)


async def test_retries_to_rejoin_the_fleet_back_off(
    redis_url: str, keys: RedisKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting requests are delayed by each attempt."""
    tries: list[float] = []

    async def refused(*_: object) -> SchedulerDecision:
        tries.append(time.monotonic())
        raise ResponseError("OOM command not allowed")

    exchange = RedisScheduler.exchange
    async with process(redis_url, keys, LIMITS, times=QueueTimes(retry_s=0.01, failure_backoff_s=0.05)) as queue:
        monkeypatch.setattr(RedisScheduler, "exchange", refused)
        queue.resync()
        await until(lambda: len(tries) == 5)
        pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
        assert all(rest >= 0.05 * 2**number for number, rest in enumerate(pauses)), pauses
        monkeypatch.setattr(RedisScheduler, "exchange", exchange)
        await until(lambda: not is_alone(queue))


async def _outcome(queue: TeacherQueue, one: Ticket) -> Grant | SharedGuidance:
    async with queue.acquire(one) as waiter:
        return waiter.outcome


async def test_a_permit_of_a_process_that_was_alone_is_returned_to_the_fleet(keys: RedisKeys) -> None:
    """Redis learns of the permit when it returns, and of its release."""
    async with EmbeddedRedis() as server, process(server.url, keys, TeacherLimits(1, 4, 1000)) as queue:
        await server.stop()
        await until(lambda: is_alone(queue))
        async with queue.acquire(one := ticket()) as waiter:
            assert not waiter.sent
            await server.start()
            async with Redis.from_url(server.url) as redis:
                await until(lambda: permits(redis, keys))
                assert await permits(redis, keys) == {one.id}
        async with Redis.from_url(server.url) as redis:
            await nothing_left(redis, keys, queue)


async def test_a_grant_that_comes_after_the_deadline_is_handed_back(
    redis_url: str, redis: Redis, keys: RedisKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis granted in time but its reply was slow: the guidance is no longer needed."""
    exchange = RedisScheduler.exchange
    metrics = Metrics()
    async with process(redis_url, keys, TeacherLimits(1, 4, 1000), metrics=metrics) as queue:

        async def slow(self: RedisScheduler, update: SchedulerUpdate, limits: TeacherLimits) -> SchedulerDecision:
            decision = await exchange(self, update, limits)
            await asyncio.sleep(0.15)
            return decision

        monkeypatch.setattr(RedisScheduler, "exchange", slow)
        with pytest.raises(TimeoutError):
            async with queue.acquire(ticket(deadline_s=0.1)):
                pytest.fail("called the teacher")
        assert _ended(metrics, "expired") == 1
        await nothing_left(redis, keys, queue)
        await Meter().call(queue, 0)


def _sample(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, {"teacher": "big"} | labels) or 0.0


def _ended(metrics: Metrics, end: str) -> float:
    return _sample(metrics, "gkt_tickets_total", end=end)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_tickets_expire_at_their_deadline_and_are_withdrawn_at_a_disconnect(
    redis_url: str, keys: RedisKeys, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Earlier use of the request's time and early timers of the loop have no effect."""

    async def both() -> None:
        clock = asyncio.get_running_loop()
        tasks = BackgroundTasks()
        flights = SingleFlight(tasks)
        metrics = Metrics()
        async with (
            process(redis_url, keys, TeacherLimits(1, 1, 1000), metrics=metrics) as queue,
            queue.acquire(ticket()),
        ):

            async def request(number: int) -> None:
                await asyncio.sleep(number * 0.0007)
                deadline = clock.time() + (0.2004 if number < 60 else 10.0)  # the last one leaves before
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(deadline):
                        time.sleep(0.0003)  # noqa: ASYNC251  what a request does before it waits
                        one = ticket(deadline_s=0.2 if number < 60 else 10.0, dedupe_key=f"w{number}")
                        await flights.join(queue, one, _nobody, _nobody, deadline)

            async def waiting() -> int:
                return (await queue.view()).waiting

            async def one_waits() -> bool:
                return await waiting() == 1

            async def none_waits() -> bool:
                return await waiting() == 0

            await asyncio.gather(*(request(number) for number in range(60)))
            assert (_ended(metrics, "expired"), _ended(metrics, "withdrawn")) == (60, 0)
            await until(none_waits)  # the last expired ticket may still be in Redis
            leaves = asyncio.ensure_future(request(60))  # noqa: TID251
            await until(one_waits)
            leaves.cancel()
            await until(lambda: _ended(metrics, "withdrawn"))
            assert (_ended(metrics, "expired"), _ended(metrics, "withdrawn")) == (60, 1)
        await tasks.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(both())


def _nobody(_: Grant) -> Any:
    raise AssertionError("the teacher was called")


async def test_the_window_gauge_is_set_only_while_a_ticket_waits(redis_url: str, redis: Redis, keys: RedisKeys) -> None:
    """The gauge does not depend on heartbeats, and is reset without another ticket."""
    metrics = Metrics()
    async with process(redis_url, keys, LIMITS, times=NO_HEARTBEAT, metrics=metrics) as queue:

        def window_s() -> float:
            return _sample(metrics, "gkt_batch_window_seconds")

        waiting = asyncio.ensure_future(Meter().call(queue, 0, ticket(wait_s=LONG_S)))  # noqa: TID251
        await until(lambda: queued(redis, keys))
        await until(lambda: window_s() > 1)
        waiting.cancel()
        await nothing_left(redis, keys, queue)
        queue.resync()
        await until(lambda: window_s() == 0)


async def test_a_ticket_over_the_limit_is_rejected_with_a_retry_time(
    redis_url: str, redis: Redis, keys: RedisKeys
) -> None:
    """A full queue of the tenant returns an error at once, and no trace of the ticket remains."""
    metrics = Metrics()
    async with process(redis_url, keys, TeacherLimits(1, 1, 1000, max_queue=1), metrics=metrics) as queue:
        async with queue.acquire(ticket()):
            waiting = asyncio.ensure_future(Meter().call(queue, 0))  # noqa: TID251
            await until(lambda: queued(redis, keys))
            with pytest.raises(QueueFull) as refused:
                await Meter().call(queue, 0)
            assert refused.value.retry_after_s is not None
            assert 0 < refused.value.retry_after_s <= 10
            assert _ended(metrics, "refused") == 1
            assert await queued(redis, keys) == 1
        await waiting
        await nothing_left(redis, keys, queue)


async def test_a_moved_deadline_is_sent_before_the_ticket_expires(
    redis_url: str, redis: Redis, keys: RedisKeys
) -> None:
    """A later request with the same key extends the deadline, and the ticket keeps its position."""
    async with process(redis_url, keys, TeacherLimits(1, 1, 1000), times=NO_HEARTBEAT) as queue:
        async with queue.acquire(ticket()):
            loop = asyncio.get_running_loop()
            waiter = queue.acquire(ticket(deadline_s=0.5))

            async def call() -> float:
                async with waiter:
                    return loop.time()

            waiting = asyncio.ensure_future(call())  # noqa: TID251
            await until(lambda: queued(redis, keys))
            (place,) = await redis.zrange(keys.teacher("big").queue, 0, -1)
            waiter.extend_deadline(loop.time() + 5)
            waiter.extend_deadline(loop.time() + 1)
            assert waiter.deadline > loop.time() + 4
            await asyncio.sleep(0.6)
            await RedisScheduler(redis, keys, "ben", "big").exchange(SchedulerUpdate(), TeacherLimits(1, 1, 1000))
            assert await redis.zrange(keys.teacher("big").queue, 0, -1) == [place]
        assert await waiting <= waiter.deadline
        await nothing_left(redis, keys, queue)


async def test_a_process_that_stops_is_gone_from_the_fleet_at_once_and_stays_gone(
    redis_url: str, redis: Redis, keys: RedisKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a concurrent exchange nor a heartbeat adds the process again."""
    exchange, failures = RedisScheduler.exchange, 0

    async def slow(self: RedisScheduler, update: SchedulerUpdate, limits: TeacherLimits) -> SchedulerDecision:
        nonlocal failures
        if update.leaving and not failures:
            failures += 1
            raise RedisTimeoutError
        await asyncio.sleep(0 if update.leaving else 0.05)
        return await exchange(self, update, limits)

    async with process(redis_url, keys, LIMITS) as ann, process(redis_url, keys, LIMITS, process_id="ben") as ben:
        await _both_counted(ann, ben)
        monkeypatch.setattr(RedisScheduler, "exchange", slow)
        ann.resync()
        await asyncio.sleep(0.01)
        await ann.leave_fleet()
        assert await redis.zrange(keys.teacher("big").owners, 0, -1) == [b"ben"]
        assert failures == 1, "the failed exchange was repeated once"
        await asyncio.sleep(QueueTimes().heartbeat_s + 0.1)
        assert await redis.zrange(keys.teacher("big").owners, 0, -1) == [b"ben"]
        await until(lambda: ben.membership._fleet_sizes.samples[-1][1] == 1)
