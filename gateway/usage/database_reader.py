"""Read the usage database for the event loop. Queries and decoding run in threads.

All methods raise UsageUnavailable if the database cannot be read.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from gateway.errors import UsageUnavailable
from gateway.runtime.fair_share import FairSemaphore
from gateway.usage.rollup import SumRow
from gateway.usage.unusual_spend import find_unusual

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from gateway.quality.book import ComparisonScope
    from gateway.quality.comparison import QualityTally
    from gateway.quality.outcome import OutcomeSums
    from gateway.quality.trend import AgreementSums, RouteScope
    from gateway.usage.receipt_sums import ReceiptSum
    from gateway.usage.search import FoundReceipt, ReceiptSearch, SearchPage
    from gateway.usage.span import UsageSpan
    from gateway.usage.sums import Granularity, Period, StoredRow
    from gateway.usage.threads import QueryThreads
    from gateway.usage.unusual_spend import UnusualSpend
    from gateway.usage.uptime import EngineUptime

T = TypeVar("T")

_LAST_DAY = 2**31 - 1
_RECEIPTS_AT_ONCE = 2
_RECEIPT_TIMEOUT_S = 5.0


class DatabaseReader:
    """Read sums, receipts, comparisons and the uptime of engines."""

    def __init__(self, threads: QueryThreads) -> None:
        self._threads = threads

    async def rows(
        self, work: Callable[[Iterator[StoredRow]], T], periods: Sequence[Period], tenant: str | None = None
    ) -> T:
        """Return `work(rows)`, run in a thread, with the rows of these periods: of all tenants, or of `tenant`.

        The rows of all tenants come in the order of the periods. The tenant `ALL_TENANTS` has the totals.
        """
        return await self._threads.scan(lambda queries: work(queries.rows(periods, tenant)))

    async def totals(self, periods: Sequence[Period]) -> list[tuple[Period, SumRow]]:
        """Return the sums over all tenants by period. A period without receipts has an empty row."""
        sums = await self._threads.query(lambda queries: queries.totals(periods))
        return [(period, sums.get(period) or SumRow()) for period in periods]

    async def versions(self, periods: Sequence[Period]) -> list[bytes | None]:
        """Return the version of each period, or None for a period without receipts.

        Every addition changes the version, and no version comes back. The version is a digest of the total: an added or
        replaced receipt always changes a counter.
        """
        found = await self._threads.query(lambda queries: queries.versions(periods))
        return [found.get(period) for period in periods]

    async def search(self, where: ReceiptSearch, limit: int, before: str | None = None) -> SearchPage:
        """Return a page of receipts, the newest first. `before` is `following` of the page before."""
        return await self._threads.scan(lambda queries: queries.search(where, limit, before))

    async def receipt(self, receipt_id: str, tenant: str | None = None) -> FoundReceipt | None:
        """Return a receipt with its shadows. `tenant` is None for any tenant."""
        return await self._threads.query(lambda queries: queries.with_shadows(receipt_id, tenant))

    async def comparisons(
        self, since_day: int, until_day: int = _LAST_DAY, tenant: str | None = None, route: str | None = None
    ) -> dict[ComparisonScope, QualityTally]:
        """Return the sums of comparisons of a range of UTC days (days since the Unix epoch)."""
        return await self._threads.query(lambda queries: queries.comparisons(since_day, until_day, tenant, route))

    async def agreements(
        self, since: float, until: float, tenant: str | None, route: str | None
    ) -> dict[RouteScope, AgreementSums]:
        """Return the sums of guided answers' agreement by route, of requests in [since, until), in Unix seconds."""
        return await self._threads.scan(lambda queries: queries.agreements(since, until, tenant, route))

    async def outcomes(
        self, tenant: str, route: str, since_day: int, until_day: int
    ) -> dict[tuple[str, str], OutcomeSums]:
        """Return the sums of outcomes of a route's variants by variant and source, for a range of UTC days."""
        return await self._threads.scan(lambda queries: queries.outcomes(tenant, route, since_day, until_day))

    async def receipt_sums(
        self, when: UsageSpan, by: Sequence[str], only: Mapping[str, str], granularity: Granularity | None
    ) -> list[ReceiptSum]:
        """Return the sums by tag, labels and other dimensions. Raises InvalidRequest if there are too many."""
        return await self._threads.scan(lambda queries: queries.receipt_sums(when, by, only, granularity))

    async def unusual_spend(self, hour: int, factor: float, min_usd: float) -> list[UnusualSpend]:
        """Return the tenants with unusual spend in an hour; see `find_unusual`."""
        return await self._threads.scan(lambda queries: find_unusual(queries, hour, factor, min_usd))

    async def uptime(self, days: Sequence[int]) -> list[dict[str, EngineUptime]]:
        """Return the uptime by engine for each day. `days` are starts in Unix seconds."""
        return await self._threads.query(lambda queries: queries.uptime(days))


class ReceiptFinder:
    """Find receipts, with fair sharing among tenants. A call takes at most `timeout_s`.

    Do not share the threads, so that other queries delay none of these.
    """

    def __init__(self, threads: QueryThreads, timeout_s: float = _RECEIPT_TIMEOUT_S) -> None:
        self._threads = threads
        self._timeout_s = timeout_s
        self._running = FairSemaphore(_RECEIPTS_AT_ONCE)

    async def find(self, tenant: str, receipt_id: str) -> bytes | None:
        """Return a tenant's receipt as JSON, or None if the database has no such receipt."""
        try:
            async with asyncio.timeout(self._timeout_s), self._running.hold(tenant):
                return await self._threads.query(lambda queries: queries.receipt(tenant, receipt_id))
        except TimeoutError as error:
            raise UsageUnavailable from error
