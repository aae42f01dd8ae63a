"""Identical work is done once: who asks the teacher, who pays, and what happens when somebody leaves."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from msgspec import structs

from gateway.batching.redis_scheduler import RedisScheduler
from gateway.batching.single_flight import FlightResult, SingleFlight
from gateway.batching.ticket import Grant, SchedulerUpdate, TeacherLimits
from gateway.engines.base import EngineState, TeacherReply, TeacherRequest, TokenUsage
from gateway.engines.retry_budget import RetryBudgets
from gateway.errors import EngineFailed, EngineUnreachable, QueueFull, TicketUnreadable
from gateway.local.redis import EmbeddedRedis
from gateway.pipeline.guidance_deadlines import GuidanceDeadlines
from gateway.pipeline.guidance_request import UNGUIDED, Guidance
from gateway.pipeline.teacher import TeacherCall
from gateway.policy.patterns import to_pattern
from gateway.policy.projections import CONCISE, CUTOFF, SkipRule
from gateway.protocol.chat import parse_chat
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.accounting.receipt_builders import builder, engine_set, plan
from tests.batching.process import HASTY_S, LONG_S, nothing_left, process, ticket, until
from tests.redis_faults import paused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.batching.teacher_queue import TeacherQueue
    from gateway.batching.ticket import Ticket
    from gateway.protocol.chat import ChatRequest
    from gateway.redis.keys import RedisKeys

LIMITS = TeacherLimits(max_in_flight=8, max_size=4, max_prompt_tokens=100_000, max_cache_bytes=100_000)
ONE = replace(LIMITS, max_in_flight=1, max_size=1)
REPLY = TeacherReply('The "sky"\nis | blé ', "length", TokenUsage(12, 4, 2), token_ends=(5, 9, 18))


class Teacher:
    """A call that takes until the test says how it ends."""

    def __init__(self) -> None:
        self.calls = 0
        self.cancelled = 0
        self.ending: asyncio.Future[TeacherReply] = asyncio.get_running_loop().create_future()

    async def ask(self, _: Grant) -> TeacherReply:
        self.calls += 1
        try:
            return await asyncio.shield(self.ending)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class Request:
    """A request of a single flight."""

    def __init__(self, flights: SingleFlight, queue: TeacherQueue, teacher: Teacher, one: Ticket) -> None:
        self.grants: list[Grant] = []
        self.result: asyncio.Task[FlightResult] = asyncio.ensure_future(  # noqa: TID251  the test awaits or cancels it
            flights.join(queue, one, teacher.ask, self.grants.append)
        )

    async def leave(self) -> None:
        self.result.cancel()
        await asyncio.wait([self.result])


@asynccontextmanager
async def flying(
    url: str, keys: RedisKeys, limits: TeacherLimits = LIMITS, process_id: str = "ann"
) -> AsyncIterator[Any]:
    """A process with its flights: (flights, queue)."""
    tasks = BackgroundTasks()
    async with process(url, keys, limits, process_id=process_id) as queue:
        try:
            yield SingleFlight(tasks), queue
        finally:
            await tasks.close()


async def called(teacher: Teacher, *requests: Request) -> None:
    """Until the teacher is asked, and every request sits in its flight."""
    await until(lambda: teacher.calls)
    await asyncio.sleep(0)
    assert not any(request.result.done() for request in requests)


async def test_identical_requests_share_one_call_and_one_is_charged(
    redis_url: str, redis: Redis, keys: RedisKeys
) -> None:
    """The first request is charged. The others are marked as shared. Other requests have their own flight."""
    async with flying(redis_url, keys) as (flights, queue):
        teacher, other = Teacher(), Teacher()
        requests = [Request(flights, queue, teacher, ticket(dedupe_key="w")) for _ in range(5)]
        stranger = Request(flights, queue, other, ticket(dedupe_key="v"))
        await called(teacher, *requests)
        await called(other, stranger)
        teacher.ending.set_result(REPLY)
        results = await asyncio.gather(*(request.result for request in requests))
        assert results == [FlightResult(REPLY, ""), *[FlightResult(REPLY, "flight")] * 4]
        assert [len(request.grants) for request in requests] == [1, 0, 0, 0, 0]
        other.ending.set_result(REPLY)
        assert await stranger.result == FlightResult(REPLY, "")
        assert (teacher.calls, other.calls) == (1, 1)
        await nothing_left(redis, keys, queue)
        later = Request(flights, queue, teacher, ticket(dedupe_key="w"))
        assert await later.result == FlightResult(REPLY, ""), "what has landed is not shared"


async def test_a_call_continues_for_its_followers_after_its_payer_disconnects(
    redis_url: str, redis: Redis, keys: RedisKeys
) -> None:
    """The call was made for the payer, which is charged. No other request is."""
    async with flying(redis_url, keys) as (flights, queue):
        teacher = Teacher()
        payer, *others = requests = [Request(flights, queue, teacher, ticket(dedupe_key="w")) for _ in range(3)]
        await called(teacher, *requests)
        await payer.leave()
        late = Request(flights, queue, teacher, ticket(dedupe_key="w"))
        await called(teacher, late)
        teacher.ending.set_result(REPLY)
        results = await asyncio.gather(*(request.result for request in (*others, late)))
        assert results == [FlightResult(REPLY, "flight")] * 3
        assert (len(payer.grants), teacher.calls, teacher.cancelled) == (1, 1, 0)
        await nothing_left(redis, keys, queue)


async def test_the_last_one_to_leave_cancels_the_call(redis_url: str, redis: Redis, keys: RedisKeys) -> None:
    """A request after the cancellation starts a flight of its own."""
    async with flying(redis_url, keys) as (flights, queue):
        teacher = Teacher()
        requests = [Request(flights, queue, teacher, ticket(dedupe_key="w")) for _ in range(2)]
        await called(teacher, *requests)
        await requests[1].leave()
        assert teacher.cancelled == 0
        await requests[0].leave()
        next_one = Request(flights, queue, teacher, ticket(dedupe_key="w"))
        await until(lambda: teacher.calls == 2)
        assert teacher.cancelled == 1
        teacher.ending.set_result(REPLY)
        assert await next_one.result == FlightResult(REPLY, "")
        await nothing_left(redis, keys, queue)


async def test_a_disconnect_before_the_grant_is_free_and_the_next_request_pays(
    redis_url: str, redis: Redis, keys: RedisKeys
) -> None:
    """The ticket of the first request stays in the queue for the others."""
    async with flying(redis_url, keys, ONE) as (flights, queue):
        teacher, other = Teacher(), Teacher()
        async with queue.acquire(ticket()):
            first = Request(flights, queue, other, ticket(dedupe_key="w"))
            second, third = (Request(flights, queue, teacher, ticket(dedupe_key="w")) for _ in range(2))
            await until(lambda: redis.zcard(keys.teacher("big").queue))
            await first.leave()
        await called(teacher, second, third)
        teacher.ending.set_result(REPLY)
        assert await second.result == FlightResult(REPLY, "")
        assert await third.result == FlightResult(REPLY, "flight")
        assert [len(request.grants) for request in (first, second, third)] == [0, 1, 0]
        assert (teacher.calls, other.calls) == (1, 0), "the call is that of the request that pays"
        await nothing_left(redis, keys, queue)


@pytest.mark.parametrize("error", [EngineFailed("oops", engine="big"), TimeoutError(), ZeroDivisionError()])
async def test_an_error_reaches_everybody_on_the_flight(
    redis_url: str, redis: Redis, keys: RedisKeys, error: Exception
) -> None:
    """The permit is back, and the next request tries anew."""
    async with flying(redis_url, keys) as (flights, queue):
        teacher = Teacher()
        requests = [Request(flights, queue, teacher, ticket(dedupe_key="w")) for _ in range(3)]
        await called(teacher, *requests)
        teacher.ending.set_exception(error)
        results = await asyncio.gather(*(request.result for request in requests), return_exceptions=True)
        assert results == [error] * 3
        assert teacher.calls == 1
        await nothing_left(redis, keys, queue)
        again = Teacher()
        again.ending.set_result(REPLY)
        assert await Request(flights, queue, again, ticket(dedupe_key="w")).result == FlightResult(REPLY, "")


async def test_error_texts_of_an_engine_reach_only_the_tenant_of_the_call(
    redis_url: str, redis: Redis, keys: RedisKeys
) -> None:
    """The text may quote the prompt. A tenant that shared the call gets the kind of the failure only."""
    error = EngineFailed("Engine 'big' answered 500: canary", engine="big")
    error.reason = "canary"
    async with flying(redis_url, keys) as (flights, queue):
        teacher = Teacher()
        own = [Request(flights, queue, teacher, ticket(dedupe_key="w")) for _ in range(2)]
        other = Request(flights, queue, teacher, structs.replace(ticket(dedupe_key="w"), tenant="globex"))
        await called(teacher, *own, other)
        teacher.ending.set_exception(error)
        results = await asyncio.gather(*(request.result for request in (*own, other)), return_exceptions=True)
        assert results[:2] == [error] * 2
        failure = results[2]
        assert isinstance(failure, EngineFailed)
        assert failure.engine == "big"
        assert "canary" not in f"{failure} {failure.message} {failure.reason} {vars(failure)}"
        await nothing_left(redis, keys, queue)


async def test_a_full_queue_of_one_tenant_affects_no_other(redis_url: str, redis: Redis, keys: RedisKeys) -> None:
    """The flight used the ticket of a tenant whose queue is full. The other tenant's request starts a new flight."""
    async with flying(redis_url, keys, replace(ONE, max_queue=1)) as (flights, queue):
        teacher = Teacher()
        async with queue.acquire(ticket()):
            waiting = Request(flights, queue, teacher, ticket(dedupe_key="other"))
            await until(lambda: redis.zcard(keys.teacher("big").queue))
            acme = Request(flights, queue, teacher, ticket(dedupe_key="w"))
            globex = Request(flights, queue, teacher, structs.replace(ticket(dedupe_key="w"), tenant="globex"))
            with pytest.raises(QueueFull):
                await acme.result
            await until(lambda: _queued(redis, keys, 2))
        teacher.ending.set_result(REPLY)
        assert [await waiting.result, await globex.result] == [FlightResult(REPLY, "")] * 2
        assert (len(acme.grants), len(globex.grants)) == (0, 1)
        await nothing_left(redis, keys, queue)


