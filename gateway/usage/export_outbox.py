"""The outbox of the export stream: receipts in the usage database that no broker has confirmed. All calls block.

The transaction that writes receipts also writes their keys to the outbox. A key is deleted after the broker has
confirmed its message. So each receipt is sent at least once, whichever process is killed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec
from sqlalchemy import bindparam, delete, func, select, tuple_

from gateway.usage.export_message import ExportMessage, message_of, revision_of
from gateway.usage.packing import unpack
from gateway.usage.sql import sql_of
from gateway.usage.tables import EXPORTS, RECEIPTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from gateway.usage.queries import UsageQueries
    from gateway.usage.sql import ReceiptKey

COUNT_LIMIT = 100_000
"""`ExportBacklog.waiting` is at most this number."""
_REPLAYED_AT_ONCE = 10_000
_C = EXPORTS.c
_KEY = (_C.day, _C.id, _C.tenant)


class PendingExport(NamedTuple):
    """A key in the outbox. `message` is None if the receipt has expired or cannot be decoded."""

    key: ReceiptKey
    revision: int
    message: ExportMessage | None


class ExportBacklog(NamedTuple):
    """Number of receipts in the outbox, up to COUNT_LIMIT, and when the oldest was added, in Unix seconds."""

    waiting: int
    oldest: int | None


def add_exports(connection: Connection, receipts: Sequence[tuple[ReceiptKey, str]], now: float) -> None:
    """Add receipts with their status to the outbox. Raises DBAPIError."""
    sql_of(connection).put_exports([(*key, revision_of(status), int(now)) for key, status in receipts])


def pending_exports(queries: UsageQueries, limit: int) -> list[PendingExport]:
    """Return the receipts that were added first, with their messages."""
    rows = queries.connection.execute(select(*_KEY, _C.revision).order_by(_C.added, *_KEY).limit(limit)).all()
    if not rows:
        return []
    days, ids = {row.day for row in rows}, [row.id for row in rows]
    c = RECEIPTS.c
    query = select(c.day, c.id, c.tenant, c.receipt).where(c.day.in_(days), c.id.in_(ids))
    packed = {(row.day, row.id, row.tenant): row.receipt for row in queries.connection.execute(query)}
    keys = [((row.day, row.id, row.tenant), row.revision) for row in rows]
    return [PendingExport(key, revision, _message(packed.get(key))) for key, revision in keys]


def _message(packed: bytes | None) -> ExportMessage | None:
    try:
        return None if packed is None else message_of(unpack(packed))
    except (ValueError, msgspec.MsgspecError):
        return None


def delete_exports(connection: Connection, sent: Sequence[PendingExport]) -> None:
    """Delete keys, unless a later revision was added meanwhile."""
    if sent:
        names = ("day", "id", "tenant", "revision")
        terms = [_C[name] == bindparam(f"_{name}") for name in names]
        rows = [dict(zip((f"_{name}" for name in names), (*one.key, one.revision), strict=True)) for one in sent]
        connection.execute(delete(EXPORTS).where(*terms), rows)


def export_backlog(queries: UsageQueries) -> ExportBacklog:
    """Return the size and age of the outbox."""
    some = select(_C.day).limit(COUNT_LIMIT).subquery()
    waiting = queries.connection.execute(select(func.count()).select_from(some)).scalar_one()
    return ExportBacklog(waiting, queries.connection.execute(select(func.min(_C.added))).scalar())


def replayable(queries: UsageQueries, day: int, after: ReceiptKey | None) -> list[tuple[ReceiptKey, str]]:
    """Return keys and status of receipts of a day, after a key, in key order."""
    c = RECEIPTS.c
    query = select(c.day, c.id, c.tenant, c.status).where(c.day == day)
    if after is not None:
        query = query.where(tuple_(c.id, c.tenant) > tuple_(after[1], after[2]))
    rows = queries.connection.execute(query.order_by(c.day, c.id, c.tenant).limit(_REPLAYED_AT_ONCE))
    return [((row.day, row.id, row.tenant), row.status) for row in rows]
