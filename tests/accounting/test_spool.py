"""Receipts survive their process on disk while Redis is down, up to a limit. Each is sent once when Redis is up."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
import stat
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from gateway.accounting.local_limits import LocalLimits
from gateway.accounting.redis_ledger import RedisLedger
from gateway.accounting.spool import Spool, SpoolEntry, other_spools
from gateway.accounting.spooler import Spooler
from gateway.accounting.store import ReceiptStore
from gateway.local.redis import EmbeddedRedis
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.accounting.receipt_builders import candidate, closed, guided, intent
from tests.batching.process import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from gateway.accounting.receipt import Receipt


class Process:
    """The store and the spool of one process."""

    def __init__(
        self,
        url: str,
        folder: Path,
        process_id: str,
        keys: RedisKeys,
        max_bytes: int = 1_000_000,
        max_waiting: int = 10_000,
        **settings: Any,
    ) -> None:
        self.metrics, self.tasks = Metrics(), BackgroundTasks()
        self.client = RedisClient(url, timeout_s=2, metrics=self.metrics)
        self.ledger = RedisLedger(self.client.commands, keys, process_id, 100, 10.0)
        self.store = ReceiptStore(
            self.client,
            self.ledger,
            local=LocalLimits(lambda: 1, lambda: 0.0),
            on_event=lambda _: None,
            metrics=self.metrics,
            max_waiting=max_waiting,
            retry_s=0.05,
        )
        self.client.on_restart = self.store.resend
        settings = {"check_interval_s": 0.02, "delay_s": 0.05} | settings
        self.spooler = Spooler(self.client, self.ledger, self.store, folder, max_bytes, self.metrics, **settings)
        self.file = folder / f"{process_id}.jsonl"

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def lines(self) -> list[str]:
        return [json.loads(line)["receipt"]["id"] for line in self.file.read_text().splitlines() if line[0] == "{"]

    async def die(self) -> None:
        """Stop as with kill -9: nothing is sent, and the kernel releases the lock."""
        await self.tasks.close()
        await self.client.close()
        await self.spooler.close()
        assert self.file.exists()


@asynccontextmanager
async def a_process(url: str, folder: Path, process_id: str, keys: RedisKeys, **more: Any) -> AsyncIterator[Process]:
    process = Process(url, folder, process_id, keys, **more)
    await process.client.require()
    process.tasks.keep("receipts", process.store.run())
    process.tasks.keep("redis", process.client.watch())
    process.tasks.keep("spooler", process.spooler.run())
    try:
        yield process
    finally:
        await process.tasks.close()
        await process.spooler.close()
        await process.client.close()


async def in_redis(url: str, keys: RedisKeys, tenant: str = "acme") -> tuple[list[str], list[str]]:
    """Return the ids of all receipts, and of the outbox entries of a tenant."""
    async with Redis.from_url(url) as redis:
        names = [name.decode().rpartition(":")[2] for name in await redis.keys(f"*{keys.prefix}:tenant:*:receipt:*")]
        posted = await redis.xrange(keys.outbox(tenant))
        return sorted(names), sorted(json.loads(fields[b"receipt"])["id"] for _, fields in posted)


def new() -> RedisKeys:
    return RedisKeys(f"t{secrets.token_hex(6)}")


def ids(receipts: list[Receipt]) -> list[str]:
    return sorted(one.id for one in receipts)


async def test_receipts_are_spooled_until_redis_has_them(tmp_path: Path) -> None:
    keys, folder = new(), tmp_path / "data" / "spool"
    async with EmbeddedRedis(append_fsync="always") as server, a_process(server.url, folder, "ann", keys) as ann:
        await server.stop()
        spooled_receipts = [closed(guided()) for _ in range(5)]
        for one in spooled_receipts:
            ann.store.put(one)
        await until(lambda: ann.value("gkt_spool_receipts") == 5)
        assert sorted(ann.lines()) == ids(spooled_receipts)
        assert stat.S_IMODE(ann.file.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert ann.value("gkt_spool_bytes") == ann.file.stat().st_size
        await server.start()
        await until(lambda: ann.value("gkt_spool_receipts") == 0 and ann.value("gkt_receipts_waiting") == 0, 10)
        assert ann.file.stat().st_size == 0
        assert await in_redis(server.url, keys) == (ids(spooled_receipts), ids(spooled_receipts))
        assert ann.value("gkt_receipts_lost_total") == 0
    assert not ann.file.exists()


async def test_receipts_above_the_memory_limit_are_sent_from_the_spool(tmp_path: Path) -> None:
    """Ten times as many: none is lost, and each is sent once."""
    keys, spooled_receipts = new(), list[Any]()
    async with (
        EmbeddedRedis(append_fsync="always") as server,
        a_process(server.url, tmp_path, "ann", keys, max_waiting=20, send_batch=7) as ann,
    ):
        await server.stop()
        for count in range(20, 201, 20):
            for one in (more := [closed(guided()) for _ in range(20)]):
                ann.store.put(one)
            spooled_receipts += more
            await until(lambda count=count: ann.value("gkt_spool_receipts") == count)
        assert ann.value("gkt_receipts_waiting") == 20
        assert ann.store.holds(spooled_receipts[0].id)
        await server.start()
        await until(lambda: ann.value("gkt_spool_receipts") == 0 and ann.value("gkt_receipts_waiting") == 0, 10)
        assert await in_redis(server.url, keys) == (ids(spooled_receipts), ids(spooled_receipts))
        assert (ann.value("gkt_receipts_lost_total"), ann.value("gkt_spool_replayed_total", spool="own")) == (0, 180)
        assert not ann.store.has_spooled


async def test_the_next_process_sends_the_spool_of_a_dead_one_and_settles_its_intents(tmp_path: Path) -> None:
    """The intents are settled under the dead process's id, which releases its reservations."""
    keys = new()
    async with EmbeddedRedis(append_fsync="always") as server:
        async with a_process(server.url, tmp_path, "ann", keys) as ann, Redis.from_url(server.url) as redis:
            intents = [intent("ann") for _ in range(6)]
            for one in intents:
                await ann.store.admit(candidate(one), on_failure="reject")
            assert await redis.hlen(keys.intents("acme", "ann")) == 6
            await server.stop()
            spooled_receipts = [msgspec.structs.replace(closed(guided()), id=one.id) for one in intents]
            for receipt in spooled_receipts:
                ann.store.put(receipt)
            await until(lambda: ann.value("gkt_spool_receipts") == 6)
            await ann.die()
        await server.start()
        async with a_process(server.url, tmp_path, "bob", keys) as bob, Redis.from_url(server.url) as redis:
            await until(lambda: bob.value("gkt_spool_replayed_total", spool="dead") == 6, 10)
            await until(lambda: not ann.file.exists())
            assert await in_redis(server.url, keys) == (ids(spooled_receipts), ids(spooled_receipts))
            assert await redis.hlen(keys.intents("acme", "ann")) == 0


