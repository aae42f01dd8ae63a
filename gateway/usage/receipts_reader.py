"""Read receipts from the usage database. All functions take a connection and block: use threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select, tuple_

from gateway.usage.entries import OutboxEntry
from gateway.usage.packing import unpack
from gateway.usage.tables import DAY_S, RECEIPTS, UNREADABLE, time_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement, Connection

    from gateway.usage.sql import ReceiptKey

_DAYS_PER_QUERY = 500


@dataclass(frozen=True, slots=True)
class ReceiptFilter:
    """A choice of receipts: of requests that came in [since, until), in Unix seconds, and of one tenant."""

    since: float | None = None
    until: float | None = None
    tenant: str | None = None

    def terms(self) -> Iterator[ColumnElement[bool]]:
        """Return the conditions. The primary key begins with the day, which may be next to that of `created`."""
        if self.since is not None:
            yield RECEIPTS.c.created >= self.since
            yield RECEIPTS.c.day >= int(self.since // DAY_S) - 1
        if self.until is not None:
            yield RECEIPTS.c.created < self.until
            yield RECEIPTS.c.day <= int(self.until // DAY_S) + 1
        if self.tenant is not None:
            yield RECEIPTS.c.tenant == self.tenant


def find(connection: Connection, tenant: str, receipt_id: str) -> bytes | None:
    """Return a tenant's receipt as JSON, None where there is none."""
    wanted = select(RECEIPTS.c.receipt).where(RECEIPTS.c.id == receipt_id, RECEIPTS.c.tenant == tenant)
    moment = time_of(receipt_id)
    if moment is not None:
        packed = connection.execute(wanted.where(RECEIPTS.c.day == moment // DAY_S)).scalar()
        if packed is not None:
            return unpack(packed)
    # An id of an earlier version or of a device has no time.
    days = _days(connection)
    for start in range(days.start, days.stop, _DAYS_PER_QUERY):
        some = range(start, min(start + _DAYS_PER_QUERY, days.stop))
        packed = connection.execute(wanted.where(RECEIPTS.c.day.in_(some))).scalar()
        if packed is not None:
            return unpack(packed)
    return None


def page(
    connection: Connection, where: ReceiptFilter, after: ReceiptKey | None, most: int
) -> list[tuple[ReceiptKey, bytes]]:
    """Return keys and JSON of receipts in the order of their keys, from behind a key."""
    key = (RECEIPTS.c.day, RECEIPTS.c.id, RECEIPTS.c.tenant)
    wanted = select(*key, RECEIPTS.c.receipt).where(*where.terms())
    if after is not None:
        wanted = wanted.where(tuple_(*key) > tuple_(*after))
    found = connection.execute(wanted.order_by(*key).limit(most))
    return [((row.day, row.id, row.tenant), unpack(row.receipt)) for row in found]


def count(connection: Connection, where: ReceiptFilter) -> int:
    """Return the number of receipts."""
    return connection.execute(select(func.count()).select_from(RECEIPTS).where(*where.terms())).scalar_one()


def count_by_day(connection: Connection) -> dict[int, int]:
    """Return the number of receipts by the day of their requests, in days since the Unix epoch."""
    day = (RECEIPTS.c.created // DAY_S).label("day")
    found = connection.execute(select(day, func.count()).group_by(day))
    return {int(of_day): many for of_day, many in found}


def span(connection: Connection) -> tuple[int, int] | None:
    """Return `created` of the first and the last receipt, None where there is none."""
    days = _days(connection)
    if not days:
        return None
    wanted = select(func.min(RECEIPTS.c.created), func.max(RECEIPTS.c.created))
    # The day of an id may be next to that of `created`.
    first = connection.execute(wanted.where(RECEIPTS.c.day <= days[0] + 1)).one()[0]
    last = connection.execute(wanted.where(RECEIPTS.c.day >= days[-1] - 1)).one()[1]
    return int(first), int(last)


def count_unreadable(connection: Connection) -> int:
    """Return the number of entries that could not be read or written."""
    return connection.execute(select(func.count()).select_from(UNREADABLE)).scalar_one()


def unreadable(connection: Connection) -> list[OutboxEntry]:
    """Return the entries that could not be read or written."""
    found = connection.execute(select(UNREADABLE).order_by(UNREADABLE.c.tenant, UNREADABLE.c.entry))
    return [OutboxEntry(row.tenant, row.entry, row.receipt) for row in found]


def _days(connection: Connection) -> range:
    first = connection.execute(select(func.min(RECEIPTS.c.day))).scalar()
    last = connection.execute(select(func.max(RECEIPTS.c.day))).scalar()
    return range(0) if first is None or last is None else range(first, last + 1)
