"""The event loop writes and finds receipts without waiting for the database."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from gateway.errors import UsageUnavailable
from gateway.usage.database import WriteResult
from gateway.usage.database_reader import ReceiptFinder
from gateway.usage.engine import UsageEngine
from gateway.usage.queries import ReceiptFilter, UsageQueries
from gateway.usage.store import UsageStore
from gateway.usage.tables import DAY_S
from gateway.usage.threads import QueryThreads
from tests.usage.databases import FOREVER, NOW, entries, entry, opened, receipt

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from gateway.accounting.receipt import Receipt


@asynccontextmanager
async def a_store(address: str) -> AsyncIterator[UsageStore]:
    store = UsageStore(address, FOREVER)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def a_finder(address: str, timeout_s: float = 5.0) -> AsyncIterator[ReceiptFinder]:
    engine = UsageEngine(address)
    threads = QueryThreads(engine.reading)
    try:
        yield ReceiptFinder(threads, timeout_s)
    finally:
        threads.close()
        await asyncio.to_thread(threads._short.shutdown)  # a query that timed out returns its connection
        await asyncio.to_thread(engine.close)


async def test_a_receipt_is_found_by_its_tenant_alone(address: str) -> None:
    """The ids have a time, have no time, or are of devices, on many days."""
    kinds = (dict, lambda: {"id": f"req_{secrets.token_hex(12)}"}, lambda: {"id": f"edge_{secrets.token_hex(16)}"})
    receipts = [receipt(NOW - days * DAY_S, tenant="acme", **kind()) for days in (0, 1, 600) for kind in kinds]
    async with a_store(address) as store, a_finder(address) as finder:
        assert await finder.find("acme", receipts[0].id) is None
        assert await store.write(entries(receipts)) == WriteResult(inserted=9)
        for one in receipts:
            assert await finder.find("acme", one.id) == one.to_json()
            assert await finder.find("globex", one.id) is None
        assert await finder.find("acme", "req_" + "0" * 24) is None


async def test_receipts_come_once_and_in_order_however_small_the_lists(address: str) -> None:
    receipts = [receipt(NOW - 5_000 * (index // 10), tenant="beta" if index % 3 else "acme") for index in range(100)]
    by_place = sorted(receipts, key=lambda one: (one.created // DAY_S, one.id))

    async def found(where: ReceiptFilter = ReceiptFilter()) -> list[bytes]:  # noqa: B008 - frozen
        return [raw async for batch in store.receipts(where, 7) for raw in batch]

    def chosen(where: ReceiptFilter) -> list[Receipt]:
        return [
            one
            for one in by_place
            if (where.since or 0) <= one.created < (where.until or NOW + 1) and where.tenant in (None, one.tenant)
        ]

    async with a_store(address) as store:
        assert await store.read(UsageQueries.span) is None
        await store.write(entries(receipts))
        assert await found() == [one.to_json() for one in by_place]
        assert await store.read(UsageQueries.span) == (NOW - 45_000, NOW)
        for where in (
            ReceiptFilter(),
            ReceiptFilter(tenant="beta"),
            ReceiptFilter(NOW - 20_000, NOW - 5_000),
            ReceiptFilter(NOW - 20_000, tenant="acme"),
        ):
            assert await found(where) == [one.to_json() for one in chosen(where)]
            assert await store.count(where) == len(chosen(where))


async def test_a_writer_that_hangs_delays_no_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"sqlite:///{tmp_path}/usage.db"
    async with a_store(address) as store, a_finder(address) as finder:
        one = receipt()
        await store.write([entry(one)])
        with store.engine.writing():
            writing = asyncio.ensure_future(store.write([entry(receipt())]))  # noqa: TID251
            await asyncio.sleep(0.05)
            assert await finder.find(one.tenant, one.id) == one.to_json()
            assert not writing.done()
        assert await writing == WriteResult(inserted=1)


async def test_a_database_that_hangs_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.usage.queries.UsageQueries.receipt", lambda *_: time.sleep(0.3))
    async with a_finder(f"sqlite:///{tmp_path}/usage.db", timeout_s=0.05) as finder:
        with pytest.raises(UsageUnavailable):
            await finder.find("acme", "req_" + "0" * 24)


async def test_a_newer_database_is_unavailable(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/usage.db"
    with opened(address) as engine, engine.writing() as connection:
        connection.exec_driver_sql("UPDATE usage_version SET version_num = '9999'")
    async with a_finder(address) as finder:
        with pytest.raises(UsageUnavailable):
            await finder.find("acme", "req_" + "0" * 24)


async def test_a_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    async with a_finder(f"postgresql+psycopg://gkt@/usage?host={tmp_path}") as finder:
        with pytest.raises(UsageUnavailable):
            await finder.find("acme", "req_" + "0" * 24)
