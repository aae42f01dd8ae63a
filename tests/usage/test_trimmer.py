"""Without a usage worker the outboxes stay within their limit, and lost receipts are counted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import OutOfMemoryError
from redis.exceptions import TimeoutError as RedisTimeoutError
from structlog.testing import capture_logs

from gateway.accounting.edge_book import EdgeBook
from gateway.accounting.redis_ledger import RedisLedger
from gateway.quality.book import QualityStore
from gateway.quality.comparison import OUTBOX
from gateway.usage.feed import GROUP
from gateway.usage.state import WorkerState
from gateway.usage.trimmer import QUIET_S, STEP_S, InactiveTenants, OutboxTrimmer, level
from tests.usage.outboxes import Outboxes, open_outboxes, receipts
from tests.usage.test_comparisons import comparison

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

DOWN = WorkerState(up=False, error="no usage worker runs")


@pytest_asyncio.fixture
async def outboxes(redis_url: str, tmp_path: Path) -> AsyncIterator[Outboxes]:
    async with open_outboxes(redis_url, f"sqlite:///{tmp_path}/usage.db") as one:
        yield one


def trimmer(outboxes: Outboxes, limit: int, state: WorkerState = DOWN, process_id: str = "ann") -> OutboxTrimmer:
    client, keys, metrics = outboxes.client, outboxes.keys, outboxes.metrics
    return OutboxTrimmer(client, keys, process_id, limit=limit, state=lambda: state, metrics=metrics)


def lost(outboxes: Outboxes) -> float:
    return outboxes.metrics.registry.get_sample_value("gkt_receipts_lost_total") or 0.0


@given(st.lists(st.integers(0, 1_000), max_size=12), st.integers(1, 3_000))
def test_the_longest_outboxes_are_trimmed_first_and_only_as_needed(lengths: list[int], limit: int) -> None:
    cut_to = level(lengths, limit)
    assert sum(min(one, cut_to) for one in lengths) <= limit
    if sum(lengths) > limit:
        assert sum(min(one, cut_to + 1) for one in lengths) > limit
    else:
        assert cut_to == max(lengths, default=0)


async def test_a_loud_tenant_takes_no_room_of_others_and_the_loss_is_logged_once(outboxes: Outboxes) -> None:
    await outboxes.settle(*receipts(1_200, "loud"), *receipts(30, "quiet"))
    one = trimmer(outboxes, limit=80)
    with capture_logs() as logs:
        assert await one.trim() == 1_150
        assert await outboxes.lengths() == {"loud": 50, "quiet": 30}
        await outboxes.settle(*receipts(1, "loud"))
        assert await one.trim() == 1
        assert await one.trim() == 0
        await outboxes.settle(*receipts(1, "loud"))
        assert await one.trim() == 1
    assert lost(outboxes) == 1_152
    assert [(line["event"], line["count"], line["limit"]) for line in logs] == [
        ("receipts_lost", 1_150, 80),
        ("receipts_lost", 1, 80),
    ]


async def test_each_receipt_of_a_burst_is_either_there_or_counted(outboxes: Outboxes) -> None:
    """Settling and reporting delete no entries between two rounds."""
    await outboxes.settle(*receipts(1_500))
    edge_book = EdgeBook(outboxes.redis, outboxes.keys, 100)
    for one in receipts(250):
        assert await edge_book.write(msgspec.structs.replace(one, edge_of=one.id), None) == "uncounted"
    assert await outboxes.lengths() == {"acme": 1_750}
    await trimmer(outboxes, limit=1_000).trim()
    assert await outboxes.lengths() == {"acme": 1_000}
    assert lost(outboxes) == 750


async def test_a_full_redis_is_trimmed(outboxes: Outboxes) -> None:
    """Redis stores no lease. Deleted receipts are counted once, also by the next holder of the lease."""
    await outboxes.settle(*receipts(100))
    ann = trimmer(outboxes, limit=40)
    await outboxes.redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(OutOfMemoryError):
            await outboxes.redis.set(outboxes.keys.ledger().trimmer, "bob")
        assert await ann.acquire_lease()
        assert await ann.trim() == 60
    finally:
        await outboxes.redis.config_set("maxmemory", "0")
    assert await outboxes.lengths() == {"acme": 40}
    assert [await ann.trim(), await trimmer(outboxes, limit=40, process_id="bob").trim()] == [0, 0]
    assert lost(outboxes) == 60


async def test_comparisons_are_not_counted_as_receipts(outboxes: Outboxes) -> None:
    book = QualityStore(outboxes.redis, outboxes.keys)
    for number in range(20):
        await book.add(comparison(number, 1, 1))
    await outboxes.settle(*receipts(10))
    assert await trimmer(outboxes, limit=5).trim() == 8
    assert await outboxes.redis.xlen(outboxes.keys.outbox(OUTBOX)) == 2


async def test_trimmed_entries_are_counted_once_despite_a_lost_reply(
    outboxes: Outboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entries are counted by this process or another one, also after a worker keeps up again."""
    await outboxes.settle(*receipts(100))
    ann, bob = trimmer(outboxes, limit=40), trimmer(outboxes, limit=40, state=WorkerState(up=True), process_id="bob")
    evalsha = outboxes.client.commands.evalsha

    async def lose(*args: Any) -> Any:
        reply = await evalsha(*args)
        if GROUP in args:  # entries were deleted
            raise RedisTimeoutError
        return reply

    with monkeypatch.context() as patch:
        patch.setattr(outboxes.client.commands, "evalsha", lose)
        with pytest.raises(RedisTimeoutError):
            await ann.trim()
    assert lost(outboxes) == 0
    assert [await bob.trim(), await ann.trim(), await bob.trim()] == [60, 0, 0]
    await outboxes.settle(*receipts(5))
    assert [await ann.trim(), await bob.trim()] == [5, 0]
    assert lost(outboxes) == 65
    await outboxes.forget_all()
    await outboxes.settle(*receipts(45))
    assert [await ann.trim(), await bob.trim()] == [5, 0]
    assert lost(outboxes) == 70


