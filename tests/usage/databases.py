"""Usage databases for tests, and receipts to write to them."""

from __future__ import annotations

import random
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.accounting.receipt import Receipt, with_savings
from gateway.usage.database import UsageDatabase
from gateway.usage.engine import UsageEngine
from gateway.usage.entries import OutboxEntry
from gateway.usage.queries import ReceiptFilter, UsageQueries
from gateway.usage.sums import Retention
from gateway.usage.tables import DAY_S
from gateway.usage.verify import differences
from load_tests.day_receipts import day_of_receipts
from tests.accounting.receipt_builders import closed, guided

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = 1_790_000_000
DAY = NOW // DAY_S
FOREVER = Retention(minute=1e9, hour=1e9, day=1e9)


@contextmanager
def opened(address: str, **settings: Any) -> Iterator[UsageEngine]:
    engine = UsageEngine(address, **settings)
    try:
        yield engine
    finally:
        engine.close()


def database(engine: UsageEngine, retention: Retention = FOREVER, now: float = NOW) -> UsageDatabase:
    return UsageDatabase(engine, retention, lambda: now)


def receipt(created: int = NOW, **more: Any) -> Receipt:
    """Return the receipt of a guided request with a new id."""
    id_ = f"req_{created:08x}{secrets.token_hex(8)}"
    return with_savings(msgspec.structs.replace(closed(guided()), **{"id": id_, "created": created, **more}))


def receipts_of_a_day(count: int, seed: int = 7, tenants: int = 5) -> list[Receipt]:
    """Return receipts of the day before `NOW` with many modes, keys and engines."""
    rng = random.Random(seed)
    return [
        with_savings(msgspec.structs.replace(one, id=f"req_{one.created:08x}{rng.randbytes(8).hex()}"))
        for one in day_of_receipts(count, tenants, NOW, seed)
    ]


def entry(receipt: Receipt, id_: str = "1-0") -> OutboxEntry:
    return OutboxEntry(receipt.tenant, id_, receipt.to_json())


def entries(receipts: list[Receipt]) -> list[OutboxEntry]:
    return [entry(one, f"{index}-0") for index, one in enumerate(receipts)]


def held(engine: UsageEngine) -> list[Receipt]:
    """Return all receipts in the database, in key order."""
    with engine.reading() as connection:
        return [Receipt.from_json(raw) for _, raw in UsageQueries(connection).page(ReceiptFilter(), None, 1_000_000)]


def check_sums(engine: UsageEngine) -> None:
    """Assert that the sums of all days match the receipts."""
    days = {one.created // DAY_S for one in held(engine)} | {DAY - 1, DAY}
    with engine.reading() as connection:
        for day in sorted(days):
            assert list(differences(connection, day)) == []
