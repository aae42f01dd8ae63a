"""Rests of threads that use the processor for long, so that the event loop gets the interpreter lock at once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")

# The interpreter would let the event loop wait for 5 ms each time.
_STRETCH_S, _REST_S = 0.001, 0.0002


class ThreadPauses:
    """Let the thread that calls it sleep after each stretch of 1 ms. The first stretch begins at once."""

    def __init__(self) -> None:
        self._rested = time.perf_counter()

    def pause_if_due(self) -> None:
        """Sleep where the stretch is over."""
        if time.perf_counter() - self._rested > _STRETCH_S:
            time.sleep(_REST_S)
            self._rested = time.perf_counter()


def with_pauses(items: Iterable[T]) -> Iterator[T]:
    """Yield the items, and sleep after each stretch of 1 ms. Call it in a thread."""
    rests = ThreadPauses()
    for item in items:
        yield item
        rests.pause_if_due()
