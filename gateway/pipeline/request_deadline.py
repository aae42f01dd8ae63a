"""Limit all attempts of a request together. The first attempt has the timeouts of its engine alone."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

from gateway.errors import EngineTimeout

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable

    from gateway.accounting.receipt_builder import ReceiptBuilder

_T = TypeVar("_T")


class RequestDeadline(NamedTuple):
    """The end of all attempts, on the event loop's clock: `total_s` after the start of the request."""

    at: float
    total_s: float

    @classmethod
    def of(cls, builder: ReceiptBuilder) -> Self:
        """Return the deadline: the largest `timeouts.total` of the plan's engines."""
        engines = builder.engine_set.by_name
        total_s = max(engines[student.engine].total_s for student in builder.plan.students)
        return cls(asyncio.get_running_loop().time() + total_s - (time.perf_counter() - builder.started), total_s)

    @property
    def left_s(self) -> float:
        """The seconds until the deadline; negative after it."""
        return self.at - asyncio.get_running_loop().time()

    async def bound(self, engine: str, awaitable: Awaitable[_T]) -> _T:
        """Return the result of a call to an engine. Raises EngineTimeout at the deadline."""
        try:
            async with asyncio.timeout_at(self.at) as limit:
                return await awaitable
        except TimeoutError:
            if not limit.expired():
                raise
            message = f"Engine '{engine}' did not answer before the request's deadline of {self.total_s:g} s."
            raise EngineTimeout(message, engine=engine) from None

    async def stream(self, engine: str, groups: AsyncGenerator[_T, None]) -> AsyncGenerator[_T, None]:
        """Yield what the call to an engine yields. Raises EngineTimeout at the deadline."""
        async with aclosing(groups):
            while True:
                try:
                    group = await self.bound(engine, anext(groups))
                except StopAsyncIteration:
                    return
                yield group


def left_s(deadline: RequestDeadline | None) -> float:
    """Return the seconds until the deadline; infinite without one."""
    return math.inf if deadline is None else deadline.left_s


def within(deadline: RequestDeadline | None, engine: str, groups: AsyncGenerator[_T, None]) -> AsyncGenerator[_T, None]:
    """Return the stream of a call to an engine, with the deadline if there is one."""
    return groups if deadline is None else deadline.stream(engine, groups)
