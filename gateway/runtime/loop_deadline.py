"""A deadline that counts only time in which the event loop ran.

A late timer is no evidence of a slow peer. The reply may be unread in the socket, because a callback blocked the loop
or the process was not scheduled. `asyncio.timeout` would cancel the reader at that moment and lose the reply.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

_PARTS = 4
_LATE_SHARE = 0.5
"""A part counts as late when its timer is late by more than this share of the part. Another part follows it."""
_MAX_PARTS = 8
"""The limit with late parts. A loop that is always late has read its sockets so often that no reply was missed."""
MAX_LAG_S = 5.0
"""The largest extension of a deadline."""
_PASSES = 4
"""Passes of the loop between the end of the deadline and the timeout. One pass reads the ready sockets. The next one
passes the bytes to their reader."""


class LoopDeadline:
    """`async with LoopDeadline(seconds)`: cancel the block and raise TimeoutError when the deadline has passed.

    The deadline consists of four parts, each with a timer of its own. A part counts once, however late its timer
    expires, and the loop reads its sockets between two parts. After the last part, each late timer adds another one, up
    to eight parts. So a loop that was held for a second has three parts left. A peer that never replies is detected
    after `seconds` plus the time for which the loop was held. `MAX_LAG_S` bounds that extension.
    """

    __slots__ = ("_due", "_ended", "_ends_s", "_limit", "_loop", "_part_s", "_timer")

    def __init__(self, seconds: float) -> None:
        self._part_s = seconds / _PARTS
        self._ends_s = seconds + MAX_LAG_S
        self._ended = 0
        self._limit = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._ends_s += now
        self._begin_part(now)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._limit.__aexit__(kind, error, trace)

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
