"""Each receipt is stored and counted once, despite dying workers and data loss in Redis."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import pytest_asyncio
from redis.exceptions import TimeoutError as RedisTimeoutError
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from gateway.errors import StartupError
from gateway.quality.book import QualityStore
from gateway.quality.comparison import OUTBOX, Comparison
from gateway.quality.feedback import FeedbackStore
from gateway.quality.outcome import Outcome
from gateway.redis.keys import OUTCOMES
from gateway.telemetry.metrics import Metrics
from gateway.usage.entries import OutboxEntry
from gateway.usage.feed import OutboxFeed
from gateway.usage.queries import UsageQueries
from gateway.usage.state import NO_WORKER, WorkerLease, WorkerState, WorkerStateReader
from gateway.usage.tables import COMPARISONS, DAY_S, OUTCOME_ROWS, SUMS, UPTIME
from tests.accounting.receipt_builders import candidate, closed, guided, intent
from tests.usage.outboxes import Outboxes, open_outboxes, receipts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from gateway.usage.worker import UsageWorker


@pytest_asyncio.fixture
async def outboxes(redis_url: str, address: str) -> AsyncIterator[Outboxes]:
    async with open_outboxes(redis_url, address) as one:
        yield one


@pytest_asyncio.fixture
async def in_sqlite(redis_url: str, tmp_path: Path) -> AsyncIterator[Outboxes]:
    async with open_outboxes(redis_url, f"sqlite:///{tmp_path}/usage.db") as one:
        yield one


async def published(outboxes: Outboxes, worker: UsageWorker) -> WorkerState:
    await worker.publish_once()
    return await WorkerStateReader(outboxes.redis, outboxes.keys.ledger(), outboxes.metrics, "here").read()


async def test_settled_receipts_are_written_once_and_removed_from_the_outbox(outboxes: Outboxes) -> None:
    settled = [*receipts(30), *receipts(7, "beta")]
    await outboxes.settle(*settled)
    worker = await outboxes.worker()
    await worker.round()
    await outboxes.check(settled)
    assert await outboxes.lengths() == {"acme": 0, "beta": 0}
    await worker.publish_once()
    states = WorkerStateReader(outboxes.redis, outboxes.keys.ledger(), outboxes.metrics, "here")
    assert await states.read() == WorkerState(up=True, by="ann")
    value = outboxes.metrics.registry.get_sample_value
    assert value("gkt_usage_up") == 1
    assert value("gkt_usage_receipts", {"result": "inserted"}) == 37


async def test_receipts_of_a_dead_worker_are_written_once(outboxes: Outboxes) -> None:
    settled = receipts(10)
    await outboxes.settle(*settled)
    dead = outboxes.feed("worker-9")
    assert len((await dead.read_new(4)).entries) == 4
    await outboxes.store.write((await dead.read_new(3)).entries)
    worker = await outboxes.worker(claim_after_s=0.0)
    await worker.round()
    assert await outboxes.pending() == 7
    await worker.publish_once()
    await worker.round()
    await outboxes.check(settled)
    assert await outboxes.lengths() == {"acme": 0}


async def test_three_workers_at_once_write_each_once(outboxes: Outboxes) -> None:
    """Each worker claims entries that the others have just read."""
    settled = receipts(200)
    settings = {"claim_after_s": 0.0, "max_entries": 10, "read_entries": 7}
    workers = [await outboxes.worker(name, outboxes.new_store(), **settings) for name in ("ann", "bob", "carl")]
    for start in range(0, 200, 20):
        await outboxes.settle(*settled[start : start + 20])
        outboxes.later_s += 10
        for one in workers:
            await one.publish_once()
        await asyncio.gather(*(one.round() for one in workers))
    for one in workers:
        while not await one.round():
            pass
    await outboxes.check(settled)
    assert [lease.number for lease in outboxes.leases] == [1, 2, 3]


async def test_a_true_receipt_takes_an_abandoned_ones_place(outboxes: Outboxes) -> None:
    one = intent(created=int(time.time()))
    true = msgspec.structs.replace(closed(guided()), id=one.id, tenant=one.tenant, created=one.created)
    await outboxes.ledger.exchange([candidate(one)], [])
    await outboxes.abandon(one)
    worker = await outboxes.worker()
    await worker.round()
    assert await outboxes.counted() == 1
    await outboxes.settle(true)
    await worker.round()
    await outboxes.check([true])
    assert await outboxes.store.read(UsageQueries.receipt, one.tenant, one.id) == true.to_json()


async def test_receipts_sent_again_after_a_loss_of_data_count_once(outboxes: Outboxes) -> None:
    settled = receipts(5)
    await outboxes.settle(*settled)
    worker = await outboxes.worker()
    await worker.round()
    await outboxes.forget_all()
    await outboxes.settle(*settled[2:], *(more := receipts(3)))
    outboxes.later_s += 1
    await worker.round()
    await outboxes.check([*settled, *more])


async def test_entries_of_a_lost_reply_are_written_at_once(outboxes: Outboxes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis has delivered them, but the worker timed out. The worker reads them again without waiting a minute."""
    worker = await outboxes.worker()
    await worker.round()
    settled = receipts(5)
    await outboxes.settle(*settled)
    outboxes.later_s += 1
    read = outboxes.redis.xreadgroup

    async def lose(*args: Any, **options: Any) -> None:
        await read(*args, **options)
        raise RedisTimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(outboxes.redis, "xreadgroup", lose)
        with pytest.raises(RedisTimeoutError):
            await worker.round()
    assert await outboxes.pending() == 5
    assert await worker.round() == 0
    await outboxes.check(settled)
    assert await outboxes.lengths() == {"acme": 0}
    assert await worker.round() > 0


