"""The calls that wait while an engine has as many calls in flight as its limit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from gateway.engines.base import EngineState, set_origin
from gateway.engines.breaker import Breaker, BreakerRule
from gateway.engines.call_slots import CallSlots
from gateway.engines.guard import GuardedEngine
from gateway.errors import CircuitOpen, EngineFailed, EngineOverloaded
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterable


class Calls:
    """Calls of tenants to one engine, which end when the test says so."""

    def __init__(self, limit: int | None, **options: Any) -> None:
        self.slots = CallSlots("small", limit, **options)
        self.started: list[str] = []

    async def run(self, tenant: str, end: asyncio.Event) -> None:
        if self.slots.is_full:
            await self.slots.wait(tenant)
        self.slots.enter(tenant)
        self.started.append(tenant)
        try:
            await end.wait()
        finally:
            self.slots.leave(tenant)


async def turn() -> None:
    """Let all tasks run as far as they can."""
    for _ in range(8):
        await asyncio.sleep(0)


async def started(calls: Calls, tenants: Iterable[str]) -> list[tuple[asyncio.Task[None], asyncio.Event]]:
    tasks = []
    for tenant in tenants:
        end = asyncio.Event()
        tasks.append((asyncio.get_running_loop().create_task(calls.run(tenant, end)), end))
        await turn()
    return tasks


async def finish(tasks: list[tuple[asyncio.Task[None], asyncio.Event]]) -> None:
    for task, end in tasks:
        end.set()
        await asyncio.gather(task, return_exceptions=True)
        await turn()


async def test_calls_above_the_limit_wait_and_all_are_made() -> None:
    calls = Calls(3)
    tasks = await started(calls, ["a"] * 8)
    assert (calls.started, calls.slots.waiting, calls.slots.in_flight) == (["a"] * 3, 5, 3)
    for task, end in tasks:
        end.set()
        await task
        await turn()
        assert calls.slots.in_flight <= 3
    assert (len(calls.started), calls.slots.waiting, calls.slots.in_flight) == (8, 0, 0)
    assert not calls.slots._held


async def test_calls_from_before_the_limit_was_known_count_for_their_tenant() -> None:
    """Tenant a has six calls in flight when the engine reports its limit of eight."""
    calls = Calls(None)
    early = await started(calls, "aaaaaab")
    calls.slots.update(8, 1)
    late = await started(calls, "aab")  # the first one gets the last slot
    await finish(early[:1])
    assert calls.started == [*"aaaaaab", "a", "b"]
    await finish([*early[1:], *late])
    assert (calls.slots.in_flight, calls.slots._held) == (0, {})


async def test_without_a_limit_no_call_waits() -> None:
    calls = Calls(None)
    tasks = await started(calls, "abc" * 50)
    assert calls.slots.in_flight == 150
    await finish(tasks)
    assert (calls.slots.in_flight, calls.slots._held) == (0, {})


async def test_a_tenant_with_many_calls_leaves_the_next_slots_to_others() -> None:
    """Tenant a has all slots and a long queue. The next slots go to b and c, which came last."""
    calls = Calls(4)
    tasks = await started(calls, "aaaa" + "aaaaaa" + "bbb" + "c")
    assert calls.started == list("aaaa")
    await finish(tasks[:4])
    assert calls.started[4:] == list("bcab"), "the slots are divided, then a has its share"
    await finish(tasks[4:])
    assert len(calls.started) == len(tasks)


async def test_a_full_queue_and_a_passed_deadline_are_errors_with_retry_after() -> None:
    calls = Calls(1, max_waiting=2, timeout_s=0.05)
    tasks = await started(calls, "aaa")
    with pytest.raises(EngineOverloaded, match="1 calls in flight, its limit, and 2 calls of the tenant wait") as full:
        await calls.slots.wait("a")
    other = asyncio.get_running_loop().create_task(calls.slots.wait("b"))  # the queue of another tenant has space
    late = await asyncio.gather(*(task for task, _ in tasks[1:]), other, return_exceptions=True)
    assert [type(one) for one in late] == [EngineOverloaded] * 3
    for error in (full.value, *late):
        assert isinstance(error, EngineOverloaded)
        assert (error.retryable, error.may_have_run, error.retry_after_s) == (False, False, 1.0)
    assert calls.slots.waiting == 0
    await finish(tasks)
    assert (calls.slots.in_flight, calls.slots._held) == (0, {})


async def test_a_canceled_call_leaves_the_queue() -> None:
    calls = Calls(1)
    tasks = await started(calls, "aab")
    tasks[1][0].cancel()
    await turn()
    assert calls.slots.waiting == 1
    await finish(tasks)
    assert calls.started == ["a", "b"]
    assert (calls.slots.in_flight, calls.slots.reserved, calls.slots._held) == (0, 0, {})


async def test_a_call_that_is_canceled_with_a_slot_passes_it_on() -> None:
    calls = Calls(1)
    calls.slots.enter("a")
    tasks = await started(calls, "ab")
    calls.slots.leave("a")
    assert calls.slots.reserved == 1
    tasks[0][0].cancel()
    await turn()
    assert calls.started == ["b"]
    await finish(tasks)
    assert (calls.slots.in_flight, calls.slots.reserved, calls.slots._held) == (0, 0, {})


async def test_a_call_that_does_not_start_passes_its_slot_on() -> None:
    calls = Calls(1)
    tasks = await started(calls, "a")
    gives_up = asyncio.get_running_loop().create_task(calls.slots.wait("a"))
    await turn()
    tasks += await started(calls, "a")
    await finish(tasks[:1])
    await gives_up
    await turn()
    assert calls.started == ["a", "a"]
    await finish(tasks[1:])
    assert calls.slots.in_flight == 0


async def test_the_limit_follows_the_engine_and_the_fleet() -> None:
    calls = Calls(None)
    for reported, processes, limit in ((8, 1, 8), (8, 3, 2), (8, 20, 1), (None, 2, None)):
        calls.slots.update(reported, processes)
        assert calls.slots.limit == limit
    lower = Calls(6)
    for reported, limit in ((8, 6), (4, 4), (None, 6)):
        lower.slots.update(reported, 1)
        assert lower.slots.limit == limit


@pytest.mark.parametrize("limit", [3, None])
async def test_a_higher_limit_starts_waiting_calls(limit: int | None) -> None:
    calls = Calls(None)
    calls.slots.update(1, 1)
    tasks = await started(calls, "aaa")
    assert len(calls.started) == 1
    calls.slots.update(limit, 1)
    await turn()
    assert len(calls.started) == 3
    await finish(tasks)
    assert (calls.slots.in_flight, calls.slots._held) == (0, {})


async def test_a_lower_limit_starts_no_call_until_enough_have_ended() -> None:
    calls = Calls(3)
    tasks = await started(calls, "aaaa")
    calls.slots.update(1, 1)
    await finish(tasks[:2])
    assert len(calls.started) == 3
    await finish(tasks[2:])
    assert len(calls.started) == 4


class Held:
    """An engine whose calls end when the test says so."""

    name = "small"
    state = EngineState()

    def __init__(self) -> None:
        self.end = asyncio.Event()
        self.fails = True

    async def complete(self, body: Any, prefill: Any = None) -> dict[str, Any]:
        await self.end.wait()
        if self.fails:
            raise EngineFailed("It broke.", engine="small")
        return {}


async def test_waiting_calls_end_when_the_circuit_opens() -> None:
    """Each gets a slot in turn, and the error of the open circuit."""
    held = Held()
    metrics = Metrics()
    slots = CallSlots("small", 2)
    engine = GuardedEngine(held, Breaker(BreakerRule(failures=2)), metrics, slots=slots)  # type: ignore[arg-type]

    async def call(number: int) -> None:
        set_origin("acme", f"request-{number}")
        if engine.is_full:
            await engine.wait_for_slot()
        await engine.complete({})

    tasks = [asyncio.get_running_loop().create_task(call(number)) for number in range(6)]
    await turn()
    assert (engine.calls, engine.waiting) == (2, 4)
    held.end.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in outcomes] == [EngineFailed] * 2 + [CircuitOpen] * 4
    assert (engine.calls, engine.waiting) == (0, 0)
    slots.enter("acme")
    slots.enter("acme")
    set_origin("acme", "later")
    with pytest.raises(CircuitOpen):
        await engine.wait_for_slot()


async def test_a_call_that_gets_a_slot_while_a_trial_runs_waits_for_its_outcome() -> None:
    """The trial started while the call waited for the slot."""
    held, now = Held(), 0.0
    breaker = Breaker(BreakerRule(failures=1), draw=lambda: 0.5)
    engine = GuardedEngine(held, breaker, Metrics(), lambda: now, slots=CallSlots("small", 2))  # type: ignore[arg-type]

    async def call(tenant: str) -> None:
        set_origin(tenant, "request")
        if engine.must_wait(tenant):
            await engine.wait_for_slot()
        await engine.complete({})

    loop = asyncio.get_running_loop()
    held.end.set()
    with pytest.raises(EngineFailed):
        await call("acme")
    held.end.clear()
    now = 1.0
    others = [loop.create_task(call("globex")) for _ in range(2)]
    await turn()
    trial, waits = [loop.create_task(call("acme")) for _ in range(2)]
    await turn()
    for other in others:
        other.cancel()
    await turn()
    assert (engine.calls, engine.waiting, waits.done()) == (1, 0, False)
    held.fails = False
    held.end.set()
    assert await asyncio.gather(trial, waits) == [None, None]
