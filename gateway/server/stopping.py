"""How a process hears what it is to do: by signals; a worker is to stop also when its supervisor is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

USAGE_FINISH_S = 5.0
"""How long a usage worker may write what waits after it was told to stop."""


def stop_on_signals() -> asyncio.Event:
    """Set by SIGTERM and by SIGINT. To be called inside the event loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def reload_on_sighup(stop: asyncio.Event) -> asyncio.Event:
    """Set by SIGHUP. Where that tells of a terminal that is gone, `stop` is set, as ever."""
    reload = asyncio.Event()
    on_terminal = os.isatty(sys.stderr.fileno())

    def hear() -> None:
        terminal_is_gone = on_terminal and not os.isatty(sys.stderr.fileno())
        (stop if terminal_is_gone else reload).set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hear)
    return reload


def stop_at_end_of_stdin(stop: asyncio.Event) -> None:
    """Set `stop` when stdin ends: the supervisor holds its other end, and the kernel closes that however it ends."""
    loop = asyncio.get_running_loop()
    stdin = sys.stdin.fileno()

    def look() -> None:
        if not os.read(stdin, 4096):
            loop.remove_reader(stdin)
            stop.set()

    loop.add_reader(stdin, look)
