"""Signals set the events of a process."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from gateway.server.stopping import reload_on_sighup

if TYPE_CHECKING:
    import pytest


async def hang_up() -> tuple[bool, bool]:
    """Send SIGHUP to this process. Return whether it set the reload event, and whether it set the stop event."""
    stop = asyncio.Event()
    reload = reload_on_sighup(stop)
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(10):
            while not reload.is_set() and not stop.is_set():
                await asyncio.sleep(0.001)
        return reload.is_set(), stop.is_set()
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)


async def test_sighup_triggers_a_reload() -> None:
    assert await hang_up() == (True, False)


async def test_sighup_of_a_closed_terminal_stops_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed terminal has no reader of the log, and standard error is no longer a terminal."""
    answers = iter([True, False])
    monkeypatch.setattr(os, "isatty", lambda _: next(answers))
    assert await hang_up() == (False, True)


async def test_sighup_to_a_process_on_an_open_terminal_triggers_a_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: True)
    assert await hang_up() == (True, False)
