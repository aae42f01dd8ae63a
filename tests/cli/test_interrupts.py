"""A command that SIGINT or SIGTERM interrupts ends with its status at any moment, also when its work has just ended."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, NoReturn

import pytest
import typer

from gateway.cli.interrupts import INTERRUPTED, run_until_interrupted
from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
pytestmark = pytest.mark.parametrize("number", SIGNALS)


def interrupt(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_cancels_the_work_and_its_cleanup_runs(number: signal.Signals) -> None:
    cleaned: list[bool] = []

    async def work() -> None:
        asyncio.get_running_loop().call_soon(interrupt, number)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    with pytest.raises(typer.Exit) as ended:
        run_until_interrupted(work(), "test")
    assert (ended.value.exit_code, cleaned) == (INTERRUPTED, [True])


def test_a_signal_in_the_instant_when_the_work_ends_is_not_lost(number: signal.Signals) -> None:
    async def work() -> str:
        interrupt(number)
        return "a result"

    with pytest.raises(typer.Exit) as ended:
        run_until_interrupted(work(), "test", 3)
    assert ended.value.exit_code == 3


def test_a_signal_while_the_event_loop_is_closed_is_not_lost(number: signal.Signals) -> None:
    opened: list[AsyncGenerator[int, None]] = []

    async def numbers() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            interrupt(number)

    async def work() -> str:
        opened.append(numbers())  # its cleanup runs when the loop is closed
        await anext(opened[0])
        return "a result"

    with pytest.raises(typer.Exit) as ended:
        run_until_interrupted(work(), "test")
    assert ended.value.exit_code == INTERRUPTED


@pytest.mark.parametrize("outcome", ["a result", "an error"])
def test_work_that_ignores_its_cancellation_is_interrupted_all_the_same(number: signal.Signals, outcome: str) -> None:
    async def work() -> str:
        asyncio.get_running_loop().call_soon(interrupt, number)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if outcome == "an error":
                raise StartupError("cancelled") from None
        return outcome

    with pytest.raises(typer.Exit) as ended:
        run_until_interrupted(work(), "test")
    assert ended.value.exit_code == INTERRUPTED


def test_without_a_signal_the_result_is_returned_and_handlers_are_restored(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    during: list[object] = []

    async def work() -> str:
        during.append(signal.getsignal(number))
        return "a result"

    async def failing() -> NoReturn:
        raise StartupError("no engine")

    assert run_until_interrupted(work(), "test") == "a result"
    with pytest.raises(StartupError, match="no engine"):
        run_until_interrupted(failing(), "test")
    assert signal.getsignal(number) is before
    assert during != [before]
