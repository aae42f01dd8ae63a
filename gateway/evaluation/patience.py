"""How an evaluation takes an engine's failures: it tries again, and stops where the engine is gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from gateway.errors import EngineError, EngineFailed, EngineProtocolError, EngineRejected, StartupError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

T = TypeVar("T")
PAUSES_S = (1.0, 4.0, 15.0)
"""Before each further try of a call that failed."""
_GONE_AFTER = 8
# Who answers at all is there; it may be that some questions are too long for it.
_BROKEN_AFTER = 64
_LONGEST_ASKED_S = 60.0


class StageRetries:
    """Of one stage with one engine.

    Args:
        pauses_s: before each further try; an engine that asks for more gets it.
    """

    def __init__(self, pauses_s: Sequence[float] = PAUSES_S) -> None:
        self._pauses_s = pauses_s
        self._failed = 0  # calls in a row, each to its last try
        self._gone: EngineError | None = None

    async def with_it(self, call: Callable[[], Awaitable[T]]) -> T:
        """Raises the EngineError of the last try; at once one that blames the request, which no further try mends."""
        for pause_s in (*self._pauses_s, None):
            try:
                result = await call()
            except EngineError as error:
                rejected = isinstance(error, EngineRejected)
                if isinstance(error, EngineRejected) and error.blames_request:
                    self._failed = 0
                    raise
                if pause_s is None or rejected or self._gone is not None:
                    self._note(error)
                    raise
                await asyncio.sleep(max(pause_s, min(error.retry_after_s or 0.0, _LONGEST_ASKED_S)))
            else:
                self._failed = 0
                return result
        raise AssertionError("the last try returns or raises")

    def _note(self, error: EngineError) -> None:
        """A call has failed to its last try."""
        self._failed += 1
        answers = isinstance(error, EngineFailed | EngineProtocolError)
        if self._failed >= (_BROKEN_AFTER if answers else _GONE_AFTER):
            self._gone = error

    async def side_by_side(self, items: Iterable[T], work: Callable[[T], Awaitable[None]], concurrency: int) -> None:
        """`work` on every item, in their order, so many at a time. Nothing is begun once the engine is gone.

        Raises StartupError then, which says how the run goes on.
        """
        waiting = iter(items)

        async def one_after_another() -> None:
            for item in waiting:
                if self._gone is not None:
                    return
                await work(item)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(one_after_another())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        if self._gone is not None:
            raise StartupError(
                f"Engine '{self._gone.engine}' is gone: {self._failed} calls in a row failed ({self._gone.label}). "
                "What was written is kept: start the engine, and the same command goes on where it stopped."
            ) from self._gone
