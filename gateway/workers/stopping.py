"""How a process hears that it is to stop: by a signal, and a worker also when its supervisor is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import sys


def asked_to_stop() -> asyncio.Event:
    """Set by SIGTERM and by SIGINT. To be called inside the event loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def stop_at_end_of_stdin(stop: asyncio.Event) -> None:
    """Set `stop` when stdin ends: the supervisor holds its other end, and the kernel closes that however it ends."""
    loop = asyncio.get_running_loop()
    stdin = sys.stdin.fileno()

    def look() -> None:
        if not os.read(stdin, 4096):
            loop.remove_reader(stdin)
            stop.set()

    loop.add_reader(stdin, look)
