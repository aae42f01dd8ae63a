"""Retries of engine calls in an evaluation; a stage stops if its engine is gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from gateway.errors import EngineError, EngineFailed, EngineProtocolError, EngineRejected, StartupError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

T = TypeVar("T")
PAUSES_S = (1.0, 4.0, 15.0)
"""Pauses in seconds before each retry of a failed call."""
_GONE_AFTER_FAILURES = 8
# An engine that responds with errors is running; some questions may be too long for it.
_BROKEN_AFTER_FAILURES = 64
_MAX_RETRY_AFTER_S = 60.0


class StageRetries:
    """Retries of one stage with one engine.

    Args:
        pauses_s: Pauses in seconds before each retry; a longer Retry-After of the engine is respected.
    """

    def __init__(self, pauses_s: Sequence[float] = PAUSES_S) -> None:
        self._pauses_s = pauses_s
        self._failed = 0  # consecutive calls that failed after all retries
        self._gone: EngineError | None = None

    async def call(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `call` with retries.

        Raises the EngineError of the last attempt. An error that blames the request is raised without a retry.
        """
        for pause_s in (*self._pauses_s, None):
            try:
                result = await call()
            except EngineError as error:
                rejected = isinstance(error, EngineRejected)
                if isinstance(error, EngineRejected) and error.blames_request:
                    self._failed = 0
                    raise
                if pause_s is None or rejected or self._gone is not None:
                    self._count_failure(error)
                    raise
                await asyncio.sleep(max(pause_s, min(error.retry_after_s or 0.0, _MAX_RETRY_AFTER_S)))
            else:
                self._failed = 0
                return result
        raise AssertionError("the last attempt returns or raises")

    def _count_failure(self, error: EngineError) -> None:
        """Count a call that failed after all retries."""
        self._failed += 1
        answers = isinstance(error, EngineFailed | EngineProtocolError)
        if self._failed >= (_BROKEN_AFTER_FAILURES if answers else _GONE_AFTER_FAILURES):
            self._gone = error

    async def run_concurrently(
        self, items: Iterable[T], work: Callable[[T], Awaitable[None]], concurrency: int
    ) -> None:
        """Run `work` on every item in order, with limited concurrency; start nothing more once the engine is gone.

        Raises StartupError if the engine is gone; the message explains how to resume.
        """
        queue = iter(items)

        async def run_worker() -> None:
            for item in queue:
                if self._gone is not None:
                    return
                await work(item)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(run_worker())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if self._gone is not None:
            raise StartupError(
                f"Engine '{self._gone.engine}' is gone: {self._failed} consecutive calls failed ({self._gone.label}). "
                "All texts are stored: start the engine and repeat the command to resume."
            ) from self._gone
