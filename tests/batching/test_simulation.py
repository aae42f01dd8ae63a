"""Whole schedules of a fleet in virtual time: whatever fails and however the clock moves, the rules hold.

The processes are the gateway's own queues, turns and flights; simulated are time, the network, Redis's machine, the
teacher and the callers. The boards are the pure one and the script on a real Redis.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from structlog.testing import capture_logs

from gateway.batching.scheduler import GRACE, JUMP, SETTLE
from gateway.batching.ticket import TeacherLimits, Ticket
from gateway.batching.window import SECOND
from gateway.redis.keys import RedisKeys
from tests.batching.schedulers import BlockingScheduler, MemoryScheduler, ScriptScheduler
from tests.batching.virtual import Network, Server, VirtualLoop
from tests.batching.virtual_fleet import Process, Story, Wish

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.batching.schedulers import AnyScheduler

Kind = Literal["crash", "leave", "join", "clock", "pause", "pause clock", "away", "restart", "quick restart", "refuse"]


@dataclass(frozen=True)
class Trouble:
    """Something that happens at a time: to the process or by the seconds that are meant."""

    at: float
    kind: Kind
    whom: int
    seconds: float


@dataclass(frozen=True)
class Schedule:
    limits: TeacherLimits
    processes: int
    wishes: list[tuple[int, Wish]]
    troubles: list[Trouble]
    network: Network


TENANTS = {"a": 1.0, "b": 1.0, "c": 3.0, "d": 0.3}
# So long after a process has joined, all others know of it: what they may do alone depends on that. In these schedules
# Redis stays here until then. Nor does a new process come before those that were alone are back, or while one of them
# is alone for a moment: it would be given what they use.
KNOWN_S = 2.5
LEASES_S = [3.0, 10.0]

limits = st.builds(
    TeacherLimits,
    max_in_flight=st.integers(1, 8),
    max_size=st.integers(1, 6),
    max_prompt_tokens=st.integers(10, 90),
    low_water=st.sampled_from([0, 0, 1, 4]),
    max_queue=st.sampled_from([2, 12, 1000]),
    max_cache_bytes=st.sampled_from([0, 300, 10_000]),
    lease_s=st.sampled_from(LEASES_S),
)


def wish(
    number: int,
    at: float,
    tenant: str,
    tokens: int,
    dedupe_key: str,
    pace: tuple[float, float],
    ttl_s: float,
    fate: int,
) -> Wish:
    deadline_s, takes_s = pace
    return Wish(
        at,
        Ticket(
            f"t{number}",
            tenant,
            tokens,
            max_wait_s=0.05,
            deadline_s=deadline_s,
            weight=TENANTS[tenant],
            dedupe_key=dedupe_key,
            cache_ttl_s=ttl_s if dedupe_key else 0.0,
        ),
        takes_s=takes_s,
        fails=fate == 1,
        hangs_up_after_s=deadline_s * 0.4 if fate == 2 else None,
    )


moments = st.integers(0, 8_000).map(lambda ms: ms / 1000)
# Deadline, and how long the teacher takes: quick, late, or as long as the deadline lets it.
paces = st.sampled_from([(2.0, 0.2), (2.0, 0.7), (0.3, 0.1), (3.0, 5.0), (3.0, 1.5), (1.0, 1.5)])
wishes = st.lists(
    st.tuples(
        st.integers(0, 9),
        moments,
        st.sampled_from(list(TENANTS)),
        st.integers(1, 40),
        st.sampled_from(["", "", "w1", "w2"]),
        paces,
        st.sampled_from([0.0, 1.0, 60.0]),
        st.sampled_from([0] * 8 + [1, 2]),
    ),
    min_size=1,
    max_size=70,
).map(lambda many: [(one[0], wish(number, *one[1:])) for number, one in enumerate(many)])
troubles = st.lists(
    st.builds(
        Trouble,
        at=moments,
        kind=st.sampled_from(["crash", *get_args(Kind)]),
        whom=st.integers(0, 9),
        seconds=st.sampled_from([0.1, 0.5, 1.5, 4.0, 12.0, 3600.0, -0.5, -3600.0]),
    ),
    max_size=5,
)
networks = st.builds(
    Network,
    seed=st.integers(0, 1000),
    delay_s=st.sampled_from([0.0, 0.002, 0.08]),
    commands_lost=st.sampled_from([0.0, 0.0, 0.03]),
    replies_lost=st.sampled_from([0.0, 0.0, 0.03]),
    wakeups_lost=st.sampled_from([0.0, 0.2, 1.0]),
)
schedules = st.builds(
    Schedule, limits=limits, processes=st.integers(1, 4), wishes=wishes, troubles=troubles, network=networks
)


class Fleet:
    """The processes of a schedule; those that are gone stay in the list."""

    def __init__(self, schedule: Schedule, scheduler: AnyScheduler) -> None:
        self.schedule = schedule
        network = schedule.network
        if any(trouble.kind == "join" for trouble in schedule.troubles):
            network = replace(network, commands_lost=0.0, replies_lost=0.0)
        self.server = Server(scheduler, network)
        # While one is still at rest after Redis refused it the others may be back.
        refused = any(trouble.kind == "refuse" for trouble in schedule.troubles)
        self.story = Story(schedule.limits, not (network.commands_lost or network.replies_lost or refused))
        self.processes: list[Process] = []
        self.grew_at = 0.0
        for _ in range(schedule.processes):
            self.join()

    def join(self) -> None:
        self.grew_at = asyncio.get_running_loop().time()
        self.server.reliable_until = max(self.server.reliable_until, self.grew_at + KNOWN_S)
        name = f"p{len(self.processes)}"
        self.processes.append(Process(self.server, self.schedule.limits, name, self.story))

    def pick(self, number: int) -> Process | None:
        serving = [process for process in self.processes if process.serving]
        return serving[number % len(serving)] if serving else None

    @property
    def alone(self) -> list[Process]:
        return [process for process in self.processes if process.alive and process.link.alone_since is not None]

    async def cause(self, trouble: Trouble) -> None:
        server, process = self.server, self.pick(trouble.whom)
        seconds = min(abs(trouble.seconds), 12.0)
        now = asyncio.get_running_loop().time()
        if trouble.kind not in {"crash", "leave", "join", "clock"} and now < self.grew_at + KNOWN_S:
            return
        match trouble.kind:
            case "crash" if process is not None:
                process.crash()
            case "leave" if process is not None:
                await process.leave()
            case "join" if server.answers and now > server.back_at + KNOWN_S and not self.alone:
                self.join()
            case "clock":
                server.ahead_us += round(trouble.seconds * SECOND)
            case "pause" | "pause clock" if server.answers:
                await server.pause(seconds, clock_too=trouble.kind == "pause clock")
            case "away" | "restart" if server.answers:
                await server.go(seconds, empty=trouble.kind == "restart")
            case "refuse" if server.answers and not server.refuses:
                await server.refuse(seconds)
            case "quick restart" if server.answers:
                await server.go(0.0, empty=True)


async def play(schedule: Schedule, scheduler: AnyScheduler) -> Story:
    """The whole schedule, and then a quiet time in which everything that is left must go away."""
    await scheduler.clear()
    fleet = Fleet(schedule, scheduler)
    server, story = fleet.server, fleet.story
    loop = asyncio.get_running_loop()
    submitted = []

    def ask(number: int, one: Wish) -> None:
        process = fleet.pick(number)
        if process is not None:
            submitted.append((process, one))
            process.ask(one)

    begin = loop.time() + KNOWN_S
    for number, one in schedule.wishes:
        loop.call_at(begin + one.at, ask, number, one)
    for trouble in schedule.troubles:
        loop.call_at(begin + trouble.at, lambda one: server.tasks.spawn("trouble", fleet.cause(one)), trouble)
    await asyncio.sleep(KNOWN_S + 9.0)
    await server.tasks.drain(60.0)
    server.reliable_until = math.inf
    while any(process.open for process in fleet.processes if process.alive):
        await asyncio.sleep(0.1)
    await asyncio.sleep(2.5)
    crashed = any(trouble.kind == "crash" for trouble in schedule.troubles)
    if not (crashed or story.unheard or fleet.alone):
        left = await scheduler.left()
        story.check(not left, f"nobody died, and yet waits for a lease: {left}")
    lease_s = schedule.limits.lease_s
    fleet.join()
    await asyncio.sleep(max(3 * 3.0, lease_s) + (GRACE + JUMP + SETTLE) / SECOND + 1.0)
    last = Wish(0.0, Ticket("last", "a", 1, 0.01, 2.0), 0.1)
    fleet.processes[-1].ask(last)
    submitted.append((fleet.processes[-1], last))
    await asyncio.sleep(2.5)
    for process, one in submitted:
        ends = story.ends.get(one.ticket.id, [])
        story.check(len(ends) == 1 or not (process.alive or ends), f"{one.ticket.id} ended as {ends}")
        calls = story.calls[one.ticket.id]
        story.check(calls == 1 or (calls == 0 and ends != ["own"]), f"{one.ticket.id}: {calls} calls, {ends}")
    story.check(story.ends.get("last") == ["own"], f"after it all, a request ended as {story.ends.get('last')}")
    left = await scheduler.left()
    story.check(not left, f"left on the board: {left}")
    for process in fleet.processes:
        if process.alive:
            queue = process.queue
            kept = [*queue._waiters, *queue._unsent, *queue._released, *queue._finished, *queue._unconfirmed]
            story.check(not kept, f"left in {process.process_id}: {kept}")
            story.check(queue._local is None, f"{process.process_id} is still alone")
    for process in fleet.processes:
        process.crash()
        await process.tasks.close()
    await server.tasks.close()
    story.wrong += server.wrong
    return story


def run(schedule: Schedule, scheduler: AnyScheduler) -> Story:
    with capture_logs() as logs, asyncio.Runner(loop_factory=VirtualLoop) as runner:
        story = runner.run(play(schedule, scheduler))
    broken = [line for line in logs if line["log_level"] == "error"]
    assert not broken, broken
    assert not story.wrong, "\n".join(story.wrong)
    return story


@settings(max_examples=80, deadline=None)
@given(schedule=schedules)
def test_the_invariants_hold_for_random_schedules(schedule: Schedule) -> None:
    """Each request has one outcome before its deadline, the limit of calls holds, and nothing is left."""
    run(schedule, MemoryScheduler())


@pytest.fixture(scope="module")
def script(redis_url: str) -> Iterator[BlockingScheduler]:
    """The script on the run's Redis, which answers on a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    redis = Redis.from_url(redis_url)
    yield BlockingScheduler(ScriptScheduler(redis, RedisKeys("simulation")), loop)
    asyncio.run_coroutine_threadsafe(redis.aclose(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.mark.long
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=schedules)
def test_the_same_in_redis(script: BlockingScheduler, schedule: Schedule) -> None:
    """The script's rules, on a real Redis whose clock the schedule sets."""
    run(schedule, script)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(max_examples=4_000, deadline=None)
@given(schedule=schedules)
def test_the_invariants_hold_for_many_random_schedules(schedule: Schedule) -> None:
    """Check four thousand schedules."""
    run(schedule, MemoryScheduler())


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=schedules)
def test_the_same_in_redis_at_length(script: BlockingScheduler, schedule: Schedule) -> None:
    """Check four hundred schedules on a real Redis."""
    run(schedule, script)