async def _queued(redis: Redis, keys: RedisKeys, many: int) -> bool:
    return int(await redis.zcard(keys.teacher("big").queue)) == many


async def test_between_processes_the_follower_gets_the_leaders_text(
    redis_url: str, redis: Redis, keys: RedisKeys
) -> None:
    """Text, finish and counts as the teacher gave them, at no cost; the follower's teacher is not asked."""
    async with (
        flying(redis_url, keys) as (ann_flights, ann),
        flying(redis_url, keys, process_id="ben") as (ben_flights, ben),
    ):
        leading, following = Teacher(), Teacher()
        leader = Request(ann_flights, ann, leading, ticket(dedupe_key="w"))
        await called(leading, leader)
        followers = [Request(ben_flights, ben, following, ticket(dedupe_key="w")) for _ in range(2)]
        await until(lambda: redis.zcard(keys.teacher("big").followers))
        leading.ending.set_result(REPLY)
        assert await leader.result == FlightResult(REPLY, "")
        assert await asyncio.gather(*(one.result for one in followers)) == [FlightResult(REPLY, "flight")] * 2
        assert (following.calls, [one.grants for one in followers]) == (0, [[], []])
        await nothing_left(redis, keys, ann, ben)


@pytest.mark.parametrize("end", ["left", "failed", "killed"])
async def test_a_follower_takes_over_when_the_leader_does_not_deliver(
    redis_url: str, redis: Redis, keys: RedisKeys, end: str
) -> None:
    """After a disconnect, a failed call or a dead process of the leader, the follower calls the teacher and pays."""
    limits = replace(ONE, lease_s=2.0)
    async with flying(redis_url, keys, limits, "ben") as (ben_flights, ben):
        async with flying(redis_url, keys, limits) as (ann_flights, ann):
            leading, following = Teacher(), Teacher()
            leader = Request(ann_flights, ann, leading, ticket(dedupe_key="w"))
            await called(leading, leader)
            follower = Request(ben_flights, ben, following, ticket(dedupe_key="w"))
            await until(lambda: redis.zcard(keys.teacher("big").followers))
            if end == "left":
                await leader.leave()
            elif end == "failed":
                leading.ending.set_exception(EngineFailed("oops", engine="big"))
                with pytest.raises(EngineFailed):
                    await leader.result
            if end != "killed":
                await called(following, follower)
        # Ann's process is gone, and did not say so.
        await called(following, follower)
        following.ending.set_result(REPLY)
        assert await follower.result == FlightResult(REPLY, "")
        assert len(follower.grants) == 1
        await leader.leave()
        await nothing_left(redis, keys, ben)


