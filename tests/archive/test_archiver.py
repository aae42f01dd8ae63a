"""What is settled comes into the archive: each receipt, once, whoever dies on the way, and whatever Redis forgets."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec
import pytest_asyncio
from redis.asyncio import Redis
from structlog.testing import capture_logs

from gateway.archive import archiver as archiver_module
from gateway.archive import feed as archive_feed
from gateway.archive.archive import Archive
from gateway.archive.database import Where
from gateway.archive.state import ArchiveBoard, ArchiveState
from gateway.metrics import Metrics
from gateway.redis_client import RedisClient
from gateway.tasks import Tasks
from tests.archive.archives import Fed, address, receipts
from tests.batching.process import until
from tests.ledger.drafts import candidate, closed, guided, intent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

    from tests.postgres import Postgres


@pytest_asyncio.fixture
async def fed(redis_url: str, archive_url: str, data: Path) -> AsyncIterator[Fed]:
    client = RedisClient(redis_url, timeout_s=2, metrics=Metrics())
    archive = Archive(address(archive_url, data))
    async with Redis.from_url(redis_url) as redis:
        yield Fed(redis, client, archive)
    await archive.close()
    await client.close()


async def test_what_is_settled_is_archived_and_told_of(fed: Fed) -> None:
    """Of every tenant; up to the last entry, which whoever trims may go by."""
    told = [*receipts(30), *receipts(7, "beta")]
    await fed.settle(*told)
    await fed.ann._turn()
    assert sorted(await fed.ids()) == sorted(one.id for one in told)
    last = {
        tenant: (await fed.redis.xinfo_stream(fed.keys.outbox(tenant)))["last-generated-id"].decode()
        for tenant in ("acme", "beta")
    }
    assert await fed.feed.archived() == last
    assert fed.value("gkt_archived_total") == 37
    assert (fed.value("gkt_archive_up"), fed.value("gkt_archive_waiting")) == (1, 0)
    assert {(one.entry, one.receipt.id) async for some in fed.archive.batches() for one in some} == {
        (at.decode(), msgspec.json.decode(fields[b"receipt"])["id"])
        for tenant in last
        for at, fields in await fed.redis.xrange(fed.keys.outbox(tenant))
    }


async def test_one_tenants_flood_leaves_room_for_the_others(fed: Fed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiver_module, "_MOST_AT_ONCE", 20)
    monkeypatch.setattr(archive_feed, "_TENANTS_PER_CALL", 3)
    await fed.settle(*receipts(100, "loud"), *(one for name in "abcdefg" for one in receipts(2, f"quiet-{name}")))
    for _ in range(40):
        await fed.ann._turn()
    assert len(await fed.ids()) == 114


async def test_what_the_dead_had_taken_is_archived_by_the_next(fed: Fed) -> None:
    """It died before it wrote, and it died after it wrote and before it said so."""
    told = receipts(10)
    await fed.settle(*told)
    assert len((await fed.feed.take(4)).entries) == 4
    written = await fed.feed.take(3)
    await fed.archive.write(written.entries)
    await fed.archiver("bob")._turn()
    await fed.archiver("bob")._turn()
    assert sorted(await fed.ids()) == sorted(one.id for one in told)
    pending = await fed.redis.xpending(fed.keys.outbox("acme"), archive_feed.GROUP)
    assert pending["pending"] == 0


async def test_what_is_not_written_yet_is_not_told_of(fed: Fed) -> None:
    """Whoever trims keeps it, although later entries are archived already."""
    await fed.settle(*receipts(6))
    first, rest = await fed.feed.take(2), await fed.feed.take(10)
    await fed.archive.write(rest.entries)
    await fed.feed.told(rest.entries)
    reached = (await fed.feed.archived())["acme"]
    assert archive_feed.entry_parts(reached) < archive_feed.entry_parts(first.entries[0].id)
    assert (await fed.feed.behind()).waiting == 2
    await fed.feed.told(first.entries[:1])
    assert (await fed.feed.archived())["acme"] == first.entries[0].id
    await fed.feed.told(first.entries)
    assert (await fed.feed.archived())["acme"] == rest.entries[-1].id
    assert (await fed.feed.behind()).waiting == 0


async def test_two_that_both_believe_to_be_alone_keep_each_once(fed: Fed) -> None:
    """A lease that ended under one that still works, many times."""
    told = receipts(200)
    others = [fed.archiver(name) for name in ("ann", "bob", "carl")]
    for start in range(0, 200, 20):
        await fed.settle(*told[start : start + 20])
        for one in others:
            one._due["claim"] = 0.0
        await asyncio.gather(*(one._work() for one in others))
    for one in others:
        await one._work()
    assert sorted(await fed.ids()) == sorted(one.id for one in told)


async def test_a_true_receipt_takes_an_abandoned_ones_place(fed: Fed) -> None:
    one = intent(created=int(time.time()))
    true = msgspec.structs.replace(closed(guided()), id=one.id, tenant=one.tenant)
    await fed.ledger.exchange([candidate(one)], [])
    gone = await fed.abandon(one, time.time())
    await fed.ann._turn()
    await fed.settle(true)
    await fed.ann._turn()
    found = [one async for some in fed.archive.batches() for one in some]
    assert [(one.receipt, one.instead) for one in found] == [(true, gone)]


async def test_what_redis_forgets_is_archived_all_the_same_when_it_is_told_again(fed: Fed) -> None:
    """Outboxes, groups and names: it begins anew, and each is kept once."""
    told = receipts(5)
    await fed.settle(*told)
    await fed.ann._turn()
    await fed.redis.delete(*await fed.redis.keys(f"*{fed.keys.prefix}*"))
    fed.ledger.forget()
    await fed.settle(*told[2:], *(more := receipts(3)))
    await fed.ann._turn()
    assert sorted(await fed.ids()) == sorted(one.id for one in (*told, *more))


async def test_one_process_works_and_the_others_repeat_what_it_says(fed: Fed) -> None:
    bob = fed.archiver("bob")
    await fed.ann._turn()
    await bob._turn()
    assert (fed.ann._leads, bob._leads) == (True, False)
    assert bob._board.state == ArchiveState(up=True, by="ann")
    await fed.ann._lease.leave()
    await bob._turn()
    assert bob._leads


async def test_nobody_who_fills_it_is_seen(fed: Fed) -> None:
    board = ArchiveBoard(fed.redis, fed.keys.ledger(), fed.metrics, "here")
    await board.hear()
    assert board.state.up is None
    await board.hear()
    assert (board.state.up, board.state.error) == (False, "nobody fills it")
    assert fed.value("gkt_archive_up") == 0


async def test_receipts_that_were_trimmed_after_they_were_taken_are_counted(fed: Fed) -> None:
    await fed.settle(*receipts(5))
    await fed.feed.take(3)
    await fed.redis.xtrim(fed.keys.outbox("acme"), maxlen=4, approximate=False)
    with capture_logs() as logs:
        await fed.archiver("bob")._turn()
        await fed.archiver("bob")._turn()
    assert fed.value("gkt_archive_missed_total") == 1
    assert [line["count"] for line in logs if line["event"] == "receipts_not_archived"] == [1]
    assert len(await fed.ids()) == 4


async def test_old_receipts_go_after_their_time(fed: Fed, monkeypatch: pytest.MonkeyPatch) -> None:
    old = [msgspec.structs.replace(one, created=int(time.time()) - 1000) for one in receipts(3)]
    fed.keep_s = 500
    await fed.settle(*old, *(young := receipts(2)))
    ann = fed.archiver("ann")
    for _ in range(3):
        await ann._turn()
    assert sorted(await fed.ids()) == sorted(one.id for one in young)
    assert fed.value("gkt_archive_deleted_total") == 3


async def test_an_archive_that_is_away_is_said_once_and_nothing_is_lost(
    redis_url: str, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PostgreSQL that is killed under it, and comes back: what waits is counted, then written."""
    from tests.archive.archives import new_database

    monkeypatch.setattr(archiver_module, "_LONGEST_REST_S", 0.2)
    monkeypatch.setattr(archiver_module, "HEAR_EVERY_S", 0.05)
    client = RedisClient(redis_url, timeout_s=2, metrics=Metrics())
    archive, tasks = Archive(address(new_database(postgres), tmp_path)), Tasks()
    async with Redis.from_url(redis_url) as redis:
        fed = Fed(redis, client, archive)
        told = receipts(50)
        await fed.settle(*told[:10])
        tasks.keep("archive", fed.ann.run())
        try:
            with capture_logs() as logs:
                await until(lambda: fed.value("gkt_archived_total") == 10)
                await asyncio.to_thread(postgres.stop)
                try:
                    await fed.settle(*told[10:])
                    await until(lambda: fed.value("gkt_archive_up") == 0 and fed.value("gkt_archive_waiting") == 40)
                    assert fed.value("gkt_archive_lag_seconds") > 0
                    assert fed.ann._board.state.error is not None
                finally:
                    await asyncio.to_thread(postgres.start)
                await until(lambda: fed.value("gkt_archive_up") == 1 and fed.value("gkt_archive_waiting") == 0)
            assert [line["event"] for line in logs if line["event"].startswith("archive_")] == [
                "archive_away",
                "archive_back",
            ]
            assert "a-password" not in str(logs)
            assert await archive.count(Where()) == 50
            assert sorted(await fed.ids()) == sorted(one.id for one in told)
        finally:
            await tasks.close()
            await archive.close()
            await client.close()
