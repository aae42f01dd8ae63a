"""A timeout for each of many short waits in a row, such as waits for the events of a stream.

An `asyncio.timeout` per wait takes longer than reading the event, since each one creates and cancels a timer. A
watchdog uses one timer for all waits. A new wait only stores its deadline, and the timer checks it when it expires.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self


class Watchdog:
    """`with Watchdog(on_timeout) as watchdog`: call `on_timeout` once when a wait exceeds its deadline.

    `on_timeout` must end the wait, for example by closing the connection.

    Attributes:
        timed_out: whether `on_timeout` was called.
    """

    __slots__ = ("_due", "_loop", "_on_timeout", "_timer", "_timer_at", "timed_out")

    def __init__(self, on_timeout: Callable[[], object]) -> None:
        self._on_timeout = on_timeout
        self._loop = asyncio.get_running_loop()
        self._due = math.inf
        self._timer_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self.timed_out = False

    def watch(self, until: float) -> None:
        """Begin a wait that must end by `until`, in loop time."""
        self._due = until
        if until < self._timer_at:
            self._start_timer(until)

    def disarm(self) -> None:
        """End the wait."""
        self._due = math.inf

    def _start_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, math.inf
        if self._due <= self._loop.time():
            self._due, self.timed_out = math.inf, True
            self._on_timeout()
        elif self._due < math.inf:
            self._start_timer(self._due)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = None, math.inf