async def test_a_living_processs_spool_is_its_own(tmp_path: Path) -> None:
    keys = new()
    often = {"orphans_interval_s": 0.0}
    async with (
        EmbeddedRedis() as server,
        EmbeddedRedis() as other,
        a_process(server.url, tmp_path, "ann", keys, **often) as ann,
    ):
        await server.stop()
        ann.store.put(one := closed(guided()))
        await until(lambda: ann.value("gkt_spool_receipts") == 1)
        async with a_process(other.url, tmp_path, "bob", keys, **often) as bob:
            await asyncio.sleep(0.3)
            assert bob.value("gkt_spool_replayed_total", spool="dead") == 0
        assert ann.lines() == [one.id]


async def test_receipts_from_the_spool_are_sent_again_if_redis_loses_them(tmp_path: Path) -> None:
    """A replica that becomes the primary may lack the last writes. Memory had no room for all of the receipts."""
    keys = new()
    async with EmbeddedRedis() as server, a_process(server.url, tmp_path, "ann", keys, max_waiting=5) as ann:
        await server.stop()
        ones = [closed(guided()) for _ in range(8)]
        for number, some in enumerate((ones[:5], ones[5:])):
            for one in some:
                ann.store.put(one)
            await until(lambda number=number: ann.value("gkt_spool_receipts") == (5, 8)[number])
        await server.start()
        await until(lambda: ann.value("gkt_spool_receipts") == 0 and ann.value("gkt_receipts_waiting") == 0, 20)
        await ann.client.commands.flushall()
        ann.store.resend()
        await until(lambda: ann.value("gkt_receipts_resent_total") == 8)
        assert await in_redis(server.url, keys) == (ids(ones), ids(ones))


