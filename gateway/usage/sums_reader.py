"""Read sums and the newest receipts from the usage database. Queries and decoding run in threads."""

from __future__ import annotations

import time
from collections import defaultdict
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import and_, bindparam, select

from gateway.ledger.edge import EDGE
from gateway.usage.packing import unpack
from gateway.usage.rests import with_rests
from gateway.usage.rollup import Dims, Row
from gateway.usage.sums import ALL_TENANTS, SECONDS, Period, StoredRow
from gateway.usage.tables import DAY_S, OF_DEVICES, RECEIPTS, SUMS, id_before

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sqlalchemy import Connection

    from gateway.usage.sums import Granularity
    from gateway.usage.threads import QueryThreads

T = TypeVar("T")

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


class SumsReader:
    """All methods raise UsageUnavailable where the database cannot be read.

    Args:
        threads: run the queries.
    """

    def __init__(self, threads: QueryThreads) -> None:
        self._threads = threads

    async def read(
        self, work: Callable[[Iterator[StoredRow]], T], wanted: Sequence[Period], tenant: str | None = None
    ) -> T:
        """Return the result of `work`, which runs in a thread and gets the rows of these periods.

        Args:
            wanted: the rows come in this order of periods, unless a tenant is given.
            tenant: None: all tenants. `ALL_TENANTS`: the totals.
        """
        return await self._threads.scan(lambda connection: work(_stored(connection, wanted, tenant)))

    async def rows(self, wanted: Sequence[Period], tenant: str | None = None) -> list[tuple[Period, Dims, Row]]:
        """Return the rows of these periods, decoded."""
        return await self.read(_decoded, wanted, tenant)

    async def totals(self, wanted: Sequence[Period]) -> list[tuple[Period, Row]]:
        """Return the sums over all tenants by period. A period without receipts has an empty row."""
        held = await self._threads.query(totals, wanted)
        return [(period, held.get(period) or Row()) for period in wanted]

    async def marks(self, wanted: Sequence[Period]) -> list[bytes | None]:
        """Return the version of each period: each addition makes another one, never an earlier one; None: no receipts.

        It is a digest of the total: two receipts, or a receipt in another's place, never leave all counts the same.
        """
        held = await self._threads.query(_marks, wanted)
        return [held.get(period) for period in wanted]

    async def latest(self, most: int, tenant: str | None = None) -> list[bytes]:
        """Return the newest receipts, of a tenant or of all, as JSON, the newest first."""
        return await self._threads.query(_latest, most, tenant, time.time())


def _stored(connection: Connection, wanted: Sequence[Period], tenant: str | None) -> Iterator[StoredRow]:
    connection.execution_options(yield_per=_ROWS_AT_ONCE)
    if tenant is not None:
        yield from _of_tenant(connection, wanted, tenant)
        return
    for period in wanted:
        found = connection.execute(_OF_PERIOD, {"seconds": SECONDS[period.granularity], "start": period.start})
        for *where, row in found:
            yield StoredRow(period, Dims(*where), row)


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
                yield StoredRow(periods[start], Dims(*where), row)


def _decoded(rows: Iterable[StoredRow]) -> list[tuple[Period, Dims, Row]]:
    return [(period, where, Row.from_bytes(row)) for period, where, row in with_rests(rows)]


def totals(connection: Connection, wanted: Sequence[Period]) -> dict[Period, Row]:
    """Return the sums over all tenants by period; of a period without receipts there are none. It blocks."""
    return {one.period: Row.from_bytes(one.row) for one in with_rests(_of_tenant(connection, wanted, ALL_TENANTS))}


def _marks(connection: Connection, wanted: Sequence[Period]) -> dict[Period, bytes]:
    found = with_rests(_of_tenant(connection, wanted, ALL_TENANTS))
    return {one.period: blake2b(one.row, digest_size=16).digest() for one in found}


def _latest(connection: Connection, most: int, tenant: str | None, now: float) -> list[bytes]:
    found = _newest(connection, most, now) if tenant is None else _newest_of(connection, most, tenant)
    return [unpack(packed) for packed in with_rests(found)]


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
