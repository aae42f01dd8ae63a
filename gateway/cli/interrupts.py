"""Cancellation of a command by SIGTERM or SIGINT, with orderly cleanup."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

INTERRUPTED = 130
"""A command's exit status after Ctrl-C."""


async def until_interrupted(work: Coroutine[Any, Any, None], name: str) -> bool:
    """Run `work` and return True, or False if a signal canceled it. Its cleanup must stop child processes."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work, name=name)  # the main task of this process
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True