async def test_kept_guidance_is_for_every_process(redis_url: str, redis: Redis, keys: RedisKeys) -> None:
    """Fetched by one, it answers the same in another without a permit; what is kept is the opening, no prompt."""
    async with (
        flying(redis_url, keys) as (ann_flights, ann),
        flying(redis_url, keys, process_id="ben") as (ben_flights, ben),
    ):
        teacher = Teacher()
        teacher.ending.set_result(REPLY)
        keeps: dict[str, Any] = {"dedupe_key": "w", "cache_ttl_s": 60.0}
        assert await Request(ann_flights, ann, teacher, ticket(**keeps)).result == FlightResult(REPLY, "")
        await nothing_left(redis, keys, ann, ben)
        again = Request(ben_flights, ben, teacher, ticket(**keeps))
        assert await again.result == FlightResult(REPLY, "cache")
        assert (again.grants, teacher.calls) == ([], 1)
        (kept,) = await redis.hvals(keys.teacher("big").cache)
        assert orjson.loads(kept) == [
            REPLY.text,
            "length",
            {
                "input_tokens": 12,
                "output_tokens": 4,
                "cached_input_tokens": 2,
                "estimated": False,
                "cache_write_input_tokens": 0,
                "cache_write_1h_input_tokens": None,
                "no_cache_reads": False,
            },
            [5, 9, 18],
        ]
        await nothing_left(redis, keys, ann, ben)


