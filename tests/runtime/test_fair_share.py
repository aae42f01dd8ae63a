"""Fair shares by weight, eviction of the heaviest tenant's oldest holding, and turns of a semaphore."""

from __future__ import annotations

import asyncio
from functools import partial

from gateway.runtime.fair_share import BoundedHoldings, FairSemaphore, FairShare


def test_a_share_is_the_weights_part_of_the_capacity() -> None:
    share = FairShare(12)
    for _ in range(20):
        share.acquire("flood", 1.0)
    assert not share.is_below("flood", 1.0)
    allowed = 0
    while share.is_below("heavy", 3.0):
        share.acquire("heavy", 3.0)
        allowed += 1
    assert allowed == 9
    assert (share.total, share.held("flood"), share.held("heavy"), share.held("nobody")) == (29, 20, 9, 0)


def test_a_single_tenant_gets_the_whole_capacity() -> None:
    """The capacity is whole after other tenants held some of it: no rounding error remains."""
    share = FairShare(3)
    for weight in (0.1, 0.2, 0.3):
        share.acquire(f"tenant-{weight}", weight)
    for weight in (0.1, 0.2, 0.3):
        share.release(f"tenant-{weight}")
    allowed = 0
    while share.is_below("alone", 0.7):
        share.acquire("alone", 0.7)
        allowed += 1
    assert allowed == 3


def test_the_heaviest_tenant_is_the_one_that_holds_most_for_its_weight() -> None:
    share = FairShare(100)
    for tenant, weight, count in (("light", 1.0, 4), ("heavy", 10.0, 30)):
        for _ in range(count):
            share.acquire(tenant, weight)
    assert share.heaviest() == ["light"]


def test_one_holding_too_many_drops_the_oldest_of_the_heaviest_tenant() -> None:
    """The light tenant's holding stays, whatever its age."""
    dropped: list[str] = []
    holdings = BoundedHoldings(3)
    holds = [
        (tenant, partial(dropped.append, name)) for tenant, name in (("quiet", "q"), ("flood", "1"), ("flood", "2"))
    ]
    for tenant, drop in holds:
        holdings.hold(tenant, 1.0, drop)
    holdings.hold("other", 1.0, partial(dropped.append, "o"))
    assert (dropped, len(holdings)) == (["1"], 3)
    holdings.release(*holds[1])
    assert len(holdings) == 3
    holdings.release(*holds[2])
    assert len(holdings) == 2


async def test_waiters_are_served_in_turn_by_tenant_and_in_order_within_one() -> None:
    """A later tenant does not wait for the queues of others."""
    semaphore, served = FairSemaphore(1), list[str]()

    async def take(tenant: str, name: str) -> None:
        async with semaphore.hold(tenant):
            served.append(name)
            await asyncio.sleep(0)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for name in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
            group.create_task(take(name[0], name))
    assert served == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_a_waiter_that_is_cancelled_loses_no_permit() -> None:
    """The permit is kept if the waiter is canceled while it waits, or when it gets the permit at the same moment."""
    semaphore = FairSemaphore(1)

    async def take() -> None:
        async with semaphore.hold("acme"):
            pass

    held = semaphore.hold("acme")
    await held.__aenter__()
    waiting, granted, last = (asyncio.ensure_future(take()) for _ in range(3))  # noqa: TID251
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    await held.__aexit__(None, None, None)
    granted.cancel()
    async with asyncio.timeout(10):
        await last
        await take()
    assert waiting.cancelled()
    assert granted.cancelled()


def test_holdings_count_by_their_amounts_and_a_single_one_may_exceed_the_bound() -> None:
    holdings = BoundedHoldings(10)
    dropped: list[str] = []
    first, second = partial(dropped.append, "first"), partial(dropped.append, "second")
    holdings.hold("acme", 1.0, first, 20)
    assert (len(holdings), dropped) == (20, [])
    holdings.hold("acme", 1.0, second, 4)
    holdings.hold("acme", 1.0, second, 5)
    assert (len(holdings), dropped) == (9, ["first"])
    holdings.release("acme", second)
    assert len(holdings) == 0
