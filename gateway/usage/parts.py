"""Cache the grouped sums of single periods, so that repeated queries are cheap.

Every addition to a period changes its version (`SumsReader.versions`), and no version comes back. A cached period is
valid while its version is unchanged. A period that still grows is grouped again, at a limited rate.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from itertools import groupby
from operator import itemgetter
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from gateway.usage.rests import ThreadPauses
from gateway.usage.rollup import SumRow
from gateway.usage.usage import MAX_ROWS, too_large

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gateway.usage.sums import Period, StoredRow
    from gateway.usage.usage import UsageQuery, UsageResult

GroupNames: TypeAlias = tuple[str, ...]
QueryKey: TypeAlias = tuple[GroupNames, tuple[tuple[str, str], ...]]
"""The dimensions and filters of a query, without its time range."""

_MAX_BYTES = 32_000_000
# Estimate of the names of a group, and of Python's overhead.
_GROUP_BYTES = 250
# A growing period is grouped for at most 1/5 of the time. The cached value may be this old.
_REUSE_TIMES, _MAX_REUSE_S = 4, 2.0


def query_key(query: UsageQuery) -> QueryKey:
    """Return the key of a query in the cache."""
    return query.by, tuple(sorted(query.only.items()))


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
    """A cache of grouped periods with LRU eviction. It is thread-safe.

    Args:
        clock: returns monotonic seconds.
        reuse_times: a period is reused for this multiple of its `cpu_s` after its version changed.
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

        Args:
            version: the version of the period from before the rows were read, so that later additions change it.
            read_at: when the version was read, by the clock.
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


def add_folded_periods(usage: UsageResult, periods: Iterable[FoldedPeriod]) -> None:
    """Add cached periods to a result. Call it in a thread. Raises InvalidRequest if the result becomes too large."""
    pauses = ThreadPauses()
    for folded in periods:
        usage.count_sums(len(folded.groups))
        for names, raw in folded.groups:
            usage.add_folded(folded.period, names, SumRow.from_bytes(raw))
            pauses.pause_if_due()


def fold(
    usage: UsageResult, query: UsageQuery, rows: Iterable[StoredRow], store: Callable[[FoldedPeriod], None]
) -> None:
    """Group rows, which come period by period, and add the groups to a result. Call it in a thread.

    Args:
        store: receives each grouped period.

    Raises InvalidRequest if the result becomes too large.
    """
    pauses = ThreadPauses()
    for period, period_rows in groupby(rows, itemgetter(0)):
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
            pauses.pause_if_due()
        spent_s = time.thread_time() - began
        groups = []
        for names, row in folded.items():
            groups.append((names, row.to_bytes()))
            usage.add_folded(period, names, row)  # the result may change the row from now on
            pauses.pause_if_due()
        store(FoldedPeriod(period, groups, spent_s))
