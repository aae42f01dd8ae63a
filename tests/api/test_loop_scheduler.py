"""The event loop's time: contending tenants share it by weight, and a single tenant gets all of it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from gateway.api.loop_scheduler import LoopScheduler
from gateway.errors import Overloaded
from gateway.telemetry.metrics import Metrics


class Clock:
    """A clock that only the test advances: a busy machine must not add a millisecond."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def scheduler(clock: Clock) -> LoopScheduler:
    return LoopScheduler(Metrics(), clock=clock)


def contend(scheduler: LoopScheduler, tenant: str, count: int, weight: float = 1.0, cost: float = 1.0) -> None:
    """Request `count` steps at once; each started step appends the tenant's name to `started`."""
    for _ in range(count):
        step = scheduler.enter(tenant, weight, cost)
        if step is None:
            started.append(tenant)
        else:
            step.add_done_callback(lambda _: started.append(tenant))


started: list[str] = []


@pytest.fixture(autouse=True)
def _none_started() -> None:
    started.clear()


async def until(count: int) -> None:
    async with asyncio.timeout(5):
        while len(started) < count:
            await asyncio.sleep(0)


async def test_a_step_starts_at_once_without_contention(scheduler: LoopScheduler, clock: Clock) -> None:
    for _ in range(20):
        assert scheduler.enter("acme", 1.0) is None
        clock.now_s += 0.0011


async def test_a_single_tenant_does_not_wait_until_a_second_one_contends(
    scheduler: LoopScheduler, clock: Clock
) -> None:
    contend(scheduler, "acme", 30)
    assert len(started) == 30
    clock.now_s += 0.002
    contend(scheduler, "other", 1)
    clock.now_s += 0.002
    contend(scheduler, "acme", 30)
    assert len(started) < 40
    await until(61)


async def test_large_steps_of_a_tenant_alone_wait(scheduler: LoopScheduler) -> None:
    """A second tenant must not wait for many of them."""
    contend(scheduler, "acme", 30, cost=100.0)
    assert len(started) < 5
    await until(30)


async def test_a_quiet_tenant_does_not_wait_for_the_steps_of_a_flood(scheduler: LoopScheduler) -> None:
    """The quiet tenant's first step runs at once, the second after one or two iterations of the flood's steps."""
    contend(scheduler, "flood", 200)
    await until(5)
    assert scheduler.enter("quiet", 1.0) is None
    before = len(started)
    second = scheduler.enter("quiet", 1.0)
    assert second is not None
    await second
    assert len(started) <= before + 6
    await until(200)


async def test_tenants_that_contend_share_steps_by_weight(scheduler: LoopScheduler) -> None:
    contend(scheduler, "light", 100)
    contend(scheduler, "heavy", 300, weight=3.0)
    await until(140)
    counts = Counter(started[40:140])
    assert counts["heavy"] == pytest.approx(3 * counts["light"], rel=0.15)
    await until(400)


async def test_a_step_that_costs_more_counts_for_more(scheduler: LoopScheduler) -> None:
    """Large bodies get fewer steps than small ones of the same weight. Some start before others contend."""
    contend(scheduler, "large", 40, cost=10.0)
    contend(scheduler, "small", 100)
    await until(70)
    assert Counter(started[:70])["large"] < 20
    await until(140)


async def test_a_tenant_alone_gets_a_step_in_every_iteration(scheduler: LoopScheduler) -> None:
    """The scheduler reserves no time for idle tenants."""
    contend(scheduler, "alone", 50, weight=0.01)
    iterations = 0
    while len(started) < 50:
        iterations += 1
        await asyncio.sleep(0)
    assert iterations < 60


async def test_steps_of_requests_that_were_cancelled_take_no_turn(scheduler: LoopScheduler, clock: Clock) -> None:
    steps = [step for step in (scheduler.enter("acme", 1.0) for _ in range(50)) if step is not None]
    for step in steps[:-1]:
        step.cancel()
    async with asyncio.timeout(1):
        await steps[-1]
    clock.now_s += 0.002
    await asyncio.sleep(0)
    assert scheduler.enter("other", 1.0) is None  # nothing is left of them


async def test_a_wait_has_an_end() -> None:
    """The caller gets an error and may retry."""
    scheduler = LoopScheduler(Metrics(), clock=lambda: 5.0, max_wait_s=0.0)
    steps = [step for step in (scheduler.enter("acme", 1.0) for _ in range(50)) if step is not None]
    assert steps
    for step in steps:
        with pytest.raises(Overloaded, match="Other requests of this tenant"):
            await step
