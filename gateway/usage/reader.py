"""Answer usage queries: add up rows and encode the result in threads, with fair sharing among tenants."""

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

_RUNNING_QUERIES = 2
_MAX_QUERIES, _MAX_TENANT_QUERIES = 64, 8
_OPERATOR = ""
"""The tenant of operators' queries. No tenant has this name."""


class UsageReader:
    """Run usage queries. At most two run at once, so that queries do not take all CPU time.

    Args:
        retention: retention of the sums.
        max_queries: running and waiting queries.
        max_tenant_queries: running and waiting queries of one tenant. Operators have no such limit.
        cache: grouped periods of queries about all tenants.
    """

    def __init__(
        self,
        sums: SumsReader,
        retention: Retention,
        *,
        max_queries: int = _MAX_QUERIES,
        max_tenant_queries: int = _MAX_TENANT_QUERIES,
        cache: FoldedPeriods | None = None,
    ) -> None:
        self.retention = retention
        self._sums = sums
        self._cache = FoldedPeriods() if cache is None else cache
        self._running = FairSemaphore(_RUNNING_QUERIES)
        self._active = FairShare(max_queries)
        self._max_tenant_queries = max_tenant_queries

    async def read(
        self,
        query: UsageQuery,
        render: Callable[[UsageResult], T],
        *,
        tenant: str | None = None,
        shows_money: Callable[[SumDimensions], bool] | None = None,
    ) -> T:
        """Return `render(result)`.

        Args:
            render: runs in a thread while the query counts as running.
            tenant: the tenant that sent the query; None: an operator.
            shows_money: whether money of rows with these dimensions may be shown; None: always.

        Raises:
            InvalidRequest: the result is too large.
            Overloaded: too many queries are active.
            UsageUnavailable: the usage database cannot be read.
        """
        async with self._slot(tenant):
            usage = UsageResult(query) if shows_money is None else UsageResult(query, shows_money)
            await self._add_up(usage, query, all_tenants=shows_money is None and "tenant" not in query.only)
            return await in_thread(render, usage)

    async def _add_up(self, usage: UsageResult, query: UsageQuery, *, all_tenants: bool) -> None:
        if all_tenants and not query.is_total:
            await self._fold(usage, query)
        else:
            tenant = ALL_TENANTS if query.is_total else query.only.get("tenant")
            await self._sums.read(usage.add_rows, query.span.periods, tenant)

    async def _fold(self, usage: UsageResult, query: UsageQuery) -> None:
        """Add the rows of all tenants: cached groups of unchanged periods, and the rows of other periods."""
        key, read_at = query_key(query), time.monotonic()
        versions = dict(zip(query.span.periods, await self._sums.versions(query.span.periods), strict=True))
        cached = {
            period: folded
            for period, version in versions.items()
            if (folded := self._cache.get(key, period, version)) is not None
        }

        def store(folded: FoldedPeriod) -> None:
            if (version := versions[folded.period]) is not None:
                self._cache.put(key, version, folded, read_at)

        def add(rows: Iterable[StoredRow]) -> None:
            add_folded_periods(usage, cached.values())
            fold(usage, query, rows, store)

        await self._sums.read(add, [period for period in versions if period not in cached])

    @asynccontextmanager
    async def _slot(self, tenant: str | None) -> AsyncIterator[None]:
        active, group = self._active, tenant or _OPERATOR
        too_many = tenant is not None and active.held(group) >= self._max_tenant_queries
        if too_many or not active.admits(group, 1.0):
            raise Overloaded(
                f"This process is answering {active.held(group)} usage queries of this tenant. Send fewer queries at "
                "once, or retry after Retry-After."
            )
        active.acquire(group, 1.0)
        try:
            async with self._running.hold(group):
                yield
        finally:
            active.release(group)
