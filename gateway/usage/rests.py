"""Pauses of CPU-bound threads, so that the event loop gets the interpreter lock without delay."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")

# Without pauses, the event loop would wait for up to the interpreter's switch interval each time.
_INTERVAL_S, _PAUSE_S = 0.001, 0.0002


class ThreadPauses:
    """Make the calling thread sleep after each interval of 1 ms. The first interval begins at construction."""

    def __init__(self) -> None:
        self._interval_start = time.perf_counter()

    def pause_if_due(self) -> None:
        """Sleep if the interval is over."""
        if time.perf_counter() - self._interval_start > _INTERVAL_S:
            time.sleep(_PAUSE_S)
            self._interval_start = time.perf_counter()


def with_pauses(items: Iterable[T]) -> Iterator[T]:
    """Yield the items, and sleep after each interval of 1 ms. Call it in a thread."""
    pauses = ThreadPauses()
    for item in items:
        yield item
        pauses.pause_if_due()