@pytest.mark.parametrize(("max_waiting", "resent"), [(10_000, 8), (3, 3)])
async def test_receipts_of_a_dead_process_are_sent_again_if_redis_loses_them(
    tmp_path: Path, max_waiting: int, resent: int
) -> None:
    """They take at most half of the memory for resending. Redis may have expired a receipt from yesterday."""
    keys, intents = new(), [intent("ann") for _ in range(8)]
    now = int(time.time())
    ones = [msgspec.structs.replace(closed(guided()), id=one.id, created=now) for one in intents]
    old = msgspec.structs.replace(closed(guided()), created=now - 86_400)
    entries = [SpoolEntry("ann", old), *map(SpoolEntry, ["ann"] * 8, ones, intents)]
    spool = Spool.create(tmp_path / "ann.jsonl")
    spool.append([one.to_line() for one in entries], 1_000_000)
    spool.close(remove=False)
    often = {"orphans_interval_s": 0.1, "max_waiting": max_waiting}
    async with EmbeddedRedis() as server, a_process(server.url, tmp_path, "bob", keys, **often) as bob:
        await until(lambda: bob.value("gkt_spool_replayed_total", spool="dead") == 9, 20)
        await bob.client.commands.flushall()
        bob.store.resend()
        await until(lambda: bob.value("gkt_receipts_resent_total") == resent)
        assert await in_redis(server.url, keys) == (ids(ones[:resent]), ids(ones[:resent]))


async def test_beyond_the_bound_the_oldest_is_dropped_into_the_log_and_counted(tmp_path: Path) -> None:
    size = len(SpoolEntry("ann", closed(guided())).to_line())
    async with (
        EmbeddedRedis() as server,
        a_process(server.url, tmp_path, "ann", new(), max_bytes=3 * size, max_waiting=3) as ann,
    ):
        await server.stop()
        spooled_receipts = [closed(guided()) for _ in range(8)]
        with capture_logs() as logs:
            for one in spooled_receipts[:2]:
                ann.store.put(one)
            await until(lambda: ann.value("gkt_spool_receipts") == 2)
            for one in spooled_receipts[2:5]:
                ann.store.put(one)
            await until(lambda: any(line["event"] == "spool_full" for line in logs))
            for one in spooled_receipts[5:]:
                ann.store.put(one)
            await asyncio.sleep(0.2)
        assert ann.file.stat().st_size <= 3 * size
        lost = [line["id"] for line in logs if line["event"] == "receipt_lost"]
        assert len(lost) == ann.value("gkt_receipts_lost_total") > 0
        assert sum(line["event"] == "spool_full" for line in logs) == 1
        on_disk, in_memory = set(ann.lines()), {one.id for one in spooled_receipts if ann.store.holds(one.id)}
        assert on_disk | in_memory | set(lost) == {one.id for one in spooled_receipts}
        assert not set(lost) & (on_disk | in_memory)


async def test_a_full_disk_is_logged_once_and_memory_is_used(tmp_path: Path) -> None:
    (tmp_path / "spool").touch()
    async with (
        EmbeddedRedis(append_fsync="always") as server,
        a_process(server.url, tmp_path / "spool", "ann", new()) as ann,
    ):
        await server.stop()
        with capture_logs() as logs:
            ann.store.put(closed(guided()))
            await until(lambda: ann.value("gkt_spool_failures_total") > 0)
            await asyncio.sleep(0.2)
        assert sum(line["event"] == "spool_failed" for line in logs) == 1
        await server.start()
        await until(lambda: ann.value("gkt_receipts_waiting") == 0, 10)


