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
)

from gateway.usage.database import Entry
from gateway.usage.tables import DAY_S
from gateway.usage_address import shown

if TYPE_CHECKING:
    from sqlalchemy import Engine

_BUSY_S = 5
_METADATA = MetaData()
_PLACE = ("tenant", "entry_ms", "entry_seq")


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
        self.where = shown(address)

    async def take(self, most: int) -> list[Entry]:
        """Return some receipts; none where there is no archive, or it is empty."""
        return await asyncio.to_thread(self._take, most)

    async def delete_taken(self) -> None:
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

    def _take(self, most: int) -> list[Entry]:
        with self._lock:
            self._taken = []
            engine = self._open()
            if engine is None:
                return []
            entries: list[Entry] = []
            with engine.connect() as connection:
                for table in (_RECEIPTS, _UNREADABLE):
                    for row in connection.execute(select(table).limit(most - len(entries))).mappings():
                        entries.append(
                            Entry(row["tenant"], f"{row['entry_ms']}-{row['entry_seq']}", row["receipt"].encode())
                        )
                        self._taken.append(
                            (table, {f"_{name}": value for name, value in row.items() if name != "receipt"})
                        )
            return entries

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
