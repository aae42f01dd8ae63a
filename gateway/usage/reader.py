"""Answer usage queries: add up rows and encode the result in threads, with fair sharing among tenants.

The grouped sums of single periods are cached, so that repeated queries are cheap. Every addition to a period changes
its version (`DatabaseReader.versions`), and no version comes back. A cached period is valid while its version is
unchanged. A period that still grows is grouped again, at a limited rate.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from contextlib import asynccontextmanager
from itertools import groupby
from operator import itemgetter
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

from gateway.errors import Overloaded
from gateway.runtime.fair_share import FairSemaphore, FairShare
from gateway.usage.rollup import SumRow
from gateway.usage.sums import ALL_TENANTS
from gateway.usage.threads import in_thread, with_pauses
from gateway.usage.usage import MAX_ROWS, UsageResult, too_large

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from gateway.usage.database_reader import DatabaseReader
    from gateway.usage.receipt_sums import ReceiptSum
    from gateway.usage.rollup import SumDimensions
    from gateway.usage.sums import Period, Retention, StoredRow
    from gateway.usage.usage import UsageQuery

T = TypeVar("T")

_RUNNING_QUERIES = 2
_MAX_QUERIES, _MAX_TENANT_QUERIES = 64, 8
_OPERATOR = ""
"""The tenant of operators' queries. No tenant has this name."""
GroupNames: TypeAlias = tuple[str, ...]
QueryKey: TypeAlias = tuple[GroupNames, tuple[tuple[str, str], ...]]
"""The dimensions and filters of a query, without its time range."""

_MAX_BYTES = 32_000_000
# Estimate of the names of a group, and of Python's overhead.
_GROUP_BYTES = 250
# A growing period is grouped for at most 1/5 of the time. The cached value may be this old.
_REUSE_TIMES, _MAX_REUSE_S = 4, 2.0


class FoldedPeriod(NamedTuple):
    """The encoded sums of a period by group. `cpu_s` is the time that grouping took."""

    period: Period
    groups: list[tuple[GroupNames, bytes]]
    cpu_s: float


class _CacheEntry(NamedTuple):
    version: bytes
    folded: FoldedPeriod
    reused_until: float
    size: int


class FoldedPeriods:
    """A thread-safe cache of grouped periods with LRU eviction. `clock` returns monotonic seconds.

    After its version changed, a period is reused for `reuse_times` its `cpu_s`.
    """

    def __init__(
        self,
        max_bytes: int = _MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
        reuse_times: float = _REUSE_TIMES,
    ) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._reuse_times = reuse_times
        self._entries: OrderedDict[tuple[QueryKey, Period], _CacheEntry] = OrderedDict()
        self._lock = Lock()
        self.held_bytes = 0

    def get(self, key: QueryKey, period: Period, version: bytes | None) -> FoldedPeriod | None:
        """Return a cached period if it is valid."""
        with self._lock:
            entry = self._entries.get((key, period))
            if entry is None or (entry.version != version and self._clock() >= entry.reused_until):
                return None
            self._entries.move_to_end((key, period))
            return entry.folded

    def put(self, key: QueryKey, version: bytes, folded: FoldedPeriod, read_at: float) -> None:
        """Store a period.

        `version` and the time `read_at` are from before the rows were read, so that later additions change the version.
        """
        size = _GROUP_BYTES + sum(_GROUP_BYTES + len(raw) for _, raw in folded.groups)
        reused_until = read_at + min(_MAX_REUSE_S, self._reuse_times * folded.cpu_s)
        with self._lock:
            self._drop((key, folded.period))
            if size > self._max_bytes:
                return
            self._entries[key, folded.period] = _CacheEntry(version, folded, reused_until, size)
            self.held_bytes += size
            while self.held_bytes > self._max_bytes:
                self._drop(next(iter(self._entries)))

    def _drop(self, key: tuple[QueryKey, Period]) -> None:
        if (entry := self._entries.pop(key, None)) is not None:
            self.held_bytes -= entry.size