def wish_of(name: str, at: float, deadline_s: float, takes_s: float, dedupe_key: str = "", tenant: str = "a") -> Wish:
    return Wish(at, Ticket(name, tenant, 1, max_wait_s=0.05, deadline_s=deadline_s, dedupe_key=dedupe_key), takes_s)


# A call with a second to its deadline is joined by a request that has two. Redis's clock, set forward by less than a
# jump, uses up the grace of its permit: only the new deadline keeps that from being given to another.
JOINED_UNHEARD = Schedule(  # the wake-up is lost: the process has yet to hear of the permit
    TeacherLimits(2, 2, 10),
    2,
    [
        (0, wish_of("led", 0.0, 1.0, 1.5, dedupe_key="w")),
        (0, wish_of("quick", 0.073, 2.0, 0.2)),
        (0, wish_of("next", 0.157, 2.0, 0.2)),
        (0, replace(wish_of("long", 0.291, 3.0, 5.0, tenant="b"), hangs_up_after_s=1.2)),
        (0, wish_of("joins", 0.543, 2.0, 0.2, dedupe_key="w")),
        (0, wish_of("late", 0.665, 2.0, 0.2)),
    ],
    [Trouble(0.013, "leave", 1, 0.0), Trouble(0.074, "clock", 0, 1.5)],
    Network(delay_s=0.08, wakeups_lost=1.0),
)
JOINED_IN_USE = Schedule(  # it calls already, and tells everything only after the permit would have ended
    TeacherLimits(2, 2, 10),
    1,
    [
        (0, wish_of("led", 0.0, 1.0, 2.0, dedupe_key="w")),
        (0, wish_of("long", 0.1, 3.0, 5.0)),
        (0, wish_of("before", 0.63, 3.0, 0.2, tenant="c")),
        (0, wish_of("after", 0.67, 3.0, 0.2, tenant="d")),
        (0, wish_of("joins", 0.9, 2.0, 0.2, dedupe_key="w")),
        (0, wish_of("late", 1.2, 2.0, 0.2)),
    ],
    [Trouble(0.65, "clock", 0, 1.8)],
    Network(),
)


