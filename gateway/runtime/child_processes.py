"""Start, end and restart child processes."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from gateway.runtime.tasks import BackgroundTasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

_FIRST_PAUSE_S = 0.5
_LAST_PAUSE_S = 30.0
_STEADY_S = 60.0


class ProcessNotStarted(Exception):
    """The operating system could not start a process."""


async def end(process: asyncio.subprocess.Process | None, limit_s: float) -> None:
    """Terminate a process. Kill it when it has not ended after `limit_s` seconds. An ended process is ignored."""
    if process is None or process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(limit_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


@asynccontextmanager
async def running_module(
    module: str, arguments: Iterable[str], stop: asyncio.Event, limit_s: float, **options: Any
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a Python module in a child process, and `end` it when `stop` is set. Raises ProcessNotStarted.

    The child's stdin closes when this process ends, and then the child stops. Ctrl-C at the terminal does not reach the
    child.
    """
    try:
        process = await start_module(module, arguments, **options)
    except OSError as error:
        raise ProcessNotStarted(error.strerror) from error

    async def end_at_stop() -> None:
        await stop.wait()
        await end(process, limit_s)

    stopping = BackgroundTasks().spawn(f"stop:{module}", end_at_stop())
    try:
        yield process
    finally:
        stopping.cancel()


async def start_module(module: str, arguments: Iterable[str], **options: Any) -> asyncio.subprocess.Process:
    """Start a Python module in a process group of its own. Raises OSError."""
    command = (sys.executable, "-P", "-m", module, *arguments)
    return await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, start_new_session=True, **options
    )


class RestartPause:
    """The growing pause before a process is restarted. One that ran for a minute is restarted after the first pause."""

    def __init__(self) -> None:
        self._next_s = _FIRST_PAUSE_S
        self._began = time.monotonic()

    def after_end(self) -> float:
        """Return the pause in seconds for a process that ended now."""
        if time.monotonic() - self._began >= _STEADY_S:
            self._next_s = _FIRST_PAUSE_S
        pause_s, self._next_s = self._next_s, min(_LAST_PAUSE_S, self._next_s * 2)
        return pause_s

    async def wait(self, pause_s: float, stop: asyncio.Event) -> None:
        """Wait for the pause, or until `stop` is set."""
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await stop.wait()
        self._began = time.monotonic()