class UsageReader:
    """Run usage queries. At most two run at once, so that queries do not take all CPU time.

    The limits count running and waiting queries. Operators have no limit of their own. `cache` has grouped periods of
    queries about all tenants.
    """

    def __init__(
        self,
        database: DatabaseReader,
        retention: Retention,
        *,
        max_queries: int = _MAX_QUERIES,
        max_tenant_queries: int = _MAX_TENANT_QUERIES,
        cache: FoldedPeriods | None = None,
    ) -> None:
        self.retention = retention
        self._database = database
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
        """Return `render(result)`, which runs in a thread while the query counts as running.

        Args:
            tenant: the tenant that sent the query; None: an operator.
            shows_money: whether money of rows with these dimensions may be shown; None: always.

        Raises InvalidRequest if the result is too large, Overloaded if too many queries are active, and
        UsageUnavailable if the usage database cannot be read.
        """
        async with self._slot(tenant):
            usage = UsageResult(query) if shows_money is None else UsageResult(query, shows_money)
            if shows_money is None and "tenant" not in query.only and not query.is_total:
                await self._fold(usage, query)
            else:
                tenant = ALL_TENANTS if query.is_total else query.only.get("tenant")
                await self._database.rows(usage.add_rows, query.span.periods, tenant)
            return await in_thread(render, usage)

    async def read_receipt_sums(
        self, query: UsageQuery, render: Callable[[list[ReceiptSum]], T], *, tenant: str | None = None
    ) -> T:
        """Return `render(sums)` of a query by tags and labels; see `read`."""
        async with self._slot(tenant):
            sums = await self._database.receipt_sums(query.span, query.by, query.only, query.granularity)
            return await in_thread(render, sums)

    async def _fold(self, usage: UsageResult, query: UsageQuery) -> None:
        """Add the rows of all tenants: cached groups of unchanged periods, and the rows of other periods."""
        key, read_at = (query.by, tuple(sorted(query.only.items()))), time.monotonic()
        versions = dict(zip(query.span.periods, await self._database.versions(query.span.periods), strict=True))
        cached = {
            period: folded
            for period, version in versions.items()
            if (folded := self._cache.get(key, period, version)) is not None
        }

        def store(folded: FoldedPeriod) -> None:
            if (version := versions[folded.period]) is not None:
                self._cache.put(key, version, folded, read_at)

        def add(rows: Iterable[StoredRow]) -> None:
            groups = ((folded.period, *group) for folded in cached.values() for group in folded.groups)
            for period, names, raw in with_pauses(groups):
                usage.count_sums(1)
                usage.add_folded(period, names, SumRow.from_bytes(raw))
            _fold(usage, query, rows, store)

        await self._database.rows(add, [period for period in versions if period not in cached])

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


def _fold(
    usage: UsageResult, query: UsageQuery, rows: Iterable[StoredRow], store: Callable[[FoldedPeriod], None]
) -> None:
    """Group rows, which come period by period, and add the groups to a result. `store` receives each grouped period.

    Call it in a thread. Raises InvalidRequest if the result becomes too large.
    """
    for period, period_rows in groupby(with_pauses(rows), itemgetter(0)):
        began = time.thread_time()
        folded: dict[GroupNames, SumRow] = {}
        for _, dims, raw in period_rows:
            usage.count_sums(1)
            if query.matches(dims):
                names = tuple(getattr(dims, name) for name in query.by)
                held = folded.get(names)
                if held is not None:
                    held.merge(SumRow.from_bytes(raw))
                elif len(folded) < MAX_ROWS:
                    folded[names] = SumRow.from_bytes(raw)
                else:
                    raise too_large(f"the answer would have more than {MAX_ROWS:,} rows")
        spent_s = time.thread_time() - began
        groups = []
        for names, row in with_pauses(folded.items()):
            groups.append((names, row.to_bytes()))
            usage.add_folded(period, names, row)  # the result may change the row from now on
        store(FoldedPeriod(period, groups, spent_s))
