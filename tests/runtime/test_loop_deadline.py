"""Deadlines that exclude lag of the event loop."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from gateway.runtime.timeouts import MAX_LAG_S, LoopDeadline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

DEADLINE_S = 0.08

both_loops = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])


def run(new_loop: Callable[[], asyncio.AbstractEventLoop], work: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(work)


@asynccontextmanager
async def peer() -> AsyncIterator[tuple[asyncio.StreamReader, socket.socket]]:
    """Return the reader of one end of a connection, and the other end."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    try:
        yield reader, theirs
    finally:
        writer.close()
        theirs.close()


@both_loops
@pytest.mark.parametrize("held_s", [DEADLINE_S * 0.98, DEADLINE_S, DEADLINE_S * 1.02, DEADLINE_S * 3])
def test_a_reply_that_arrives_in_time_while_the_loop_is_held_is_read(
    new_loop: Callable[[], asyncio.AbstractEventLoop], held_s: float
) -> None:
    async def read() -> bytes:
        async with peer() as (reader, theirs):
            asyncio.get_running_loop().call_soon(time.sleep, held_s)
            threading.Timer(DEADLINE_S / 4, theirs.sendall, [b"reply"]).start()
            async with LoopDeadline(DEADLINE_S):
                return await reader.read(100)

    assert run(new_loop, read()) == b"reply"


@both_loops
def test_a_peer_that_gets_the_request_late_has_the_rest_of_its_time(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """uvloop sends at the end of a pass. A peer that gets the request after the lag still has its time."""

    async def read() -> bytes:
        async with peer() as (reader, theirs):
            loop = asyncio.get_running_loop()
            loop.call_soon(time.sleep, DEADLINE_S * 0.98)
            loop.call_soon(lambda: loop.call_later(DEADLINE_S / 2, theirs.sendall, b"reply"))
            async with LoopDeadline(DEADLINE_S):
                return await reader.read(100)

    assert run(new_loop, read()) == b"reply"


@both_loops
@pytest.mark.parametrize("held_s", [0.0, DEADLINE_S / 2])
def test_a_silent_peer_is_given_up_also_while_the_loop_lags(
    new_loop: Callable[[], asyncio.AbstractEventLoop], held_s: float
) -> None:
    async def read() -> None:
        loop = asyncio.get_running_loop()

        def hold() -> None:
            time.sleep(held_s)
            loop.call_later(DEADLINE_S / 8, hold)

        async with peer() as (reader, _):
            if held_s:
                hold()
            async with LoopDeadline(DEADLINE_S):
                await reader.read(100)

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        run(new_loop, read())
    assert time.monotonic() - began >= DEADLINE_S * 0.9


@pytest.mark.parametrize("longest_lag_s", [MAX_LAG_S, DEADLINE_S])
def test_lag_without_an_end_extends_a_deadline_within_a_bound(longest_lag_s: float) -> None:
    """Every part of the deadline is late."""
    held = 0

    async def read() -> None:
        loop = asyncio.get_running_loop()

        def hold() -> None:
            nonlocal held
            held += 1
            time.sleep(DEADLINE_S / 2)
            loop.call_soon(hold)

        hold()
        async with LoopDeadline(DEADLINE_S, max_lag_s=longest_lag_s):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(read())
    assert held < (60 if longest_lag_s > DEADLINE_S else 25)


async def test_a_cancellation_of_the_caller_is_no_timeout() -> None:
    async def wait() -> None:
        async with LoopDeadline(10):
            await asyncio.Event().wait()

    waiting = asyncio.ensure_future(wait())  # noqa: TID251
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_block_that_is_done_in_time_leaves_no_timer() -> None:
    async with LoopDeadline(DEADLINE_S):
        await asyncio.sleep(DEADLINE_S / 2)
    await asyncio.sleep(DEADLINE_S)