async def test_acknowledgements_that_redis_forgot_are_made_again(outboxes: Outboxes) -> None:
    """The worker reads its pending entries after a restart of Redis."""
    settled = receipts(5)
    await outboxes.settle(*settled)
    worker = await outboxes.worker()
    await worker.round()
    await worker.round()
    before = receipts(3)
    await outboxes.settle(*before)
    await outboxes.store.write((await outboxes.feed("worker-1").read_new(100)).entries)
    outboxes.client.on_restart()
    await worker.round()
    await outboxes.check([*settled, *before])
    assert await outboxes.lengths() == {"acme": 0}


async def test_redis_fails_between_commit_and_acknowledgement(
    outboxes: Outboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled = receipts(5)
    await outboxes.settle(*settled)
    worker = await outboxes.worker()

    async def fail(*_: Any) -> None:
        raise ConnectionResetError

    with monkeypatch.context() as patch:
        patch.setattr(OutboxFeed, "acknowledge", fail)
        with pytest.raises(ConnectionResetError):
            await worker.round()
    assert (await published(outboxes, worker)).error is None, "the database did not fail"
    await outboxes.check(settled)
    assert await outboxes.pending() == 5
    await worker.round()
    await outboxes.check(settled)
    assert await outboxes.lengths() == {"acme": 0}


async def test_while_the_database_is_away_entries_are_kept_and_one_line_is_logged(
    outboxes: Outboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled = receipts(5)
    await outboxes.settle(*settled)
    worker = await outboxes.worker()
    write = outboxes.store.write

    async def fail(_: Any) -> Any:
        raise OperationalError("secret", {}, sqlite3.OperationalError("disk is full"))

    with capture_logs() as logs:
        monkeypatch.setattr(outboxes.store, "write", fail)
        pauses = [await worker.round() for _ in range(6)]
        state = await published(outboxes, worker)
        assert state == WorkerState(False, state.lag_s, 5, "OperationalError", "ann")
        assert state.lag_s == round(state.lag_s, 3) < 60
        monkeypatch.setattr(outboxes.store, "write", write)
        while await worker.round() == 0:
            pass
    assert 0.4 <= pauses[0] <= 0.5
    assert pauses[:4] == sorted(pauses[:4])
    assert 4 <= pauses[-1] <= 5
    assert [line["event"] for line in logs] == ["usage_database_unavailable", "usage_database_available"]
    assert "secret" not in str(logs)
    await outboxes.check(settled)


async def test_a_worker_that_starts_without_its_database_connects_later(in_sqlite: Outboxes, tmp_path: Path) -> None:
    worker = await in_sqlite.worker()
    (tmp_path / "usage.db").mkdir()
    await worker.round()
    assert (await published(in_sqlite, worker)).up is False
    (tmp_path / "usage.db").rmdir()
    await worker.round()
    assert (await published(in_sqlite, worker)).up is True


async def test_a_locked_database_is_waited_for(in_sqlite: Outboxes, tmp_path: Path) -> None:
    """A backup or a person has SQLite's lock."""
    worker = await in_sqlite.worker(store=in_sqlite.new_store(wait_s=1))
    await worker.round()
    settled = receipts(5)
    await in_sqlite.settle(*settled)
    lock = sqlite3.connect(tmp_path / "usage.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    in_sqlite.later_s += 1
    await worker.round()
    assert (await published(in_sqlite, worker)).error == "OperationalError"
    lock.execute("COMMIT")
    lock.close()
    await worker.round()
    await in_sqlite.check(settled)


async def test_unreadable_entries_block_no_others(outboxes: Outboxes) -> None:
    settled = receipts(3)
    await outboxes.settle(*settled)
    await outboxes.redis.xadd(outboxes.keys.outbox("acme"), {"receipt": b'{"id": "unreadable"}'})
    worker = await outboxes.worker()
    await worker.round()
    await outboxes.check(settled)
    assert await outboxes.store.read(UsageQueries.count_unreadable) == 1
    assert await outboxes.lengths() == {"acme": 0}


async def test_comparisons_are_written_once(outboxes: Outboxes) -> None:
    """Receipts are written, too. An unreadable comparison is stored as unreadable."""
    one = Comparison("req_1", int(time.time()), "acme", "token_f1", "short", "chat", guided=9, student=8)
    settled = receipts(2)
    await outboxes.settle(*settled)
    book = QualityStore(outboxes.redis, outboxes.keys)
    await book.add(one)
    await book.add(one)
    await outboxes.redis.xadd(outboxes.keys.outbox("acme"), {"comparison": b'{"id": "newer"}'})
    await (await outboxes.worker()).round()
    await outboxes.check(settled)
    with outboxes.store.engine.reading() as connection:
        rows = connection.execute(COMPARISONS.select()).mappings().all()
    fields = {name: value for name, value in msgspec.structs.asdict(one).items() if name not in ("variant", "unit")}
    assert [{**row} for row in rows] == [{**fields, "day": one.created // DAY_S}]
    assert await outboxes.store.read(UsageQueries.count_unreadable) == 1
    assert await outboxes.lengths() == {"acme": 0}
    assert await outboxes.redis.xlen(outboxes.keys.outbox(OUTBOX)) == 0


async def test_outcomes_are_written_once(outboxes: Outboxes) -> None:
    """Callers repeat a score, and workers get an entry twice. An unreadable outcome is stored as unreadable."""
    one = Outcome("req_1", int(time.time()), "acme", "chat", "long", "u", "feedback", 7500)
    feedback = FeedbackStore(outboxes.redis, outboxes.keys, 60)
    assert await feedback.score("acme", "req_1") is None
    assert await feedback.add(one) == 0.75
    assert await feedback.add(msgspec.structs.replace(one, score=1)) == 0.75, "the first score counts"
    assert await feedback.score("acme", "req_1") == 0.75
    assert await feedback.score("globex", "req_1") is None
    assert 60 < await outboxes.redis.ttl(outboxes.keys.feedback("acme", "req_1")) <= 120
    assert await outboxes.redis.xlen(outboxes.keys.outbox(OUTCOMES)) == 1
    await outboxes.redis.xadd(outboxes.keys.outbox(OUTCOMES), {"outcome": one.to_json()})
    await outboxes.redis.xadd(outboxes.keys.outbox(OUTCOMES), {"outcome": b'{"id": "newer"}'})
    await (await outboxes.worker()).round()
    with outboxes.store.engine.reading() as connection:
        rows = connection.execute(OUTCOME_ROWS.select()).mappings().all()
    assert [{**row} for row in rows] == [{**msgspec.structs.asdict(one), "day": one.created // DAY_S}]
    assert await outboxes.store.read(UsageQueries.count_unreadable) == 1
    assert await outboxes.redis.xlen(outboxes.keys.outbox(OUTCOMES)) == 0


async def test_a_comparison_rejected_by_the_database_blocks_no_others(outboxes: Outboxes) -> None:
    """Receipts and other comparisons are written nevertheless."""
    one = Comparison("req_1", int(time.time()), "acme", "token_f1", "short", "chat", guided=9, student=8)
    settled, book = receipts(2), QualityStore(outboxes.redis, outboxes.keys)
    await outboxes.settle(*settled)
    await book.add(msgspec.structs.replace(one, id="req_2", guided=10**30))
    await book.add(one)
    await (await outboxes.worker()).round()
    await outboxes.check(settled)
    with outboxes.store.engine.reading() as connection:
        assert connection.execute(COMPARISONS.select()).mappings().one()["id"] == "req_1"
    assert await outboxes.store.read(UsageQueries.count_unreadable) == 1
    assert await outboxes.redis.xlen(outboxes.keys.outbox(OUTBOX)) == 0


async def test_unreadable_sums_are_reported_and_lose_nothing(outboxes: Outboxes) -> None:
    """The state of the worker has the error until the sums are repaired."""
    first, then = receipts(2), receipts(2)
    worker = await outboxes.worker()
    await outboxes.settle(*first)
    await worker.round()
    with outboxes.store.engine.writing() as connection:
        held = connection.execute(SUMS.select()).all()
        connection.execute(SUMS.update().values(row=b"unknown"))
    await outboxes.settle(*then)
    await worker.round()
    await worker.publish_once()
    states = WorkerStateReader(outboxes.redis, outboxes.keys.ledger(), Metrics(), "here")
    state = await states.read()
    assert (state.up, state.error) == (False, "ValidationError")
    with outboxes.store.engine.writing() as connection:
        connection.execute(SUMS.delete())
        connection.execute(SUMS.insert(), [row._asdict() for row in held])
    await worker.round()
    await outboxes.check([*first, *then])


async def test_the_minutes_of_engines_are_counted(outboxes: Outboxes) -> None:
    """A new worker begins with the last counted minute, which may lack its end."""
    minute, keys = int(outboxes.client.now()) // 60, outboxes.keys.ledger()

    async def publish(minute: int, *kinds: str) -> None:
        await outboxes.redis.hset(keys.engine_minute(minute), mapping={f"{kind}:big": "2" for kind in kinds})

    async def counted() -> tuple[int, int]:
        with outboxes.store.engine.reading() as connection:
            rows = connection.execute(UPTIME.select()).all()
        return sum(row.minutes_up for row in rows), sum(row.minutes_seen for row in rows)

    await publish(minute - 100, "up", "seen")
    await publish(minute - 50, "seen")
    worker = await outboxes.worker()
    await worker.round()
    assert await counted() == (1, 2)
    await publish(minute - 50, "up")
    await publish(minute, "up", "seen")
    restarted = await outboxes.worker("bob")
    await restarted.round()
    assert await counted() == (3, 3)
    outboxes.later_s += 60
    await worker.round()
    assert await counted() == (3, 3)


async def test_on_stop_pending_receipts_are_written(outboxes: Outboxes) -> None:
    """Receipts of tenants that the worker has not read before are written, too. Its number is free at once."""
    worker = await outboxes.worker()
    await worker.round()
    settled = [*receipts(5), *receipts(5, "beta")]
    await outboxes.settle(*settled)
    stop = asyncio.Event()
    stop.set()
    await worker.run(stop)
    await outboxes.check(settled)
    assert await outboxes.redis.get(outboxes.keys.ledger().worker(1)) is None


async def test_old_receipts_are_deleted(outboxes: Outboxes) -> None:
    now = time.time()
    old = [
        msgspec.structs.replace(one, id=f"req_{int(now) - 9 * 86_400:08x}{place:016x}", created=int(now) - 9 * 86_400)
        for place, one in enumerate(receipts(1_200))
    ]
    await outboxes.store.write([OutboxEntry("acme", f"{place}-1", one.to_json()) for place, one in enumerate(old)])
    settled = receipts(3)
    await outboxes.settle(*settled)
    worker = await outboxes.worker(keep_s=5 * 86_400)
    while await worker.round() == 0:
        pass
    assert await outboxes.ids() == sorted(one.id for one in settled)
    assert await outboxes.counted() == 1_203, "sums are kept for longer"


async def test_seats_and_states_of_a_fleet(in_sqlite: Outboxes) -> None:
    keys, redis = in_sqlite.keys.ledger(), in_sqlite.redis
    states = WorkerStateReader(redis, keys, in_sqlite.metrics, "here")
    assert (await states.read()).up is None
    assert await states.read() == WorkerState(up=False, error=NO_WORKER)
    ann, bob, carl = (WorkerLease(redis, keys, name) for name in ("ann", "bob", "carl"))
    await ann.join()
    await bob.join()
    with pytest.raises(StartupError, match="2 usage workers"):
        await carl.join(max_workers=2)
    await ann.publish(WorkerState(False, 3.0, 9, "OperationalError", "ann"), {"inserted": 2, "known": 0})
    await bob.publish(WorkerState(True, 1.0, 12, None, "bob"), {"inserted": 3})
    assert await states.read() == WorkerState(True, 3.0, 12, "OperationalError", "ann, bob")
    assert in_sqlite.metrics.registry.get_sample_value("gkt_usage_receipts", {"result": "inserted"}) == 5
    await ann.leave()
    await carl.join()
    assert carl.number == 1