def test_a_truncated_line_is_ignored_and_earlier_lines_are_read(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path / "ann.jsonl")
    spooled_receipts = [closed(guided()) for _ in range(3)]
    assert spool.append([SpoolEntry("ann", one).to_line() for one in spooled_receipts], 1_000_000) == 3
    with spool.path.open("ab") as file:
        file.write(b'{"owner": "ann", "receipt": {"id"')
    lines = list(spool.lines())
    assert [line.entry.receipt if line.entry else None for line in lines] == spooled_receipts
    spool.mark_sent(lines[:2])
    assert [line.entry and line.entry.receipt for line in spool.lines()] == spooled_receipts[2:]
    assert Spool.open_orphaned(spool.path) is None
    spool.close(remove=False)
    assert other_spools(tmp_path, tmp_path / "bob.jsonl") == [spool.path]


@pytest.mark.parametrize("system", ["macOS", "neither"])
def test_lines_are_synced_on_systems_without_fdatasync(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.delattr(os, "fdatasync")
    if system == "macOS":
        monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
        monkeypatch.setattr(fcntl, "fcntl", lambda _, command: synced.append(f"fcntl {command}"))
    spool = Spool.create(tmp_path / "ann.jsonl")
    monkeypatch.setattr(os, "fsync", lambda _: synced.append("fsync"))
    assert spool.append([SpoolEntry("ann", closed(guided())).to_line()], 1_000_000) == 1
    assert synced == ["fcntl 51" if system == "macOS" else "fsync"]
    spool.mark_sent(list(spool.lines()))
    assert len(synced) == 2
    assert list(spool.lines()) == []
    spool.close(remove=True)


async def test_lines_of_a_newer_version_are_kept(redis_url: str, tmp_path: Path) -> None:
    keys, one = new(), closed(guided())
    spool = Spool.create(tmp_path / "ann.jsonl")
    spool.append([b'{"owner": "ann", "receipt": {"id": "of-2030"}}\n', SpoolEntry("ann", one).to_line()], 1_000_000)
    spool.close(remove=False)
    async with a_process(redis_url, tmp_path, "bob", keys) as bob:
        await until(lambda: bob.value("gkt_spool_replayed_total", spool="dead") == 1)
        await until(lambda: (tmp_path / "ann.unreadable").exists())
    assert b"of-2030" in (tmp_path / "ann.unreadable").read_bytes()
    assert await in_redis(redis_url, keys) == ([one.id], [one.id])


async def test_an_unreadable_spool_does_not_block_the_others(redis_url: str, tmp_path: Path) -> None:
    """The unreadable file is first, since it belongs to another user or is a folder."""
    keys, one = new(), closed(guided())
    (tmp_path / "aaa.jsonl").mkdir()
    spool = Spool.create(tmp_path / "ann.jsonl")
    spool.append([SpoolEntry("ann", one).to_line()], 1_000_000)
    spool.close(remove=False)
    async with a_process(redis_url, tmp_path, "bob", keys) as bob:
        await until(lambda: bob.value("gkt_spool_replayed_total", spool="dead") == 1)
        assert bob.value("gkt_spool_failures_total") == 1
    assert await in_redis(redis_url, keys) == ([one.id], [one.id])


async def test_receipts_that_redis_rejects_do_not_stop_those_of_other_tenants(redis_url: str, tmp_path: Path) -> None:
    """A key of one tenant has another type. Its receipts alone are sent again."""
    keys = new()
    rejected, others = closed(guided()), [msgspec.structs.replace(closed(guided()), tenant="globex") for _ in range(3)]
    async with Redis.from_url(redis_url) as redis:
        await redis.set(keys.intents("acme", "ann"), "a string")
        spool = Spool.create(tmp_path / "ann.jsonl")
        spool.append([SpoolEntry("ann", one).to_line() for one in (rejected, *others)], 1_000_000)
        spool.close(remove=False)
        async with a_process(redis_url, tmp_path, "bob", keys, orphans_interval_s=0.05) as bob:
            await until(lambda: bob.value("gkt_spool_replayed_total", spool="dead") == 3)
            assert spool.path.exists()
            await redis.delete(keys.intents("acme", "ann"))
            await until(lambda: not spool.path.exists())
            assert bob.value("gkt_spool_replayed_total", spool="dead") == 4
        assert await in_redis(redis_url, keys) == (ids([rejected, *others]), [rejected.id])
        assert (await in_redis(redis_url, keys, "globex"))[1] == ids(others)


async def test_a_process_that_ends_without_redis_leaves_its_receipts_on_disk(tmp_path: Path) -> None:
    async with EmbeddedRedis() as server, a_process(server.url, tmp_path, "ann", new()) as ann:
        await server.stop()
        ann.store.put(one := closed(guided()))
        assert not await ann.store.flush()
        assert await ann.spooler.save() == 1
    assert ann.lines() == [one.id]


async def test_receipts_without_any_storage_are_logged_at_exit(tmp_path: Path) -> None:
    """Neither Redis nor the disk accepts receipts."""
    (tmp_path / "spool").touch()
    async with EmbeddedRedis() as server, a_process(server.url, tmp_path / "spool", "ann", new()) as ann:
        await server.stop()
        ann.store.put(one := closed(guided()))
        with capture_logs() as logs:
            assert not await ann.store.flush()
            assert await ann.spooler.save() == 0
        assert [line["receipt"] for line in logs if line["event"] == "receipt_lost"] == [one.as_dict()]
        assert ann.value("gkt_receipts_lost_total") == 1


async def test_receipts_lost_by_a_restarted_redis_are_sent_again_and_kept_ones_count_once(tmp_path: Path) -> None:
    """Redis acknowledged the writes and lost the end of its file, as after a power failure."""
    keys = new()
    async with (
        EmbeddedRedis(append_fsync="always", folder=tmp_path) as server,
        a_process(server.url, tmp_path / "spool", "ann", keys) as ann,
    ):
        spooled_receipts = [closed(guided()) for _ in range(10)]
        ann.store.put(spooled_receipts[0])
        await until(lambda: ann.value("gkt_receipts_waiting") == 0)
        (log,) = tmp_path.glob("appendonlydir/*.incr.aof")
        size_before = log.stat().st_size
        for one in spooled_receipts[1:]:
            ann.store.put(one)
        await until(lambda: ann.value("gkt_receipts_waiting") == 0)
        await server.stop()
        with log.open("r+b") as file:
            file.truncate(size_before)
        await server.start()
        await until(lambda: ann.value("gkt_receipts_resent_total") == 10, 10)
        assert await in_redis(server.url, keys) == (ids(spooled_receipts), ids(spooled_receipts))


async def test_prompts_and_answers_are_in_no_line(tmp_path: Path) -> None:
    """Neither receipts nor intents contain text of the request."""
    line = SpoolEntry("ann", closed(guided()), intent()).to_line()
    assert b"story" not in line
    assert b"messages" not in line


def test_tags_are_spooled_where_there_are_any(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path / "ann.jsonl")
    plain = SpoolEntry("ann", closed(guided()), intent())
    tagged = SpoolEntry("ann", msgspec.structs.replace(plain.receipt, stored_tags=("a", "b")), plain.intent)
    assert b"tags" not in plain.to_line()
    assert tagged.to_line().replace(b',"tags":["a","b"]', b"") == plain.to_line()
    spool.append([plain.to_line(), tagged.to_line()], 1_000_000)
    assert [line.entry for line in spool.lines()] == [plain, tagged]
    assert plain.receipt.tags == ()
    spool.close(remove=True)
