"""Answer questions of usage: add rows up and write the answer in threads, in fair turns."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from gateway.errors import Overloaded
from gateway.runtime.fair_share import FairSemaphore, FairShare
from gateway.usage.parts import FoldedPeriods, add_folded_periods, fold, query_key
from gateway.usage.sums import ALL_TENANTS
from gateway.usage.threads import in_thread
from gateway.usage.usage import UsageResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from gateway.usage.parts import FoldedPeriod
    from gateway.usage.rollup import SumDimensions
    from gateway.usage.sums import Retention, StoredRow
    from gateway.usage.sums_reader import SumsReader
    from gateway.usage.usage import UsageQuery

T = TypeVar("T")

# Answered at once, and here at once with those that wait: who asks often must not take all the processor's time.
_AT_ONCE = 2
_MOST, _MOST_OF_ONE = 64, 8
_OPERATOR = ""
"""Holds the questions of operators. No tenant has this name."""


class UsageReader:
    """Args:
    retention: for how long which rows are kept.
    """

    def __init__(self, sums: SumsReader, retention: Retention) -> None:
        self.retention = retention
        self._sums = sums
        self._parts = FoldedPeriods()
        self._turns = FairSemaphore(_AT_ONCE)
        self._asking = FairShare(_MOST)

    async def read(
        self,
        ask: UsageQuery,
        write: Callable[[UsageResult], T],
        *,
        tenant: str | None = None,
        shows_money: Callable[[SumDimensions], bool] | None = None,
    ) -> T:
        """Return what `write` makes of the answer.

        Args:
            write: runs in a thread, within the turn of the tenant that asks.
            tenant: the tenant that asks; None: an operator, without a bound of its own.
            shows_money: whether money of such rows may be shown; None: of all.

        Raises:
            InvalidRequest: the answer is too long.
            Overloaded: too many questions are being answered.
            UsageUnavailable: the usage database cannot be read.
        """
        async with self._turn(tenant):
            usage = UsageResult(ask) if shows_money is None else UsageResult(ask, shows_money)
            await self._add_up(usage, ask, of_all=shows_money is None and "tenant" not in ask.only)
            return await in_thread(write, usage)

    async def _add_up(self, usage: UsageResult, ask: UsageQuery, *, of_all: bool) -> None:
        if of_all and not ask.is_total:
            await self._fold(usage, ask)
        else:
            tenant = ALL_TENANTS if ask.is_total else ask.only.get("tenant")
            await self._sums.read(usage.add_rows, ask.span.periods, tenant)

    async def _fold(self, usage: UsageResult, ask: UsageQuery) -> None:
        """Count the rows of all tenants: of what was folded before, and has not changed since, only what it came to."""
        question, read_at = query_key(ask), time.monotonic()
        marks = dict(zip(ask.span.periods, await self._sums.marks(ask.span.periods), strict=True))
        kept = {one: part for one in marks if (part := self._parts.get(question, one, marks[one])) is not None}

        def keep(part: FoldedPeriod) -> None:
            if (mark := marks[part.period]) is not None:
                self._parts.put(question, mark, part, read_at)

        def add(rows: Iterable[StoredRow]) -> None:
            add_folded_periods(usage, kept.values())
            fold(usage, ask, rows, keep)

        await self._sums.read(add, [one for one in marks if one not in kept])

    @asynccontextmanager
    async def _turn(self, tenant: str | None) -> AsyncIterator[None]:
        active, group = self._asking, tenant or _OPERATOR
        too_many = tenant is not None and active.held(group) >= _MOST_OF_ONE
        if too_many or not active.admits(group, 1.0):
            raise Overloaded(
                f"This process is answering {active.held(group)} questions about usage of this tenant. Send fewer at "
                "once, or try again after Retry-After."
            )
        active.acquire(group, 1.0)
        try:
            async with self._turns.hold(group):
                yield
        finally:
            active.release(group)
