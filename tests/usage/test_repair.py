"""Constraints and unreadable receipts of an interrupted conversion are shown, logged and repaired."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import pytest_asyncio
from sqlalchemy import select, text
from structlog.testing import capture_logs

from gateway.errors import StartupError
from gateway.quality.comparison import OUTBOX, Comparison
from gateway.quality.outcome import Outcome
from gateway.redis.keys import OUTCOMES
from gateway.usage import partition_upkeep, upkeep
from gateway.usage.database import WriteResult
from gateway.usage.entries import OutboxEntry
from gateway.usage.repair import Damage, Repair, damage_of, repair
from gateway.usage.store import UsageStore
from gateway.usage.tables import COMPARISONS, OUTCOME_ROWS, UNREADABLE
from tests.postgres import new_database
from tests.usage.databases import DAY, FOREVER, NOW, check_sums, entries, held, receipts_of_a_day
from tests.usage.test_partitions import keep, make_plain, of_earlier_version, on_days

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.postgres import Postgres

LOST = OutboxEntry("acme", "9-0", b"no receipt")


@pytest_asyncio.fixture
async def store(postgres: Postgres) -> AsyncIterator[UsageStore]:
    """A database whose conversion was interrupted for more than a week, and its rejected receipts."""
    store = UsageStore(new_database(postgres).replace("postgresql:", "postgresql+psycopg:", 1), FOREVER)
    yield store
    await store.close()


def interrupt(store: UsageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    make_plain(store.engine)
    with monkeypatch.context() as patch:
        patch.setattr(partition_upkeep, "_attach", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            keep(store.engine)


async def test_rejected_receipts_are_written_again(store: UsageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(store, monkeypatch)
    before, after = on_days(DAY), on_days(*[DAY + 9] * 7, stored_tags=("a",))
    writer = of_earlier_version(store.engine)
    assert writer.add([*entries([*before, *after]), LOST]) == WriteResult(inserted=1, unreadable=8)
    damage = await store.read(damage_of)
    assert damage == Damage(8, {"usage_receipts": DAY + 8})
    monkeypatch.setattr("gateway.usage.repair._ENTRIES_AT_ONCE", 3)
    assert await repair(store) == Repair(1, 7, 1)
    assert await store.read(damage_of) == Damage(1, {})
    assert {one.id for one in held(store.engine)} == {one.id for one in (*before, *after)}
    check_sums(store.engine)
    assert await repair(store) == Repair(0, 0, 1)
    assert writer.add(entries(on_days(DAY + 30))).inserted == 1


async def test_a_repair_that_was_interrupted_counts_each_receipt_once(
    store: UsageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(store, monkeypatch)
    rejected = on_days(*[DAY + 9] * 4)
    of_earlier_version(store.engine).add(entries(rejected))
    with monkeypatch.context() as patch:
        patch.setattr("gateway.usage.repair._delete", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await repair(store)
    assert await repair(store) == Repair(0, 4, 0)
    assert len(held(store.engine)) == 4
    check_sums(store.engine)


async def test_a_table_in_use_is_named(store: UsageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database itself is available."""
    interrupt(store, monkeypatch)
    monkeypatch.setattr("gateway.usage.partitions.LOCK_WAIT_MS", 50)
    with store.engine.reading() as reader:
        reader.execute(text("SELECT COUNT(*) FROM usage_receipts"))
        with pytest.raises(StartupError, match="in use, by a worker that converts it or by a long query"):
            await repair(store)
    assert (await repair(store)).limits == 1


async def test_a_worker_names_the_repair_at_its_start(store: UsageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(store, monkeypatch)
    of_earlier_version(store.engine).add(entries(on_days(DAY + 9)))

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
    found: dict[str, Any] = {one["event"]: one for one in logs if "fix" in one}
    assert set(found) == {"usage_receipts_unreadable", "usage_conversion_incomplete"}
    assert len([one for one in logs if "fix" in one]) == 2
    unreadable, interrupted = found["usage_receipts_unreadable"], found["usage_conversion_incomplete"]
    assert (unreadable["count"], unreadable["fix"]) == (1, "run gkt-gateway usage-db repair")
    assert (interrupted["table"], interrupted["rejects_from"]) == ("usage_receipts", "2026-09-29")
    assert interrupted["fix"].endswith("run gkt-gateway usage-db repair")


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
        assert await repair(store) == Repair(0, 3, 3)
        assert await store.read(damage_of) == Damage(3, {})
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
        assert await store.read(damage_of) == Damage(0, {})
        assert await repair(store) == Repair(0, 0, 0)
        with capture_logs() as logs:
            await upkeep._warn(store)
        assert logs == []
    finally:
        await store.close()