@pytest.mark.parametrize("schedule", [JOINED_UNHEARD, JOINED_IN_USE], ids=["unheard", "in use"])
def test_a_permit_that_is_wanted_for_longer_is_not_given_to_another(
    script: BlockingScheduler, schedule: Schedule
) -> None:
    """In memory and in Redis."""
    for scheduler in (MemoryScheduler(), script):
        story = run(schedule, scheduler)
        assert story.most == 2
        assert story.ends["joins"] == ["flight"]


# The first message to an empty Redis is a leave message, which must not make the teacher look free.
LEFT_FIRST = Schedule(
    TeacherLimits(1, 1, 10),
    2,
    [(0, wish_of("calls", 0.0, 2.0, 0.5)), (0, wish_of("next", 0.003, 2.0, 0.2))],
    [Trouble(0.001, "quick restart", 0, 0.0), Trouble(0.002, "leave", 1, 0.0)],
    Network(),
)


def test_a_leave_message_to_a_reset_scheduler_includes_the_fleet_size(script: BlockingScheduler) -> None:
    """In memory and in Redis."""
    for scheduler in (MemoryScheduler(), script):
        story = run(LEFT_FIRST, scheduler)
        assert story.most == 1
        assert (story.ends["calls"], story.ends["next"]) == (["own"], ["own"])


