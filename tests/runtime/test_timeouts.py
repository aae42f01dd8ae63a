"""A timer for many waits: it fires when a wait exceeds its deadline, and never otherwise."""

from __future__ import annotations

import asyncio

from gateway.runtime.timeouts import Watchdog


class RecordedCalls:
    """Record calls in loop time. A timer that is due before a sleep ends fires before it, on a busy machine as well."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def __call__(self) -> None:
        self.at.append(asyncio.get_running_loop().time())


async def test_a_wait_past_its_end_is_bitten_once() -> None:
    calls, now = RecordedCalls(), asyncio.get_running_loop().time
    with Watchdog(calls) as watchdog:
        end = now() + 0.05
        watchdog.watch(end)
        assert not watchdog.timed_out
        await asyncio.sleep(0.15)
        assert watchdog.timed_out
        assert [end <= at for at in calls.at] == [True]


async def test_many_waits_that_end_in_time_are_not() -> None:
    """Together the waits take longer than each one may."""
    calls, now = RecordedCalls(), asyncio.get_running_loop().time
    with Watchdog(calls) as watchdog:
        for _ in range(8):
            watchdog.watch(now() + 0.6)
            await asyncio.sleep(0.1)
            watchdog.disarm()
        await asyncio.sleep(0.6)
    assert (calls.at, watchdog.timed_out) == ([], False)


async def test_the_last_of_many_waits_is_bitten_at_its_own_end() -> None:
    """The timer was set for an earlier wait's deadline."""
    calls, now = RecordedCalls(), asyncio.get_running_loop().time
    with Watchdog(calls) as watchdog:
        for _ in range(4):
            watchdog.watch(now() + 0.5)
            await asyncio.sleep(0.03)
        watchdog.watch(end := now() + 0.5)
        await asyncio.sleep(0.6)
        assert [end <= at for at in calls.at] == [True]


async def test_a_shorter_wait_after_a_longer_one_is_bitten_in_time() -> None:
    """The longer wait's timer would fire too late."""
    calls, now = RecordedCalls(), asyncio.get_running_loop().time
    with Watchdog(calls) as watchdog:
        watchdog.watch(now() + 60)
        watchdog.disarm()
        watchdog.watch(end := now() + 0.05)
        await asyncio.sleep(0.15)
        assert [end <= at for at in calls.at] == [True]


async def test_nothing_is_bitten_after_the_block() -> None:
    calls = RecordedCalls()
    with Watchdog(calls) as watchdog:
        watchdog.watch(asyncio.get_running_loop().time() + 0.03)
    await asyncio.sleep(0.08)
    assert calls.at == []