@pytest.mark.parametrize(
    "kept", ["", "garbage", "[]", '["text", "length"]', '["text", "tools", null]', '{"text": "x"}']
)
async def test_cached_guidance_of_another_version_is_unreadable(
    redis_url: str, redis: Redis, keys: RedisKeys, kept: str
) -> None:
    """The content is not used as the teacher's text."""
    scheduler = RedisScheduler(redis, keys, "zoe", "big")
    await scheduler.exchange(SchedulerUpdate([one := ticket(dedupe_key="w", cache_ttl_s=60.0)]), LIMITS)
    await scheduler.exchange(SchedulerUpdate(finished=[(one.id, kept)]), LIMITS)
    async with flying(redis_url, keys) as (flights, queue):
        request = Request(flights, queue, Teacher(), ticket(dedupe_key="w", cache_ttl_s=60.0))
        with pytest.raises(TicketUnreadable):
            await request.result
        await nothing_left(redis, keys, queue)


# From the guide's side: what counts as identical, and what the receipt will say.


class ScriptedEngine:
    """An engine that says what `says` holds, and keeps what it was asked."""

    def __init__(self) -> None:
        self.name = "big"
        self.state = EngineState(revision="first")
        self.says: TeacherReply | Exception = REPLY
        self.pause_s = 0.0
        self.record_deadline: list[TeacherRequest] = []

    async def wait_for_trial(self, _: float) -> None:
        """Return at once: no trial is in flight."""

    async def generate_guidance(self, request: TeacherRequest, **_: Any) -> TeacherReply:
        self.record_deadline.append(request)
        await asyncio.sleep(self.pause_s)
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


class Room:
    """A guide over one scripted teacher."""

    def __init__(self, flights: SingleFlight, queue: TeacherQueue) -> None:
        self.engine, self.metrics, self._queue = ScriptedEngine(), Metrics(), queue
        here: Any = self
        self._guide = TeacherCall(here, flights, self.metrics, BackgroundTasks(), GuidanceDeadlines(), RetryBudgets())

    def queue(self, _: str) -> TeacherQueue:
        return self._queue

    async def open(self, **rule: Any) -> tuple[Guidance, ReceiptBuilder]:
        rule = {"cache_ttl_s": 0.0} | rule
        guided = plan()
        assert guided.guidance is not None
        guided = structs.replace(guided, guidance=structs.replace(guided.guidance, **rule))
        one = builder(guided, engine_set=engine_set({"big": self.engine}))
        return await self._guide.open(chat(), one), one


def chat() -> ChatRequest:
    return parse_chat(orjson.dumps({"model": "chat", "messages": [{"role": "user", "content": "Why?"}]}))


@asynccontextmanager
async def room(url: str, keys: RedisKeys) -> AsyncIterator[Room]:
    async with flying(url, keys) as (flights, queue):
        yield Room(flights, queue)


def sources(*opened: tuple[Guidance, ReceiptBuilder]) -> list[str | None]:
    """By request: whose call it was; None without guidance."""
    return [None if one.teacher is None else one.teacher.shared for _, one in opened]