async def flow(
    scheduler: AnyScheduler, processes: int, wishes: list[Wish], limits: TeacherLimits
) -> tuple[list[tuple[float, int]], list[tuple[float, str]]]:
    """Wishes taken in turn by so many processes, without trouble: the batches that opened, and the calls, in order."""
    await scheduler.clear()
    fleet = Fleet(Schedule(limits, processes, [], [], Network()), scheduler)
    loop = asyncio.get_running_loop()
    await asyncio.sleep(KNOWN_S)
    begin = loop.time()
    for number, one in enumerate(wishes):
        loop.call_at(begin + one.at, fleet.processes[number % processes].ask, one)
    await asyncio.sleep(max(one.at + one.ticket.deadline_s for one in wishes) + 1.0)
    for process in fleet.processes:
        process.crash()
        await process.tasks.close()
    await fleet.server.tasks.close()
    assert not fleet.story.wrong, fleet.story.wrong
    opened = [(round(at - begin, 3), size) for at, size in fleet.server.opened]
    return opened, [(round(at - begin, 6), one) for at, one in fleet.story.sent]


def flowing(
    scheduler: AnyScheduler, processes: int, wishes: list[Wish], limits: TeacherLimits
) -> tuple[list[tuple[float, int]], list[tuple[float, str]]]:
    with capture_logs(), asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(flow(scheduler, processes, wishes, limits))


