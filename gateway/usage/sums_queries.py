"""Query sums and the newest receipts. All functions take a connection and block: use threads."""

from __future__ import annotations

from collections import defaultdict
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, select

from gateway.accounting.edge import EDGE
from gateway.usage.packing import unpack
from gateway.usage.rests import with_pauses
from gateway.usage.rollup import SumDimensions, SumRow
from gateway.usage.sums import ALL_TENANTS, SECONDS, Period, StoredRow
from gateway.usage.tables import DAY_S, OF_DEVICES, RECEIPTS, SUMS, id_before

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


def stored(connection: Connection, wanted: Sequence[Period], tenant: str | None) -> Iterator[StoredRow]:
    """Yield the rows of these periods, as `SumsReader.read` gives them to its `work`."""
    connection.execution_options(yield_per=_ROWS_AT_ONCE)
    if tenant is not None:
        yield from _of_tenant(connection, wanted, tenant)
        return
    for period in wanted:
        found = connection.execute(_OF_PERIOD, {"seconds": SECONDS[period.granularity], "start": period.start})
        for *where, row in found:
            yield StoredRow(period, SumDimensions(*where), row)


def _of_tenant(connection: Connection, wanted: Iterable[Period], tenant: str) -> Iterator[StoredRow]:
    by_length: dict[Granularity, dict[int, Period]] = defaultdict(dict)
    for period in wanted:
        by_length[period.granularity][period.start] = period
    for granularity, periods in by_length.items():
        starts = list(periods)
        for first in range(0, len(starts), _STARTS_PER_QUERY):
            some = starts[first : first + _STARTS_PER_QUERY]
            asked = {"seconds": SECONDS[granularity], "starts": some, "tenant": tenant}
            for start, *where, row in connection.execute(_OF_TENANT, asked):
                yield StoredRow(periods[start], SumDimensions(*where), row)


def totals(connection: Connection, wanted: Sequence[Period]) -> dict[Period, SumRow]:
    """Return the sums over all tenants by period; of a period without receipts there are none."""
    return {one.period: SumRow.from_bytes(one.row) for one in with_pauses(_of_tenant(connection, wanted, ALL_TENANTS))}


def marks(connection: Connection, wanted: Sequence[Period]) -> dict[Period, bytes]:
    """Return the version of each period that has receipts, as `SumsReader.marks` describes it."""
    found = with_pauses(_of_tenant(connection, wanted, ALL_TENANTS))
    return {one.period: blake2b(one.row, digest_size=16).digest() for one in found}


def latest(connection: Connection, most: int, tenant: str | None, now: float) -> list[bytes]:
    """Return the newest receipts as JSON, the newest first.

    Args:
        tenant: None: all tenants.
        now: Unix seconds.
    """
    found = _newest(connection, most, now) if tenant is None else _newest_of(connection, most, tenant)
    return [unpack(packed) for packed in with_pauses(found)]


def _newest_of(connection: Connection, most: int, tenant: str) -> list[bytes]:
    wanted = select(RECEIPTS.c.receipt).where(RECEIPTS.c.tenant == tenant)
    return list(connection.scalars(wanted.order_by(RECEIPTS.c.created.desc()).limit(most)))


def _newest(connection: Connection, most: int, now: float) -> list[bytes]:
    """Return the newest receipts, packed.

    Ids begin with their time, so the primary key orders them. Ids of today that a version without times made come after
    those with a time. Receipts that devices report have an index of their own.
    """
    day, id_ = RECEIPTS.c.day, RECEIPTS.c.id
    today, last = int(now) // DAY_S, id_before(now + _MAX_SKEW_S)
    wanted = select(RECEIPTS.c.created, RECEIPTS.c.receipt)
    found: list[Any] = []
    for where in (day > today, and_(day == today, id_ < last), and_(day == today, id_ >= last), day < today):
        some = wanted.where(where, RECEIPTS.c.mode != EDGE).order_by(day.desc(), id_.desc())
        found += connection.execute(some.limit(most - len(found)))
        if len(found) == most:
            break
    of_devices = wanted.where(OF_DEVICES).order_by(RECEIPTS.c.created.desc()).limit(most)
    if devices := connection.execute(of_devices).all():
        found = sorted([*found, *devices], key=lambda one: -one.created)[:most]
    return [one.receipt for one in found]
