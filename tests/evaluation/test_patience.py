"""Retries of engine calls, and detection of a lost engine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from gateway.errors import EngineError, EngineFailed, EngineRejected, EngineUnreachable, StartupError
from gateway.evaluation.pair import StageRetries

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

GONE = EngineUnreachable("no connection", engine="teacher")
BROKEN = EngineFailed("500", engine="teacher")
TOO_LONG = EngineRejected("400", engine="teacher", status_sent=400)
NO_KEY = EngineRejected("401", engine="teacher", status_sent=401)


def failing(*errors: EngineError | None) -> tuple[Callable[[], Awaitable[int]], list[int]]:
    """Return a call with these consecutive errors (None: success), and the list of its calls."""
    calls: list[int] = []

    async def call() -> int:
        calls.append(1)
        error = errors[min(len(calls), len(errors)) - 1]
        if error is not None:
            raise error
        return len(calls)

    return call, calls


async def test_a_call_that_fails_is_made_again_a_few_times() -> None:
    call, _ = failing(GONE, BROKEN, None)
    assert await StageRetries((0.0, 0.0)).call(call) == 3
    call, calls = failing(BROKEN)
    with pytest.raises(EngineFailed):
        await StageRetries((0.0, 0.0)).call(call)
    assert len(calls) == 3


async def test_rejected_requests_are_not_retried() -> None:
    for error in (TOO_LONG, NO_KEY):
        call, calls = failing(error)
        with pytest.raises(EngineRejected):
            await StageRetries((0.0,)).call(call)
        assert len(calls) == 1


@pytest.mark.parametrize(("error", "begun"), [(GONE, 8), (NO_KEY, 8), (BROKEN, 64), (TOO_LONG, 100)])
async def test_many_consecutive_failures_mean_an_unavailable_engine(error: EngineError, begun: int) -> None:
    """Rejections do not count, since an engine that rejects is running."""
    patience = StageRetries(())
    call, calls = failing(error)

    async def work(_: int) -> None:
        with pytest.raises(EngineError):
            await patience.call(call)

    if begun < 100:
        with pytest.raises(StartupError, match=f"Engine 'teacher' is gone: {begun} consecutive calls failed"):
            await patience.run_concurrently(range(100), work, 1)
    else:
        await patience.run_concurrently(range(100), work, 1)
    assert len(calls) == begun


async def test_a_success_resets_the_failure_count() -> None:
    patience = StageRetries(())
    call, calls = failing(*(([GONE] * 7 + [None]) * 5))

    async def work(_: int) -> None:
        try:
            await patience.call(call)
        except EngineUnreachable:
            return

    await patience.run_concurrently(range(40), work, 1)
    assert len(calls) == 40


async def test_concurrency_is_limited_and_requests_start_in_order() -> None:
    under_way: list[int] = []
    begun: list[int] = []
    most = 0

    async def work(item: int) -> None:
        nonlocal most
        begun.append(item)
        under_way.append(item)
        most = max(most, len(under_way))
        await asyncio.sleep(0)
        under_way.remove(item)

    await StageRetries().run_concurrently(range(20), work, 3)
    assert (begun, most) == (list(range(20)), 3)


async def test_an_internal_error_is_raised_unchanged() -> None:
    async def work(_: int) -> None:
        raise StartupError("no judge")

    with pytest.raises(StartupError, match="no judge"):
        await StageRetries().run_concurrently(range(3), work, 2)
