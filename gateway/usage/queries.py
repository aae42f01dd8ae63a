"""Read sums, receipts, comparisons and the uptime of engines in one transaction of the usage database."""

from __future__ import annotations

from collections import defaultdict
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, func, select

from gateway.accounting.edge import EDGE
from gateway.quality.book import ComparisonScope
from gateway.quality.comparison import QualityTally
from gateway.usage.counters import usd
from gateway.usage.entries import batched
from gateway.usage.packing import unpack
from gateway.usage.receipts_reader import days_of_receipts
from gateway.usage.rollup import SumDimensions, SumRow
from gateway.usage.sums import ALL_TENANTS, SECONDS, Period, StoredRow
from gateway.usage.tables import COMPARISONS, DAY_S, OF_DEVICES, RECEIPTS, SUMS, UPTIME, id_before, time_of
from gateway.usage.threads import with_pauses
from gateway.usage.uptime import EngineUptime

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import Connection

    from gateway.usage.sums import Granularity

_STARTS_PER_QUERY = 500
_DAYS_PER_QUERY = 500
_ROWS_AT_ONCE = 500
_MAX_SKEW_S = 60
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


class UsageQueries:
    """Queries of a read transaction. Every method blocks, and raises SQLAlchemyError and ValueError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def rows(self, periods: Sequence[Period], tenant: str | None) -> Iterator[StoredRow]:
        """Yield the rows of these periods; see `DatabaseReader.rows`."""
        self._connection.execution_options(yield_per=_ROWS_AT_ONCE)
        if tenant is not None:
            yield from self._of_tenant(periods, tenant)
            return
        for period in periods:
            parameters = {"seconds": SECONDS[period.granularity], "start": period.start}
            for *dims, row in self._connection.execute(_OF_PERIOD, parameters):
                yield StoredRow(period, SumDimensions(*dims), row)

    def _of_tenant(self, periods: Iterable[Period], tenant: str) -> Iterator[StoredRow]:
        by_length: dict[Granularity, dict[int, Period]] = defaultdict(dict)
        for period in periods:
            by_length[period.granularity][period.start] = period
        for granularity, by_start in by_length.items():
            for batch in batched(list(by_start), _STARTS_PER_QUERY):
                parameters = {"seconds": SECONDS[granularity], "starts": batch, "tenant": tenant}
                for start, *dims, row in self._connection.execute(_OF_TENANT, parameters):
                    yield StoredRow(by_start[start], SumDimensions(*dims), row)

    def totals(self, periods: Sequence[Period]) -> dict[Period, SumRow]:
        """Return the sums over all tenants by period, without periods that have no receipts."""
        rows = with_pauses(self._of_tenant(periods, ALL_TENANTS))
        return {stored.period: SumRow.from_bytes(stored.row) for stored in rows}

    def versions(self, periods: Sequence[Period]) -> dict[Period, bytes]:
        """Return the version of each period that has receipts; see `DatabaseReader.versions`."""
        rows = with_pauses(self._of_tenant(periods, ALL_TENANTS))
        return {stored.period: blake2b(stored.row, digest_size=16).digest() for stored in rows}

    def latest(self, limit: int, tenant: str | None, now: float) -> list[bytes]:
        """Return the newest receipts of a tenant or of all as JSON, newest first. `now` is Unix seconds."""
        packed: Iterable[bytes]
        if tenant is None:
            packed = self._newest(limit, now)
        else:
            query = select(RECEIPTS.c.receipt).where(RECEIPTS.c.tenant == tenant)
            packed = self._connection.scalars(query.order_by(RECEIPTS.c.created.desc()).limit(limit)).all()
        return [unpack(receipt) for receipt in with_pauses(packed)]

    def _newest(self, limit: int, now: float) -> list[bytes]:
        """Return the newest packed receipts.

        Ids begin with their time, so the primary key orders them. Today's ids by a version without times sort after ids
        with a time. Receipts of devices have their own index.
        """
        day, id_ = RECEIPTS.c.day, RECEIPTS.c.id
        today, last = int(now) // DAY_S, id_before(now + _MAX_SKEW_S)
        query = select(RECEIPTS.c.created, RECEIPTS.c.receipt)
        rows: list[Any] = []
        for condition in (day > today, and_(day == today, id_ < last), and_(day == today, id_ >= last), day < today):
            newest = query.where(condition, RECEIPTS.c.mode != EDGE).order_by(day.desc(), id_.desc())
            rows += self._connection.execute(newest.limit(limit - len(rows)))
            if len(rows) == limit:
                break
        of_devices = query.where(OF_DEVICES).order_by(RECEIPTS.c.created.desc()).limit(limit)
        if device_rows := self._connection.execute(of_devices).all():
            rows = sorted([*rows, *device_rows], key=lambda row: -row.created)[:limit]
        return [row.receipt for row in rows]

    def receipt(self, tenant: str, receipt_id: str) -> bytes | None:
        """Return a tenant's receipt as JSON, or None if the database has no such receipt."""
        query = select(RECEIPTS.c.receipt).where(RECEIPTS.c.id == receipt_id, RECEIPTS.c.tenant == tenant)
        if (id_time := time_of(receipt_id)) is not None:
            packed = self._connection.execute(query.where(RECEIPTS.c.day == id_time // DAY_S)).scalar()
            if packed is not None:
                return unpack(packed)
        # Ids of earlier versions and of devices contain no time.
        for batch in batched(days_of_receipts(self._connection), _DAYS_PER_QUERY):
            packed = self._connection.execute(query.where(RECEIPTS.c.day.in_(batch))).scalar()
            if packed is not None:
                return unpack(packed)
        return None

    def comparisons(self, since: int) -> dict[ComparisonScope, QualityTally]:
        """Return the sums of comparisons by scope, starting with the day `since` (days since the Unix epoch)."""
        c = COMPARISONS.c
        scope: list[Any] = [c[name] for name in ComparisonScope._fields]
        difference = c.guided - c.student
        sums = [func.sum(value) for value in (c.guided, c.student, difference, difference * difference)]
        query = select(*scope, func.count(), *sums).where(c.day >= since).group_by(*scope)
        rows = self._connection.execute(query)
        return {ComparisonScope(*row[:4]): QualityTally(*map(int, row[4:])) for row in rows}

    def uptime(self, starts: Sequence[int]) -> list[dict[str, EngineUptime]]:
        """Return the uptime by engine for each day. `starts` are the starts of the days in Unix seconds."""
        uptimes: dict[int, dict[str, EngineUptime]] = {start: {} for start in starts}
        days = [start // DAY_S for start in starts]
        query = select(UPTIME).where(UPTIME.c.day.in_(days)).order_by(UPTIME.c.engine)
        for row in self._connection.execute(query):
            up, seen = (int.from_bytes(bitmap).bit_count() for bitmap in (row.up, row.seen))
            uptimes[row.day * DAY_S][row.engine] = EngineUptime(usd(row.hourly_pico), up, seen)
        return [uptimes[start] for start in starts]
