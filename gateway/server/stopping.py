"""Set events on signals, on messages of the supervisor, and when the parent process has ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

import msgspec

from gateway.server import SupervisorMessage

if TYPE_CHECKING:
    from collections.abc import Callable

USAGE_FINISH_S = 5.0  # time for a usage worker to write waiting receipts after the signal to stop


def stop_on_signals() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set. Call it inside the event loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def reload_on_sighup(stop: asyncio.Event) -> asyncio.Event:
    """Return an event that SIGHUP sets. If the terminal was closed, SIGHUP sets `stop` instead."""
    reload = asyncio.Event()
    on_terminal = os.isatty(sys.stderr.fileno())

    def on_sighup() -> None:
        terminal_closed = on_terminal and not os.isatty(sys.stderr.fileno())
        (stop if terminal_closed else reload).set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_sighup)
    return reload


def stop_at_end_of_stdin(
    stop: asyncio.Event, on_message: Callable[[SupervisorMessage], object] = lambda _: None
) -> None:
    """Set `stop` when stdin ends, and call `on_message` with each message before.

    The parent has the other end of stdin, and the kernel closes it when the parent ends.
    """
    loop = asyncio.get_running_loop()
    stdin, received = sys.stdin.fileno(), bytearray()

    def on_readable() -> None:
        part = os.read(stdin, 65_536)
        if not part:
            loop.remove_reader(stdin)
            stop.set()
        received.extend(part)
        *lines, rest = received.split(b"\n")
        received[:] = rest
        for line in lines:
            on_message(msgspec.json.decode(line, type=SupervisorMessage))

    loop.add_reader(stdin, on_readable)
