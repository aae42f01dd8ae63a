"""Timeouts for waits in a row, and deadlines that exclude lag of the event loop."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

_PARTS = 4
_LATE_SHARE = 0.5  # a part is late when its timer is late by more than this share of it; another part follows it
_MAX_PARTS = 8  # the limit with late parts. By then a loop that is always late has read its sockets often enough
MAX_LAG_S = 5.0  # the largest extension of a deadline
# Passes of the loop before the timeout: one reads the ready sockets, and the next passes the bytes to their reader.
_PASSES = 4


class Watchdog:
    """`with Watchdog(on_timeout) as watchdog`: call `on_timeout` once when a wait exceeds its deadline.

    The watchdog is for many short waits in a row, such as waits for the events of a stream. An `asyncio.timeout` per
    wait takes longer than reading the event, since each one creates and cancels a timer. A watchdog uses one timer for
    all waits. A new wait only stores its deadline, and the timer checks it when it expires.

    `on_timeout` must end the wait, for example by closing the connection. `timed_out` tells whether it was called.
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

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = None, math.inf


class LoopDeadline:
    """`async with LoopDeadline(seconds)`: cancel the block and raise TimeoutError when the deadline has passed.

    The deadline counts only time in which the event loop ran. A late timer is no evidence of a slow peer. The reply may
    be unread in the socket, because a callback blocked the loop or the process was not scheduled. `asyncio.timeout`
    would cancel the reader at that moment and lose the reply.

    The deadline consists of four parts, each with a timer of its own. A part counts once, however late its timer
    expires, and the loop reads its sockets between two parts. After the last part, each late timer adds another one, up
    to eight parts. So a loop that was held for a second has three parts left. A peer that never replies is detected
    after `seconds` plus the time for which the loop was held. `max_lag_s` bounds that extension.
    """

    __slots__ = ("_due", "_ended", "_ends_s", "_limit", "_loop", "_part_s", "_timer")

    def __init__(self, seconds: float, *, max_lag_s: float = MAX_LAG_S) -> None:
        self._part_s = seconds / _PARTS
        self._ends_s = seconds + max_lag_s
        self._ended = 0
        self._limit = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._ends_s += now
        self._begin_part(now)

    async def __aexit__(self, *details: Any) -> None:
        self._timer.cancel()
        await self._limit.__aexit__(*details)

    def _begin_part(self, now: float) -> None:
        self._due = now + self._part_s
        self._timer: asyncio.Handle = self._loop.call_at(self._due, self._end_part)

    def _end_part(self) -> None:
        now = self._loop.time()
        self._ended += 1
        is_late = now > self._due + _LATE_SHARE * self._part_s
        if now < self._ends_s and self._ended < (_MAX_PARTS if is_late else _PARTS):
            self._begin_part(now)
        else:
            self._pass(_PASSES)

    def _pass(self, remaining: int) -> None:
        if remaining:
            self._timer = self._loop.call_soon(self._pass, remaining - 1)
        else:
            self._limit.reschedule(self._loop.time())