async def outage(scheduler: AnyScheduler) -> tuple[list[tuple[float, str]], int]:
    """Two busy processes, and Redis away from second 2 to 12: the calls, in order, and the most at once."""
    await scheduler.clear()
    limits = TeacherLimits(8, 4, 10_000, lease_s=3.0)
    fleet = Fleet(Schedule(limits, 2, [], [], Network()), scheduler)
    loop = asyncio.get_running_loop()
    await asyncio.sleep(KNOWN_S)
    begin = loop.time()
    for number in range(480):
        ticket = Ticket(f"t{number}", "a", 10, max_wait_s=0.01, deadline_s=2.0)
        loop.call_at(begin + number / 30, fleet.processes[number % 2].ask, Wish(0.0, ticket, 0.2))
    await asyncio.sleep(2.0)
    await fleet.server.go(10.0, empty=True)
    await asyncio.sleep(5.0)
    for process in fleet.processes:
        process.crash()
        await process.tasks.close()
    await fleet.server.tasks.close()
    assert not fleet.story.wrong, fleet.story.wrong
    return [(at - begin, one) for at, one in fleet.story.sent], fleet.story.most


def test_calls_continue_without_redis() -> None:
    """The number of calls does not drop at the outage. After the return, the whole teacher is used."""
    with capture_logs(), asyncio.Runner(loop_factory=VirtualLoop) as runner:
        sent, most = runner.run(outage(MemoryScheduler()))
    per_second = Counter(int(at) for at, _ in sent)
    assert most <= 8
    for second in range(15):
        assert per_second[second] == pytest.approx(30, abs=10), per_second


async def gone_in_a_burst(processes: int) -> Story:
    """Redis fails when one process has the whole teacher. Then the other processes get the same load."""
    limits = TeacherLimits(8, 8, 10_000)
    fleet = Fleet(Schedule(limits, processes, [], [], Network()), MemoryScheduler())
    await asyncio.sleep(KNOWN_S + 0.5)
    last, *others = reversed(fleet.processes)
    for number in range(8):
        last.ask(Wish(0.0, Ticket(f"before{number}", "a", 10, 0.01, 2.0), 1.9))
    await asyncio.sleep(0.05)
    assert fleet.story.in_flight == 8
    away = asyncio.ensure_future(fleet.server.go(6.0, empty=False))  # noqa: TID251
    await asyncio.sleep(0.01)
    for number in range(50):
        for process in others:
            process.ask(Wish(0.0, Ticket(f"{process.process_id}.{number}", "a", 10, 0.01, 3.0), 0.2))
        await asyncio.sleep(0.1)
    await away
    for process in fleet.processes:
        process.crash()
        await process.tasks.close()
    await fleet.server.tasks.close()
    assert not fleet.story.wrong, fleet.story.wrong
    return fleet.story


@pytest.mark.parametrize("processes", [2, 4])
def test_the_others_wait_for_a_process_that_had_the_whole_teacher(processes: int) -> None:
    """The others do not know its calls. They use their shares after these calls must have ended."""
    with capture_logs(), asyncio.Runner(loop_factory=VirtualLoop) as runner:
        story = runner.run(gone_in_a_burst(processes))
    assert story.most == 8
    sent = [at for at, one in story.sent if not one.startswith("before")]
    assert KNOWN_S + 2.0 < sent[0] < KNOWN_S + 5.0
    assert len(sent) > 10


