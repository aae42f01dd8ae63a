"""Reads from Redis what answers a question of usage; adds it up and writes the answer off the event loop."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from gateway.errors import Overloaded
from gateway.fair_share import FairSemaphore, FairShare
from gateway.usage.parts import Folding, Parts, question_of
from gateway.usage.rests import with_rests
from gateway.usage.usage import Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gateway.rollups.rollup import Dims
    from gateway.rollups.rollups import Page, Retention, Rollups
    from gateway.usage.parts import Part
    from gateway.usage.usage import Ask

P = ParamSpec("P")
T = TypeVar("T")

# Answered at once, and here at once with those that wait: who asks often must not take all the processor's time.
_AT_ONCE = 2
_MOST, _MOST_OF_ONE = 64, 8
_OPERATOR = ""
"""Holds the questions of operators. No tenant has this name."""
# Decoded and merged at once on the event loop: some 3 ms.
_TOTALS_PER_PAGE = 60


class UsageReader:
    """Args:
    retention: for how long which rows are kept.
    """

    def __init__(self, rollups: Rollups, retention: Retention) -> None:
        self.retention = retention
        self._rollups = rollups
        self._parts = Parts()
        self._turns = FairSemaphore(_AT_ONCE)
        self._asking = FairShare(_MOST)

    async def read(
        self,
        ask: Ask,
        write: Callable[[Usage], T],
        *,
        whose: str | None = None,
        shows_money: Callable[[Dims], bool] | None = None,
    ) -> T:
        """Return what `write` makes of the answer.

        Args:
            write: runs in a thread, within the turn of the tenant that asks.
            whose: the tenant that asks; None: an operator, without a bound of its own.
            shows_money: whether money of such rows may be shown; None: of all.

        Raises:
            InvalidRequest: the answer is too long.
            Overloaded: too many questions are being answered.
            RedisError, OSError: Redis cannot be read.
        """
        async with self._turn(whose):
            usage = Usage(ask) if shows_money is None else Usage(ask, shows_money)
            await self._add_up(usage, ask, of_all=shows_money is None and "tenant" not in ask.only)
            return await _in_thread(write, usage)

    async def _add_up(self, usage: Usage, ask: Ask, *, of_all: bool) -> None:
        periods = ask.span.periods
        if ask.is_plain:
            for start in range(0, len(periods), _TOTALS_PER_PAGE):
                for period, row in await self._rollups.totals(periods[start : start + _TOTALS_PER_PAGE]):
                    usage.add_total(period, row)
        elif of_all:
            await self._fold(usage, ask)
        else:
            async for pages in self._rollups.pages(periods, ask.only.get("tenant")):
                await _in_thread(_add, usage, pages)

    async def _fold(self, usage: Usage, ask: Ask) -> None:
        """Count the rows of all tenants: of what was folded before, and has not changed since, only what it came to."""
        folding, question = Folding(usage, ask), question_of(ask)
        read_at = time.monotonic()
        marks = dict(zip(ask.span.periods, await self._rollups.marks(ask.span.periods), strict=True))
        kept = {one: part for one in marks if (part := self._parts.get(question, one, marks[one])) is not None}
        if kept:
            await _in_thread(folding.kept, kept.values())

        def keep(parts: list[Part]) -> None:
            for part in parts:
                if (mark := marks[part.period]) is not None:
                    self._parts.put(question, mark, part, read_at)

        async for pages in self._rollups.pages([one for one in marks if one not in kept]):
            keep(await _in_thread(folding.pages, pages))
        keep(await _in_thread(folding.end))

    @asynccontextmanager
    async def _turn(self, whose: str | None) -> AsyncIterator[None]:
        asking, tenant = self._asking, whose or _OPERATOR
        too_many = whose is not None and asking.held(tenant) >= _MOST_OF_ONE
        if too_many or not asking.admits(tenant, 1.0):
            raise Overloaded(
                f"This process is answering {asking.held(tenant)} questions about usage of this tenant. Send fewer at "
                "once, or try again after Retry-After."
            )
        asking.acquire(tenant, 1.0)
        try:
            async with self._turns.hold(tenant):
                yield
        finally:
            asking.release(tenant)


async def _in_thread(work: Callable[P, T], *args: P.args, **_: P.kwargs) -> T:
    """Return the result of a call that is made in a thread.

    Where the caller disconnects, the thread goes on and the turn lasts until it ends. Otherwise one tenant's callers
    could fill the threads that all tenants share.
    """
    running = asyncio.get_running_loop().run_in_executor(None, work, *args)
    try:
        return await asyncio.shield(running)
    finally:
        if not running.done():
            await asyncio.wait([running])


def _add(usage: Usage, pages: list[Page]) -> None:
    for page in with_rests(pages):
        usage.add_page(page)
