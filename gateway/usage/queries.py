"""Read the usage database: receipts, sums, comparisons and the uptime of engines. All calls block: use threads."""

from __future__ import annotations

from collections import defaultdict
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from sqlalchemy import BigInteger, Double, bindparam, cast, func, select, tuple_

from gateway.pricing import dollars
from gateway.quality.book import ComparisonScope
from gateway.quality.comparison import QualityTally
from gateway.quality.outcome import OutcomeSums
from gateway.quality.trend import AgreementSums, RouteScope
from gateway.usage.entries import batched
from gateway.usage.packing import unpack
from gateway.usage.partitions import day_windows, keep_few_locks
from gateway.usage.receipt_search import search, shadows_of
from gateway.usage.receipt_sum_query import receipt_sums
from gateway.usage.rollup import SumDimensions, SumRow
from gateway.usage.search import FoundReceipt
from gateway.usage.sums import ALL_TENANTS, SECONDS, Period, StoredRow
from gateway.usage.tables import (
    COMPARISONS,
    DAY_S,
    OUTCOME_ROWS,
    RECEIPTS,
    SUMS,
    UNREADABLE,
    UPTIME,
    of_days,
    time_of,
)
from gateway.usage.threads import with_pauses
from gateway.usage.uptime import EngineUptime

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection

    from gateway.usage.receipt_sums import ReceiptSum
    from gateway.usage.search import ReceiptSearch, SearchPage
    from gateway.usage.span import UsageSpan
    from gateway.usage.sql import ReceiptKey
    from gateway.usage.sums import Granularity

_STARTS_PER_QUERY = 500
_DAYS_PER_QUERY = 50
_ROWS_AT_ONCE = 500
_C = SUMS.c
_DIMS = (_C.tenant, _C.key, _C.route, _C.mode, _C.teacher, _C.student)
_OF_PERIOD = select(*_DIMS, _C.row).where(
    _C.seconds == bindparam("seconds"), _C.start == bindparam("start"), _C.tenant > ALL_TENANTS
)
_OF_TENANT = select(_C.start, *_DIMS, _C.row).where(
    _C.seconds == bindparam("seconds"),
    _C.start.in_(bindparam("starts", expanding=True)),
    _C.tenant == bindparam("tenant"),
)


class _Owner(msgspec.Struct):
    tenant: str


