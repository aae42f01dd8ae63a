"""Unreadable entries are shown, logged and written again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
import pytest_asyncio
from sqlalchemy import select
from structlog.testing import capture_logs

from gateway.quality.comparison import OUTBOX, Comparison
from gateway.quality.outcome import Outcome
from gateway.redis.keys import OUTCOMES
from gateway.usage import upkeep
from gateway.usage.database import WriteResult
from gateway.usage.entries import OutboxEntry
from gateway.usage.queries import UsageQueries
from gateway.usage.repair import Repair, repair
from gateway.usage.store import UsageStore
from gateway.usage.tables import COMPARISONS, OUTCOME_ROWS, UNREADABLE
from tests.usage.databases import FOREVER, NOW, check_sums, database, entries, held, receipts_of_a_day

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.accounting.receipt import Receipt

LOST = OutboxEntry("acme", "9-0", b"no receipt")
_REJECTS = "gateway.usage.database.row_of"


@pytest_asyncio.fixture
async def store(address: str) -> AsyncIterator[UsageStore]:
    store = UsageStore(address, FOREVER)
    yield store
    await store.close()


def reject(store: UsageStore, monkeypatch: pytest.MonkeyPatch, receipts: list[Receipt]) -> WriteResult:
    """Write receipts and one damaged entry. The database accepts none of them."""
    with monkeypatch.context() as patch:
        patch.setattr(_REJECTS, lambda *_: 1 / 0)
        return database(store.engine).add([*entries(receipts), LOST])


async def test_rejected_receipts_are_written_again(store: UsageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rejected = receipts_of_a_day(2), receipts_of_a_day(7)
    database(store.engine).add(entries(before))
    assert reject(store, monkeypatch, rejected) == WriteResult(unreadable=8)
    assert await store.read(UsageQueries.count_unreadable) == 8
    monkeypatch.setattr("gateway.usage.repair._ENTRIES_AT_ONCE", 3)
    assert await repair(store) == Repair(7, 1)
    assert await store.read(UsageQueries.count_unreadable) == 1
    assert {one.id for one in held(store.engine)} == {one.id for one in (*before, *rejected)}
    check_sums(store.engine)
    assert await repair(store) == Repair(0, 1)


async def test_a_repair_that_was_interrupted_counts_each_receipt_once(
    store: UsageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reject(store, monkeypatch, receipts_of_a_day(4))
    with monkeypatch.context() as patch:
        patch.setattr("gateway.usage.repair._delete", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await repair(store)
    assert await repair(store) == Repair(4, 1)
    assert len(held(store.engine)) == 4
    check_sums(store.engine)


async def test_a_worker_names_the_repair_at_its_start(store: UsageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    reject(store, monkeypatch, [])

    class Enough(Exception):
        pass

    pauses: list[float] = []

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 2:
            raise Enough

    monkeypatch.setattr(upkeep.asyncio, "sleep", sleep)
    with capture_logs() as logs, pytest.raises(Enough):
        await upkeep.keep_partitions(store)
    (unreadable,) = [one for one in logs if one["event"] == "usage_receipts_unreadable"]
    assert (unreadable["count"], unreadable["fix"]) == (1, "run gkt-gateway usage repair")


async def test_comparisons_and_outcomes_are_written_again(address: str) -> None:
    """Comparisons and outcomes have their own outboxes. Damaged entries, and those that the database rejects, stay."""
    comparison = Comparison("req_1", NOW, "acme", "token_f1", "short", "chat", guided=9, student=8)
    outcome = Outcome("req_2", NOW, "acme", "chat", "long", "u", "feedback", 7500)
    rejected = msgspec.structs.replace(comparison, guided=10**30)
    store = UsageStore(address, FOREVER)
    raws = {
        OUTBOX: (comparison.to_json(), rejected.to_json()),
        OUTCOMES: (outcome.to_json(), b"damaged"),
        "acme": (receipts_of_a_day(1)[0].to_json(), b"damaged"),
    }
    rows = [
        {"tenant": tenant, "entry": f"{number}-0", "error": "DecodeError", "receipt": raw}
        for tenant, found in raws.items()
        for number, raw in enumerate(found)
    ]
    try:
        await store.change(lambda connection: connection.execute(UNREADABLE.insert(), rows))
        assert await repair(store) == Repair(3, 3)
        assert await store.read(UsageQueries.count_unreadable) == 3
        with store.engine.reading() as connection:
            found = [connection.execute(select(table.c.id)).scalars().all() for table in (COMPARISONS, OUTCOME_ROWS)]
        assert found == [["req_1"], ["req_2"]]
        assert await store.count() == 1
    finally:
        await store.close()


async def test_an_intact_database_needs_no_repair(address: str) -> None:
    store = UsageStore(address, FOREVER)
    try:
        await store.write(entries(receipts_of_a_day(5)))
        assert await store.read(UsageQueries.count_unreadable) == 0
        assert await repair(store) == Repair(0, 0)
        with capture_logs() as logs:
            await upkeep._warn(store)
        assert logs == []
    finally:
        await store.close()
