"""Named background tasks.

The event loop holds only weak references to tasks, and an unread exception of a task is not reported. So every task of
the gateway is started here. It has a name and a reference, is logged when it fails, and can be drained at shutdown.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Coroutine

log = structlog.get_logger()


class BackgroundTasks:
    """The tasks of one process: `spawn` finite tasks, and `keep` loops that run until `close`."""

    def __init__(self) -> None:
        self._finite: set[asyncio.Task[Any]] = set()
        self._loops: set[asyncio.Task[Any]] = set()

    def spawn(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task that ends by itself and must not be lost, such as writing a receipt."""
        return self._start(name, work, self._finite)

    def keep(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a loop that runs until the process stops."""
        return self._start(name, work, self._loops)

    def _start(self, name: str, work: Coroutine[Any, Any, Any], group: set[asyncio.Task[Any]]) -> asyncio.Task[Any]:
        def ended(task: asyncio.Task[Any]) -> None:
            group.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("task_failed", task=task.get_name(), exc_info=error)

        task = asyncio.get_running_loop().create_task(work, name=name)
        group.add(task)
        task.add_done_callback(ended)
        return task

    @property
    def finite(self) -> int:
        """The number of running tasks that end by themselves."""
        return len(self._finite)

    async def drain(self, timeout_s: float) -> int:
        """Wait for finite tasks, including those they spawn. Return how many still run after `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._finite:
                    await asyncio.wait(set(self._finite))
        return len(self._finite)

    async def close(self, *, attempts: int = 25, interval_s: float = 0.2) -> None:
        """Cancel all tasks and wait for their end.

        A cancellation can be lost: before Python 3.12, `asyncio.wait_for` (used by redis-py) swallows one that arrives
        as it completes. So the cancellation is repeated.
        """
        for _ in range(attempts):
            running = self._finite | self._loops
            if not running:
                return
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=interval_s)
        for task in self._finite | self._loops:
            log.error("task_stuck", task=task.get_name())