async def test_greedy_guidance_comes_from_the_cache_and_sampled_guidance_never_does(
    redis_url: str, keys: RedisKeys
) -> None:
    """Each sampled request gets its own sample.

    `resolve` limits a policy's cache_ttl to greedy guidance. The sampled plan here has none.
    """
    async with room(redis_url, keys) as one:
        greedy = [await one.open(cache_ttl_s=60.0) for _ in range(3)]
        assert (sources(*greedy), len(one.engine.record_deadline)) == (["", "cache", "cache"], 1)
        assert len({answer_text for answer_text, _ in greedy}) == 1
        sampled = [await one.open(temperature=0.7) for _ in range(3)]
        assert (sources(*sampled), len(one.engine.record_deadline)) == (["", "", ""], 4)


async def test_tenants_share_guidance_only_if_both_policies_have_all(redis_url: str, keys: RedisKeys) -> None:
    """With `tenant` (the default) in one policy, each tenant pays its own call. With `all` in both, one tenant pays."""
    async with room(redis_url, keys) as one:
        one.engine.pause_s = 0.2
        both = ({"tenant": "acme", "share": "acme"}, {"tenant": "globex", "share": "globex"})
        mixed = ({"tenant": "acme", "share": "acme"}, {"tenant": "globex", "share": ""})
        willing = ({"tenant": "acme", "share": ""}, {"tenant": "globex", "share": ""})
        for rules, expected in ((both, ["", ""]), (mixed, ["", ""]), (willing, ["", "flight"])):
            assert sources(*await asyncio.gather(*(one.open(**rule) for rule in rules))) == expected
        one.engine.pause_s = 0.0
        kept = [await one.open(**rule, cache_ttl_s=60.0) for rule in (*both, *mixed, *willing, *willing)]
        assert sources(*kept) == ["", "", "cache", "", "cache", "cache", "cache", "cache"]


@pytest.mark.parametrize(
    "other", [{"tokens": 41}, {"temperature": 0.1}, {"seed": 7}, {"top_p": 0.5}, {"projection": CONCISE}]
)
async def test_requests_with_different_guidance_share_no_call(
    redis_url: str, keys: RedisKeys, other: dict[str, Any]
) -> None:
    """Different placements and different requests of a tenant do share calls."""
    async with room(redis_url, keys) as one:
        one.engine.pause_s = 0.2
        assert sources(*await asyncio.gather(one.open(), one.open(**other))) == ["", ""]
        assert sources(*await asyncio.gather(one.open(), one.open(placement="context"))) == ["", "flight"]


async def test_equal_requests_for_different_guidance_share_a_call(redis_url: str, keys: RedisKeys) -> None:
    """36 tokens after up to 4 skipped ones are the same request to the teacher as 40 tokens."""
    skips = replace(CUTOFF, name="direct", skip=SkipRule((to_pattern("Certainly!"),), 4))
    async with room(redis_url, keys) as one:
        one.engine.pause_s = 0.2
        rules: list[dict[str, Any]] = [{"tokens": 40}, {"tokens": 36, "projection": skips}]
        opened = await asyncio.gather(*(one.open(**rule) for rule in rules))
        assert {request.max_tokens for request in one.engine.record_deadline} == {40}
        assert sources(*opened) == ["", "flight"]


async def test_other_weights_are_other_work(redis_url: str, keys: RedisKeys) -> None:
    """An engine that tells which revision it serves does not answer from what another one wrote."""
    async with room(redis_url, keys) as one:
        assert sources(await one.open(cache_ttl_s=60.0)) == [""]
        one.engine.state.revision = "second"
        assert sources(*[await one.open(cache_ttl_s=60.0) for _ in range(2)]) == ["", "cache"]


async def test_another_address_is_other_work(redis_url: str, keys: RedisKeys) -> None:
    """Servers may report one revision for different models."""
    async with room(redis_url, keys) as one:
        one.engine.state.address = "http://first:8000/v1"
        assert sources(await one.open(cache_ttl_s=60.0)) == [""]
        one.engine.state.address = "http://second:8000/v1"
        assert sources(*[await one.open(cache_ttl_s=60.0) for _ in range(2)]) == ["", "cache"]


