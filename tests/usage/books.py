"""Usage databases for tests: SQLite in a folder, or a new database in a real PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.usage.database import UsageDatabase
from gateway.usage.engine import UsageEngine
from gateway.usage.entries import OutboxEntry
from gateway.usage.sums_reader import SumsReader
from gateway.usage.threads import QueryThreads
from tests.usage.databases import FOREVER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.accounting.receipt import Receipt


class UsageBook:
    """A usage database with its reader."""

    def __init__(self, address: str) -> None:
        self.engine = UsageEngine(address)
        self.engine.open()  # here, because migrations exceed the time limit of a query
        self.database = UsageDatabase(self.engine, FOREVER)
        self.threads = QueryThreads(self.engine)
        self.sums = SumsReader(self.threads)

    def add(self, receipts: Iterable[Receipt]) -> None:
        self.database.add(OutboxEntry(one.tenant, "1-0", one.to_json()) for one in receipts)

    def close(self) -> None:
        self.threads.close()
        self.engine.close()
