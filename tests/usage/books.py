"""Usage databases for tests: SQLite in a folder, or a database of its own in a real PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import create_engine

from gateway.usage.database import Entry, UsageDatabase
from gateway.usage.sums_reader import SumsReader
from gateway.usage.tables import METADATA
from gateway.usage.threads import QueryThreads

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection

    from gateway.ledger.receipt import Receipt


class UsageBook:
    """A usage database with its reader."""

    def __init__(self, address: str) -> None:
        self.engine = create_engine(address, pool_pre_ping=True)
        METADATA.create_all(self.engine)
        self.database = UsageDatabase(self.engine)
        self.threads = QueryThreads(self)
        self.sums = SumsReader(self.threads)

    def reading(self) -> Connection:
        return self.engine.connect()

    def add(self, receipts: Iterable[Receipt]) -> None:
        self.database.add(Entry(one.tenant, "1-0", one.to_json()) for one in receipts)

    def close(self) -> None:
        self.threads.close()
        self.engine.dispose()
