"""Read receipts from the usage database. All functions take a connection and block: use threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select, tuple_

from gateway.usage.entries import OutboxEntry
from gateway.usage.packing import unpack
from gateway.usage.tables import DAY_S, RECEIPTS, UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement, Connection

    from gateway.usage.sql import ReceiptKey


@dataclass(frozen=True, slots=True)
class ReceiptFilter:
    """A filter of receipts by time of the request, [since, until) in Unix seconds, and by tenant."""

    since: float | None = None
    until: float | None = None
    tenant: str | None = None

    def terms(self) -> Iterator[ColumnElement[bool]]:
        """Return SQL conditions. `day`, the start of the primary key, may differ by one from the day of `created`."""
        if self.since is not None:
            yield RECEIPTS.c.created >= self.since
            yield RECEIPTS.c.day >= int(self.since // DAY_S) - 1
        if self.until is not None:
            yield RECEIPTS.c.created < self.until
            yield RECEIPTS.c.day <= int(self.until // DAY_S) + 1
        if self.tenant is not None:
            yield RECEIPTS.c.tenant == self.tenant


def page(
    connection: Connection, where: ReceiptFilter, after: ReceiptKey | None, limit: int
) -> list[tuple[ReceiptKey, bytes]]:
    """Return keys and JSON of receipts in key order, starting after the key `after`."""
    key = (RECEIPTS.c.day, RECEIPTS.c.id, RECEIPTS.c.tenant)
    query = select(*key, RECEIPTS.c.receipt).where(*where.terms())
    if after is not None:
        query = query.where(tuple_(*key) > tuple_(*after))
    rows = connection.execute(query.order_by(*key).limit(limit))
    return [((row.day, row.id, row.tenant), unpack(row.receipt)) for row in rows]


def count(connection: Connection, where: ReceiptFilter) -> int:
    """Return the number of receipts."""
    return connection.execute(select(func.count()).select_from(RECEIPTS).where(*where.terms())).scalar_one()


def count_by_day(connection: Connection) -> dict[int, int]:
    """Return the number of receipts by day of the request, in days since the Unix epoch."""
    day = (RECEIPTS.c.created // DAY_S).label("day")
    rows = connection.execute(select(day, func.count()).group_by(day))
    return {int(row_day): number for row_day, number in rows}


def span(connection: Connection) -> tuple[int, int] | None:
    """Return `created` of the first and of the last receipt, or None without receipts."""
    days = days_of_receipts(connection)
    if not days:
        return None
    query = select(func.min(RECEIPTS.c.created), func.max(RECEIPTS.c.created))
    # `day` may differ by one from the day of `created`.
    first = connection.execute(query.where(RECEIPTS.c.day <= days[0] + 1)).one()[0]
    last = connection.execute(query.where(RECEIPTS.c.day >= days[-1] - 1)).one()[1]
    return int(first), int(last)


def count_unreadable(connection: Connection) -> int:
    """Return the number of unreadable entries."""
    return connection.execute(select(func.count()).select_from(UNREADABLE)).scalar_one()


def unreadable(connection: Connection) -> list[OutboxEntry]:
    """Return the unreadable entries."""
    rows = connection.execute(select(UNREADABLE).order_by(UNREADABLE.c.tenant, UNREADABLE.c.entry))
    return [OutboxEntry(row.tenant, row.entry, row.receipt) for row in rows]


def days_of_receipts(connection: Connection) -> range:
    """Return the days from the first to the last receipt, in days since the Unix epoch; empty without receipts."""
    first = connection.execute(select(func.min(RECEIPTS.c.day))).scalar()
    last = connection.execute(select(func.max(RECEIPTS.c.day))).scalar()
    return range(0) if first is None or last is None else range(first, last + 1)
