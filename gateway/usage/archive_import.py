"""Move receipts out of the archive of an earlier version (tables `receipts` and `unreadable`).

Processes of that version may still write to the archive. A row that one of them changes after it was taken is not
deleted, and is taken again.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Column,
    MetaData,
    Table,
    Text,
    bindparam,
    create_engine,
    delete,
    func,
    inspect,
    select,
    tuple_,
)

from gateway.config.database_url import shown
from gateway.usage.entries import OutboxEntry
from gateway.usage.tables import DAY_S

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, RowMapping

_BUSY_S = 5
_METADATA = MetaData()


def _table(name: str) -> Table:
    return Table(
        name,
        _METADATA,
        Column("tenant", Text),
        Column("entry_ms", BigInteger),
        Column("entry_seq", BigInteger),
        Column("receipt", Text),
    )


_VERSION = "gkt_archive"
_RECEIPTS = _table("receipts")
_RECEIPTS.append_column(Column("id", Text, primary_key=True))
_RECEIPTS.append_column(Column("created", BigInteger))
_ORDER = (_RECEIPTS.c.created, _RECEIPTS.c.id)  # it has an index
_UNREADABLE = _table("unreadable")


class ArchiveImport:
    """Methods raise UsageDatabaseError.

    Args:
        address: URL for SQLAlchemy.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._file = Path(address.removeprefix("sqlite:///")) if address.startswith("sqlite:") else None
        self._lock = Lock()
        self._engine: Engine | None = None
        self._taken: list[tuple[Table, dict[str, Any]]] = []
        self._last: tuple[int, str] | None = None  # the receipt that was taken last, in this order
        self.where = shown(address)

    async def read(self, most: int) -> list[OutboxEntry]:
        """Return some receipts; none where there is no archive, or it is empty."""
        return await asyncio.to_thread(self._take, most)

    async def delete_read(self) -> None:
        """Delete what the last `take` returned."""
        await asyncio.to_thread(self._delete_taken)

    async def count(self) -> dict[int, int]:
        """Return the number of receipts by the day of their requests, in days since the Unix epoch."""
        return await asyncio.to_thread(self._count)

    async def close(self) -> None:
        """Close the connections."""
        if self._engine is not None:
            await asyncio.to_thread(self._engine.dispose)

    def _open(self) -> Engine | None:
        """Return the archive, None where there is none."""
        if self._file is not None and not self._file.exists():
            return None
        if self._engine is None:
            options = {"timeout": _BUSY_S} if self._file is not None else {"connect_timeout": _BUSY_S}
            self._engine = create_engine(self._address, connect_args=options, pool_pre_ping=True)
        return self._engine if inspect(self._engine).has_table(_VERSION) else None

    def _count(self) -> dict[int, int]:
        with self._lock:
            engine = self._open()
            if engine is None:
                return {}
            day = (_RECEIPTS.c.created // DAY_S).label("day")
            with engine.connect() as connection:
                found = connection.execute(select(day, func.count()).group_by(day))
                return {int(of_day): many for of_day, many in found}

    def _take(self, most: int) -> list[OutboxEntry]:
        with self._lock:
            self._taken = []
            engine = self._open()
            if engine is None:
                return []
            with engine.connect() as connection:
                found = self._receipts(connection, most)
                found += [
                    (_UNREADABLE, row)
                    for row in connection.execute(select(_UNREADABLE).limit(most - len(found))).mappings()
                ]
            entries: list[OutboxEntry] = []
            for table, row in found:
                entry = f"{row['entry_ms']}-{row['entry_seq']}"
                entries.append(OutboxEntry(row["tenant"], entry, row["receipt"].encode()))
                self._taken.append((table, {f"_{name}": value for name, value in row.items() if name != "receipt"}))
            return entries

    def _receipts(self, connection: Connection, most: int) -> list[tuple[Table, RowMapping]]:
        """Return the next receipts in the order of time, and at the end of the table the first ones again.

        Without an order PostgreSQL would read all deleted rows each time.
        """
        wanted = select(_RECEIPTS).order_by(*_ORDER).limit(most)
        if self._last is not None:
            rows = connection.execute(wanted.where(tuple_(*_ORDER) > tuple_(*self._last))).mappings().all()
            if not rows:
                self._last = None
        if self._last is None:
            rows = connection.execute(wanted).mappings().all()
        self._last = (rows[-1]["created"], rows[-1]["id"]) if rows else None
        return [(_RECEIPTS, row) for row in rows]

    def _delete_taken(self) -> None:
        with self._lock:
            taken, self._taken = self._taken, []
            if self._engine is None:
                return
            with self._engine.begin() as connection:
                for table in (_RECEIPTS, _UNREADABLE):
                    places = [place for one, place in taken if one is table]
                    if places:
                        terms = [table.c[name[1:]] == bindparam(name) for name in places[0]]
                        connection.execute(delete(table).where(*terms), places)