async def test_the_newest_stay_and_reach_the_database(outboxes: Outboxes) -> None:
    settled = receipts(100)
    await outboxes.settle(*settled)
    await trimmer(outboxes, limit=40).trim()
    worker = await outboxes.worker()
    await worker.round()
    await outboxes.check(settled[60:])


async def test_entries_that_a_worker_has_taken_are_not_counted_as_lost(outboxes: Outboxes) -> None:
    """The worker has them in memory. After its death, the worker that claims them counts them."""
    await outboxes.settle(*receipts(100))
    await outboxes.feed().read_new(30)
    assert await trimmer(outboxes, limit=40).trim() == 30
    claimed = await outboxes.feed("worker-2").claim(["acme"], 0, 1_000)
    assert claimed.trimmed == 30


async def test_nothing_is_measured_while_a_worker_keeps_up(outboxes: Outboxes) -> None:
    await outboxes.settle(*receipts(100))
    assert await trimmer(outboxes, limit=80, state=WorkerState(up=True, waiting=40)).trim() == 0
    assert await outboxes.lengths() == {"acme": 100}
    assert await trimmer(outboxes, limit=80, state=WorkerState(up=True, waiting=41)).trim() == 20


async def test_one_process_trims_at_a_time(outboxes: Outboxes) -> None:
    ann, bob = trimmer(outboxes, limit=80), trimmer(outboxes, limit=80, process_id="bob")
    assert [await ann.acquire_lease(), await bob.acquire_lease(), await ann.acquire_lease()] == [True, False, True]


async def test_a_tenant_that_was_quiet_for_long_is_forgotten_and_comes_back(outboxes: Outboxes) -> None:
    keys, now = outboxes.keys.ledger(), time.time()
    settled = receipts(3)
    await outboxes.settle(*settled)
    worker = await outboxes.worker()
    await worker.round()
    inactive = InactiveTenants(outboxes.redis, outboxes.keys)
    assert await inactive.begin(["acme"], now) == []
    assert await inactive.begin(["acme"], now + QUIET_S + 60) == ["acme"]
    later = now + QUIET_S + 60 + STEP_S
    assert await inactive.end(later - 1) == []

    # A process that has registered the tenant before settles a receipt: the outbox is read again.
    await outboxes.settle(*(more := receipts(2)))
    assert await inactive.end(later) == []
    assert await outboxes.lengths() == {"acme": 2}
    outboxes.later_s += 1
    await worker.round()

    assert await inactive.begin(["acme"], now + 2 * QUIET_S) == ["acme"]
    assert await inactive.end(now + 3 * QUIET_S) == ["acme"]
    for name in (keys.leaving, keys.tenants, outboxes.keys.outbox("acme")):
        assert not await outboxes.redis.exists(name)
    outboxes.ledger = RedisLedger(outboxes.redis, outboxes.keys, "ann", 100, 10)
    await outboxes.settle(*(new := receipts(4)))
    outboxes.later_s += 1
    await worker.round()
    await outboxes.check([*settled, *more, *new])


async def test_a_new_tenant_does_not_leave_before_its_first_receipt_is_there(outboxes: Outboxes) -> None:
    await outboxes.ledger._name_tenants({"acme"})
    await outboxes.feed().read_new(10)
    inactive = InactiveTenants(outboxes.redis, outboxes.keys)
    assert await inactive.begin(["acme"], time.time() + 2 * QUIET_S) == []
