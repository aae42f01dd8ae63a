"""Usage databases for tests: SQLite in a folder, or a new database in a real PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from gateway.api.usage import encoded
from gateway.usage.database import UsageDatabase
from gateway.usage.database_reader import DatabaseReader
from gateway.usage.engine import UsageEngine
from gateway.usage.entries import OutboxEntry
from gateway.usage.threads import QueryThreads
from tests.usage.databases import FOREVER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.accounting.receipt import Receipt
    from gateway.usage.usage import UsageResult


class UsageBook:
    """A usage database with its reader."""

    def __init__(self, address: str) -> None:
        self.engine = UsageEngine(address)
        self.engine.open()  # here, because migrations exceed the time limit of a query
        self.database = UsageDatabase(self.engine, FOREVER)
        self.threads = QueryThreads(self.engine.reading)
        self.reader = DatabaseReader(self.threads)

    def add(self, receipts: Iterable[Receipt]) -> None:
        self.database.add(OutboxEntry(one.tenant, "1-0", one.to_json()) for one in receipts)

    def close(self) -> None:
        self.threads.close()
        self.engine.close()


def as_json(result: UsageResult) -> dict[str, Any]:
    """Return a result as GET /v1/usage sends it."""
    decoded: dict[str, Any] = orjson.loads(encoded(result))
    return decoded
