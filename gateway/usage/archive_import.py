"""Move receipts out of the archive of an earlier version (tables `receipts` and `unreadable`).

Processes of that version may still write to the archive. A row that changes after it was read is not deleted: the next
call reads it again.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from gateway.config.database_url import ARCHIVE_FILE, sqlalchemy_url, without_credentials
from gateway.usage.entries import OutboxEntry
from gateway.usage.tables import DAY_S

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, RowMapping

    from gateway.config.settings import Settings, WorkerSettings

_BUSY_S = 5
_METADATA = sa.MetaData()


def _table(name: str) -> sa.Table:
    columns = {"tenant": sa.Text, "entry_ms": sa.BigInteger, "entry_seq": sa.BigInteger, "receipt": sa.Text}
    return sa.Table(name, _METADATA, *(sa.Column(column, kind) for column, kind in columns.items()))


_VERSION = "gkt_archive"
_RECEIPTS = _table("receipts")
_RECEIPTS.append_column(sa.Column("id", sa.Text, primary_key=True))
_RECEIPTS.append_column(sa.Column("created", sa.BigInteger))
_ORDER = (_RECEIPTS.c.created, _RECEIPTS.c.id)  # the order of an index
_UNREADABLE = _table("unreadable")


class ArchiveImport:
    """Read receipts from an archive, by its URL for SQLAlchemy, and delete them there.

    All methods block: use threads. They raise UsageDatabaseError.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._file = Path(address.removeprefix("sqlite:///")) if address.startswith("sqlite:") else None
        self._lock = Lock()
        self._engine: Engine | None = None
        self._read_rows: list[tuple[sa.Table, dict[str, Any]]] = []
        self._last: tuple[int, str] | None = None  # `_ORDER` of the receipt that was read last
        self.location = without_credentials(address)

    def close(self) -> None:
        """Close the connections."""
        if self._engine is not None:
            self._engine.dispose()

    def _open(self) -> Engine | None:
        if self._file is not None and not self._file.exists():
            return None
        if self._engine is None:
            options = {"timeout": _BUSY_S} if self._file is not None else {"connect_timeout": _BUSY_S}
            self._engine = sa.create_engine(
                self._address, connect_args=options, pool_size=1, max_overflow=0, pool_pre_ping=True
            )
        return self._engine if sa.inspect(self._engine).has_table(_VERSION) else None

    def count(self) -> dict[int, int]:
        """Return the number of receipts by day of the request, in days since the Unix epoch."""
        with self._lock:
            engine = self._open()
            if engine is None:
                return {}
            day = (_RECEIPTS.c.created // DAY_S).label("day")
            with engine.connect() as connection:
                rows = connection.execute(sa.select(day, sa.func.count()).group_by(day))
                return {int(row_day): count for row_day, count in rows}

    def read(self, limit: int) -> list[OutboxEntry]:
        """Return at most `limit` receipts; an empty list if the archive is missing or empty."""
        with self._lock:
            self._read_rows = []
            engine = self._open()
            if engine is None:
                return []
            with engine.connect() as connection:
                rows = self._receipts(connection, limit)
                unreadable = connection.execute(sa.select(_UNREADABLE).limit(limit - len(rows))).mappings()
                rows += [(_UNREADABLE, row) for row in unreadable]
            entries: list[OutboxEntry] = []
            for table, row in rows:
                entry_id = f"{row['entry_ms']}-{row['entry_seq']}"
                entries.append(OutboxEntry(row["tenant"], entry_id, row["receipt"].encode()))
                self._read_rows.append((table, {f"_{name}": value for name, value in row.items() if name != "receipt"}))
            return entries

    def _receipts(self, connection: Connection, limit: int) -> list[tuple[sa.Table, RowMapping]]:
        """Return the next receipts in order of time, from the beginning again after the last one.

        Without an order, PostgreSQL would scan all deleted rows each time.
        """
        query = sa.select(_RECEIPTS).order_by(*_ORDER).limit(limit)
        if self._last is not None:
            rows = connection.execute(query.where(sa.tuple_(*_ORDER) > sa.tuple_(*self._last))).mappings().all()
            if not rows:
                self._last = None
        if self._last is None:
            rows = connection.execute(query).mappings().all()
        self._last = (rows[-1]["created"], rows[-1]["id"]) if rows else None
        return [(_RECEIPTS, row) for row in rows]

    def delete_read(self) -> None:
        """Delete the receipts that the last `read` returned."""
        with self._lock:
            rows, self._read_rows = self._read_rows, []
            if self._engine is None:
                return
            with self._engine.begin() as connection:
                for table in (_RECEIPTS, _UNREADABLE):
                    values = [row for row_table, row in rows if row_table is table]
                    if values:
                        terms = [table.c[name[1:]] == sa.bindparam(name) for name in values[0]]
                        connection.execute(sa.delete(table).where(*terms), values)


def archives_of(settings: Settings | WorkerSettings) -> list[ArchiveImport]:
    """Return the possible archives of an earlier version: in the usage database, and in a file of their own."""
    database = sqlalchemy_url(settings.usage.url.get_secret_value(), settings.data)
    file = sqlalchemy_url("sqlite", settings.data, ARCHIVE_FILE)
    return [ArchiveImport(address) for address in dict.fromkeys((database, file))]