class ReceiptFilter(NamedTuple):
    """A filter of receipts by time of the request, [since, until) in Unix seconds, and by tenant."""

    since: float | None = None
    until: float | None = None
    tenant: str | None = None

    def terms(self) -> Iterator[ColumnElement[bool]]:
        """Return SQL conditions, without those of `days`."""
        if self.since is not None:
            yield RECEIPTS.c.created >= self.since
        if self.until is not None:
            yield RECEIPTS.c.created < self.until
        if self.tenant is not None:
            yield RECEIPTS.c.tenant == self.tenant

    def days(self) -> tuple[int | None, int | None]:
        """Return the first and last `day`, which may differ by one from the day of `created`."""
        first = None if self.since is None else int(self.since // DAY_S) - 1
        return first, None if self.until is None else int(self.until // DAY_S) + 1


class UsageQueries:
    """Queries of a read transaction. Every method blocks, and raises SQLAlchemyError and ValueError."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def rows(self, periods: Sequence[Period], tenant: str | None) -> Iterator[StoredRow]:
        """Yield the rows of these periods; see `DatabaseReader.rows`."""
        self.connection.execution_options(yield_per=_ROWS_AT_ONCE)
        if tenant is not None:
            yield from self._of_tenant(periods, tenant)
            return
        for period in periods:
            parameters = {"seconds": SECONDS[period.granularity], "start": period.start}
            for *dims, row in self.connection.execute(_OF_PERIOD, parameters):
                yield StoredRow(period, SumDimensions(*dims), row)

    def _of_tenant(self, periods: Iterable[Period], tenant: str) -> Iterator[StoredRow]:
        by_length: dict[Granularity, dict[int, Period]] = defaultdict(dict)
        for period in periods:
            by_length[period.granularity][period.start] = period
        for granularity, by_start in by_length.items():
            for batch in batched(list(by_start), _STARTS_PER_QUERY):
                parameters = {"seconds": SECONDS[granularity], "starts": batch, "tenant": tenant}
                for start, *dims, row in self.connection.execute(_OF_TENANT, parameters):
                    yield StoredRow(by_start[start], SumDimensions(*dims), row)

    def totals(self, periods: Sequence[Period]) -> dict[Period, SumRow]:
        """Return the sums over all tenants by period, without periods that have no receipts."""
        rows = with_pauses(self._of_tenant(periods, ALL_TENANTS))
        return {stored.period: SumRow.from_bytes(stored.row) for stored in rows}

    def versions(self, periods: Sequence[Period]) -> dict[Period, bytes]:
        """Return the version of each period that has receipts; see `DatabaseReader.versions`."""
        rows = with_pauses(self._of_tenant(periods, ALL_TENANTS))
        return {stored.period: blake2b(stored.row, digest_size=16).digest() for stored in rows}

    def first_day(self, tenant: str, days: Sequence[int]) -> int | None:
        """Return the first of these days with requests of a tenant, or None. `days` are starts in Unix seconds."""
        of_tenant = _C.seconds == DAY_S, _C.start.in_(days), _C.tenant == tenant
        return self.connection.execute(select(func.min(_C.start)).where(*of_tenant)).scalar()

    def search(self, where: ReceiptSearch, limit: int, before: str | None) -> SearchPage:
        """Return a page of receipts; see `receipt_search.search`."""
        return search(self.connection, where, limit, before)

    def with_shadows(self, receipt_id: str, tenant: str | None) -> FoundReceipt | None:
        """Return a receipt of a tenant, or of any tenant, with its shadows."""
        raw = self.receipt(tenant, receipt_id)
        if raw is None:
            return None
        request = msgspec.json.decode(raw, type=_Owner).tenant, receipt_id
        return FoundReceipt(raw, shadows_of(self.connection, [request]).get(request, []))

    def receipt(self, tenant: str | None, receipt_id: str) -> bytes | None:
        """Return a receipt of a tenant, or of any tenant, as JSON, or None if the database has no such receipt."""
        keep_few_locks(self.connection)
        query = select(RECEIPTS.c.receipt).where(RECEIPTS.c.id == receipt_id)
        if tenant is not None:
            query = query.where(RECEIPTS.c.tenant == tenant)
        if (id_time := time_of(receipt_id)) is not None:
            packed = self.connection.execute(query.where(RECEIPTS.c.day == id_time // DAY_S)).scalar()
            if packed is not None:
                return unpack(packed)
        # Ids of devices contain no time.
        for batch in batched(self._days()[::-1], _DAYS_PER_QUERY):
            packed = self.connection.execute(query.where(RECEIPTS.c.day.in_(batch))).scalar()
            if packed is not None:
                return unpack(packed)
        return None

    def page(self, where: ReceiptFilter, after: ReceiptKey | None, limit: int) -> list[tuple[ReceiptKey, bytes]]:
        """Return keys and JSON of receipts in key order, starting after the key `after`."""
        key = (RECEIPTS.c.day, RECEIPTS.c.id, RECEIPTS.c.tenant)
        query = select(*key, RECEIPTS.c.receipt).where(*where.terms()).order_by(*key)
        first, last = where.days()
        if after is not None:
            query = query.where(tuple_(*key) > tuple_(*after))
            first = max(after[0], after[0] if first is None else first)
        found: list[tuple[ReceiptKey, bytes]] = []
        for window in day_windows(self.connection, first, last):
            rows = self.connection.execute(query.where(*of_days(*window)).limit(limit - len(found)))
            found += [((row.day, row.id, row.tenant), unpack(row.receipt)) for row in rows]
            if len(found) == limit:
                break
        return found

    def count(self, where: ReceiptFilter) -> int:
        """Return the number of receipts."""
        query = select(func.count()).select_from(RECEIPTS).where(*where.terms())
        windows = day_windows(self.connection, *where.days())
        return sum(self.connection.execute(query.where(*of_days(*window))).scalar_one() for window in windows)

    def span(self) -> tuple[int, int] | None:
        """Return `created` of the first and of the last receipt, or None without receipts."""
        days = self._days()
        if not days:
            return None
        query = select(func.min(RECEIPTS.c.created), func.max(RECEIPTS.c.created))
        # `day` may differ by one from the day of `created`.
        first = self.connection.execute(query.where(RECEIPTS.c.day <= days[0] + 1)).one()[0]
        last = self.connection.execute(query.where(RECEIPTS.c.day >= days[-1] - 1)).one()[1]
        return int(first), int(last)

    def _days(self) -> range:
        first, last = self._first(func.min, newest_first=False), self._first(func.max, newest_first=True)
        return range(0) if first is None or last is None else range(first, last + 1)

    def _first(self, function: Any, *, newest_first: bool) -> int | None:
        """Return the minimum or maximum of `day` in the first window with receipts."""
        for window in day_windows(self.connection, None, None, newest_first=newest_first):
            day = self.connection.execute(select(function(RECEIPTS.c.day)).where(*of_days(*window))).scalar()
            if day is not None:
                return int(day)
        return None

    def count_unreadable(self) -> int:
        """Return the number of unreadable entries."""
        return self.connection.execute(select(func.count()).select_from(UNREADABLE)).scalar_one()

    def comparisons(
        self, since: int, until: int, tenant: str | None, route: str | None
    ) -> dict[ComparisonScope, QualityTally]:
        """Return the sums of comparisons by scope, from day `since` to day `until` (days since the Unix epoch)."""
        c = COMPARISONS.c
        scope: list[Any] = [c[name] for name in ComparisonScope._fields]
        difference = c.guided - c.student
        sums = [func.sum(value) for value in (c.guided, c.student, difference, difference * difference)]
        where = [c.day >= since, c.day <= until]
        where += [column == value for column, value in ((c.tenant, tenant), (c.route, route)) if value is not None]
        query = select(*scope, func.count(), *sums).where(*where).group_by(*scope)
        rows = self.connection.execute(query)
        return {ComparisonScope(*row[:4]): QualityTally(*map(int, row[4:])) for row in rows}

    def agreements(
        self, since: float, until: float, tenant: str | None, route: str | None
    ) -> dict[RouteScope, AgreementSums]:
        """Return the sums of guided answers' agreement by route, of requests in [since, until), in Unix seconds."""
        c = COMPARISONS.c
        days = c.day >= int(since // DAY_S), c.day <= int(until // DAY_S)
        where = [*days, c.created >= since, c.created < until]
        where += [column == value for column, value in ((c.tenant, tenant), (c.route, route)) if value is not None]
        scope: list[Any] = [c[name] for name in RouteScope._fields]  # `c.compare` is a method
        sums = func.count(), func.sum(c.guided), func.sum(cast(c.guided, BigInteger) * c.guided)
        rows = self.connection.execute(select(*scope, *sums).where(*where).group_by(*scope))
        return {RouteScope(*row[:3]): AgreementSums(*map(int, row[3:])) for row in rows}

    def outcomes(self, tenant: str, route: str, since: int, until: int) -> dict[tuple[str, str], OutcomeSums]:
        """Return the sums of outcomes by variant and source, from day `since` to day `until` (days since the epoch)."""
        c = OUTCOME_ROWS.c
        where = c.tenant == tenant, c.route == route, c.day >= since, c.day <= until, c.variant != ""
        number, total = func.count().label("number"), func.sum(c.score).label("total")
        units = select(c.variant, c.source, c.unit, number, total).where(*where).group_by(c.variant, c.source, c.unit)
        unit = units.subquery().c
        # Squares may exceed 64 bits.
        n, s = cast(unit.number, Double), cast(unit.total, Double)
        counts = func.count(), func.sum(unit.number), func.sum(unit.total)
        sums = *counts, func.sum(n * n), func.sum(n * s), func.sum(s * s)
        rows = self.connection.execute(select(unit.variant, unit.source, *sums).group_by(unit.variant, unit.source))
        return {(row[0], row[1]): OutcomeSums(*map(int, row[2:5]), *map(float, row[5:])) for row in rows}

    def receipt_sums(
        self, when: UsageSpan, by: Sequence[str], only: Mapping[str, str], granularity: Granularity | None
    ) -> list[ReceiptSum]:
        """Return sums by tags and labels; see `receipt_sum_query.receipt_sums`."""
        return receipt_sums(self.connection, when, by, only, granularity)

    def uptime(self, starts: Sequence[int]) -> list[dict[str, EngineUptime]]:
        """Return the uptime by engine for each day. `starts` are the starts of the days in Unix seconds."""
        uptimes: dict[int, dict[str, EngineUptime]] = {start: {} for start in starts}
        days = [start // DAY_S for start in starts]
        query = select(UPTIME).where(UPTIME.c.day.in_(days)).order_by(UPTIME.c.engine)
        for row in self.connection.execute(query):
            uptimes[row.day * DAY_S][row.engine] = EngineUptime(
                dollars(row.hourly_pico), row.minutes_up, row.minutes_seen
            )
        return [uptimes[start] for start in starts]
