"""A limit on each of many short waits in a row, such as those for the events of a stream.

`asyncio.timeout` around each of them takes more time than reading the event: it makes a timer and takes it away again.
Here one timer serves them all. A new wait moves a number, and the timer looks at it when it rings.
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
    """`with Watchdog(bite) as dog`: `bite` is called, once, when a wait goes on past its end.

    It must end the wait: by closing the connection that is waited for.

    Attributes:
        bit: it was called.
    """

    __slots__ = ("_bite", "_due", "_loop", "_rings_at", "_timer", "bit")

    def __init__(self, bite: Callable[[], object]) -> None:
        self._bite = bite
        self._loop = asyncio.get_running_loop()
        self._due = math.inf
        self._rings_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self.bit = False

    def watch(self, until: float) -> None:
        """A wait begins that must end by then, on the loop's clock."""
        self._due = until
        if until < self._rings_at:
            self._ring_at(until)

    def rest(self) -> None:
        """The wait is over."""
        self._due = math.inf

    def _ring_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = when
        self._timer = self._loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._timer, self._rings_at = None, math.inf
        if self._due <= self._loop.time():
            self._due, self.bit = math.inf, True
            self._bite()
        elif self._due < math.inf:
            self._ring_at(self._due)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = None, math.inf