@pytest.mark.long
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    cap=st.integers(4, 24),
    size=st.integers(2, 12),
    low_water=st.sampled_from([0, 2]),
    takes_s=st.sampled_from([0.05, 0.2]),
)
def test_two_processes_at_50_requests_a_second_fill_the_batches_of_one_at_100(
    seed: int, cap: int, size: int, low_water: int, takes_s: float
) -> None:
    """Equal arrivals open equal batches at the same time, independent of the process."""
    chance = random.Random(seed)
    at, wishes = 0.0, []
    for number in range(200):
        at += chance.expovariate(100)
        ticket = Ticket(f"t{number}", "a", 10, max_wait_s=0.05, deadline_s=3.0)
        wishes.append(Wish(at, ticket, takes_s * chance.uniform(0.8, 1.2)))
    limits = TeacherLimits(cap, size, 10_000, low_water)
    one, _ = flowing(MemoryScheduler(), 1, wishes, limits)
    two, _ = flowing(MemoryScheduler(), 2, wishes, limits)
    assert [size for _, size in one] == [size for _, size in two]
    assert all(abs(first - second) < 0.005 for (first, _), (second, _) in zip(one, two, strict=True))


@settings(max_examples=10, deadline=None)
@given(
    weights=st.tuples(st.sampled_from([0.3, 1.0, 7.0]), st.sampled_from([0.3, 1.0, 7.0])),
    cap=st.integers(1, 8),
    size=st.integers(1, 8),
    at_ms=st.integers(200, 1500),
    processes=st.integers(1, 3),
)
def test_a_single_request_waits_for_one_further_batch_when_another_tenant_floods(
    weights: tuple[float, float], cap: int, size: int, at_ms: int, processes: int
) -> None:
    """Without the flood it is in the next batch that opens; with it, in the one after that at the latest."""
    flood = [
        Wish(number / 1000, Ticket(f"f{number}", "flood", 10, 0.01, 30.0, weights[0]), 0.1 + number % 7 / 100)
        for number in range(150)
    ]
    single = Wish(at_ms / 1000 + 0.0005, Ticket("single", "small", 10, 0.01, 30.0, weights[1]), 0.1)
    opened, sent = flowing(MemoryScheduler(), processes, [*flood, single], TeacherLimits(cap, size, 10_000))
    (granted,) = [at for at, one in sent if one == "single"]
    assert sum(single.at < at < granted - 0.002 for at, _ in opened) <= 1


@pytest.mark.long
@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.3, 0.5, 1.0, 2.0, 7.0]), min_size=2, max_size=5),
    cap=st.integers(1, 12),
    size=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_contended_permits_are_shared_by_weight(weights: list[float], cap: int, size: int, seed: int) -> None:
    """While every tenant has requests waiting, none is ahead of or behind its share by more permits than there are
    tenants."""
    chance = random.Random(seed)
    many = 120
    wishes = [
        Wish(0.0, Ticket(f"{tenant}.{number}", f"tenant-{tenant}", 10, 0.01, 9.0, weight), chance.uniform(0.02, 0.2))
        for tenant, weight in enumerate(weights)
        for number in range(many)
    ]
    chance.shuffle(wishes)
    _, sent = flowing(MemoryScheduler(), 2, wishes, TeacherLimits(cap, size, 10_000))
    got = Counter[int]()
    for _, ticket_id in sent:
        got[int(ticket_id.split(".")[0])] += 1
        if max(got.values()) == many:
            break
        if got.total() > len(weights) * cap:
            for tenant, weight in enumerate(weights):
                assert abs(got[tenant] - got.total() * weight / sum(weights)) <= len(weights)