async def test_unknown_weights_share_no_guidance(redis_url: str, keys: RedisKeys) -> None:
    """Another process may know other weights of the engine before the first probe."""
    async with room(redis_url, keys) as one:
        one.engine.state.revision = None
        one.engine.pause_s = 0.2
        assert sources(*await asyncio.gather(*(one.open(cache_ttl_s=60.0) for _ in range(2)))) == ["", ""]
        assert sources(await one.open(cache_ttl_s=60.0)) == [""]


async def test_only_the_payer_has_a_batch_and_a_wait(redis_url: str, keys: RedisKeys) -> None:
    """The others took no permit: their receipts say whose words these are, and no batch."""
    async with room(redis_url, keys) as one:
        one.engine.pause_s = 0.1
        (answer_text, payer), (same, other) = await asyncio.gather(one.open(), one.open())
        assert answer_text == same
        assert payer.batch is not None
        assert (other.batch, other.granted) == (None, None)
        assert other.facts()["shared"] == "flight"
        assert "shared" not in payer.facts()


@pytest.mark.parametrize(
    ("error", "charged"),
    [(EngineFailed("oops", engine="big"), 40), (EngineUnreachable("no connection", engine="big"), None)],
)
async def test_a_failed_call_is_noted_once_and_charged_to_one(
    redis_url: str, keys: RedisKeys, error: EngineFailed, charged: int | None
) -> None:
    """Three requests hear of it and go unguided; the payer alone pays for what the teacher may have written."""
    error.may_have_run = charged is not None
    async with room(redis_url, keys) as one:
        one.engine.says, one.engine.pause_s = error, 0.1
        opened = await asyncio.gather(*(one.open() for _ in range(3)))
        assert [answer_text for answer_text, _ in opened] == [UNGUIDED] * 3
        reason = "teacher_" + error.label.removeprefix("engine_")
        assert [each.unguided for _, each in opened] == [reason] * 3
        assert [each.teacher and each.teacher.lost_tokens for _, each in opened] == [charged, None, None]
        count = one.metrics.registry.get_sample_value
        assert count("gkt_engine_errors_total", {"engine": "big", "label": error.label}) == 1


async def test_a_failed_call_is_noted_though_its_payer_is_gone(redis_url: str, keys: RedisKeys) -> None:
    """The payer's deadline passed before. The later request gets the failure."""
    async with room(redis_url, keys) as one:
        one.engine.says, one.engine.pause_s = EngineFailed("oops", engine="big"), 0.4
        (_, early), (_, late) = await asyncio.gather(one.open(deadline_s=0.2), one.open(deadline_s=5.0))
        assert (early.unguided, late.unguided) == ("teacher_late", "teacher_failed")
        count = one.metrics.registry.get_sample_value
        assert count("gkt_engine_errors_total", {"engine": "big", "label": "engine_failed"}) == 1


async def test_unreadable_cached_guidance_gives_an_unguided_answer_with_the_reason(
    redis_url: str, redis: Redis, keys: RedisKeys
) -> None:
    """The teacher is not blamed, and no cost is charged."""
    async with room(redis_url, keys) as one:
        await one.open(cache_ttl_s=60.0)
        await until(lambda: redis.hlen(keys.teacher("big").cache))
        (dedupe_key,) = await redis.hkeys(keys.teacher("big").cache)
        await redis.hset(keys.teacher("big").cache, dedupe_key, "of another version")
        answer_text, missing = await one.open(cache_ttl_s=60.0)
        assert (answer_text, missing.unguided, missing.teacher) == (UNGUIDED, "ticket_unreadable", None)
        assert len(one.engine.record_deadline) == 1


async def test_without_redis_a_request_without_a_permit_is_unguided_with_the_reason(keys: RedisKeys) -> None:
    """Another process may hold all permits. The teacher is not called, and no cost is charged."""
    tasks = BackgroundTasks()
    async with (
        EmbeddedRedis() as server,
        process(server.url, keys, LIMITS, redis_timeout_s=HASTY_S) as queue,
        process(server.url, keys, LIMITS, redis_timeout_s=HASTY_S, process_id="ben"),
    ):
        await until(lambda: queue.membership.fleet_size == 2)
        one = Room(SingleFlight(tasks), queue)
        async with paused(server.url):
            answer_text, missing = await one.open(deadline_s=LONG_S)
        assert (answer_text, missing.unguided, missing.teacher) == (UNGUIDED, "teacher_no_permit", None)
        assert not one.engine.record_deadline
        await tasks.close()
