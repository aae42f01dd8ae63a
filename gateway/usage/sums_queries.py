"""Query sums and the newest receipts. All functions take a connection and block: use threads."""

from __future__ import annotations

from collections import defaultdict
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, select

from gateway.accounting.edge import EDGE
from gateway.usage.entries import batched
from gateway.usage.packing import unpack
from gateway.usage.rollup import SumDimensions, SumRow
from gateway.usage.sums import ALL_TENANTS, SECONDS, Period, StoredRow
from gateway.usage.tables import DAY_S, OF_DEVICES, RECEIPTS, SUMS, id_before
from gateway.usage.threads import with_pauses

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import Connection

    from gateway.usage.sums import Granularity

_STARTS_PER_QUERY = 500
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


def stored(connection: Connection, periods: Sequence[Period], tenant: str | None) -> Iterator[StoredRow]:
    """Yield the rows of these periods; see `SumsReader.read`."""
    connection.execution_options(yield_per=_ROWS_AT_ONCE)
    if tenant is not None:
        yield from _of_tenant(connection, periods, tenant)
        return
    for period in periods:
        rows = connection.execute(_OF_PERIOD, {"seconds": SECONDS[period.granularity], "start": period.start})
        for *dims, row in rows:
            yield StoredRow(period, SumDimensions(*dims), row)


def _of_tenant(connection: Connection, periods: Iterable[Period], tenant: str) -> Iterator[StoredRow]:
    by_length: dict[Granularity, dict[int, Period]] = defaultdict(dict)
    for period in periods:
        by_length[period.granularity][period.start] = period
    for granularity, by_start in by_length.items():
        for batch in batched(list(by_start), _STARTS_PER_QUERY):
            parameters = {"seconds": SECONDS[granularity], "starts": batch, "tenant": tenant}
            for start, *dims, row in connection.execute(_OF_TENANT, parameters):
                yield StoredRow(by_start[start], SumDimensions(*dims), row)


def totals(connection: Connection, periods: Sequence[Period]) -> dict[Period, SumRow]:
    """Return the sums over all tenants by period, without periods that have no receipts."""
    rows = with_pauses(_of_tenant(connection, periods, ALL_TENANTS))
    return {stored_row.period: SumRow.from_bytes(stored_row.row) for stored_row in rows}


def versions(connection: Connection, periods: Sequence[Period]) -> dict[Period, bytes]:
    """Return the version of each period that has receipts; see `SumsReader.versions`."""
    rows = with_pauses(_of_tenant(connection, periods, ALL_TENANTS))
    return {stored_row.period: blake2b(stored_row.row, digest_size=16).digest() for stored_row in rows}


def latest(connection: Connection, limit: int, tenant: str | None, now: float) -> list[bytes]:
    """Return the newest receipts of a tenant or of all as JSON, newest first. `now` is Unix seconds."""
    packed: Iterable[bytes]
    if tenant is None:
        packed = _newest(connection, limit, now)
    else:
        query = select(RECEIPTS.c.receipt).where(RECEIPTS.c.tenant == tenant)
        packed = connection.scalars(query.order_by(RECEIPTS.c.created.desc()).limit(limit)).all()
    return [unpack(receipt) for receipt in with_pauses(packed)]


def _newest(connection: Connection, limit: int, now: float) -> list[bytes]:
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
        rows += connection.execute(newest.limit(limit - len(rows)))
        if len(rows) == limit:
            break
    of_devices = query.where(OF_DEVICES).order_by(RECEIPTS.c.created.desc()).limit(limit)
    if device_rows := connection.execute(of_devices).all():
        rows = sorted([*rows, *device_rows], key=lambda row: -row.created)[:limit]
    return [row.receipt for row in rows]
