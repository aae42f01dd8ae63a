"""Receipts in Redis: each written once, kept for a while, its tenant's alone; none is lost while Redis is away."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from gateway.errors import StoreUnavailable
from gateway.ledger import store as store_module
from gateway.ledger.receipt import Receipt
from gateway.ledger.store import ReceiptStore
from gateway.local.redis import EmbeddedRedis
from gateway.metrics import Metrics
from gateway.redis_client import RedisClient
from gateway.redis_keys import RedisKeys
from gateway.tasks import Tasks
from tests.batching.process import until
from tests.ledger.drafts import closed, guided

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TTL_S = 100.0


class Kept:
    """A running store, its metrics and its Redis."""

    def __init__(self, client: RedisClient, metrics: Metrics) -> None:
        self.keys = RedisKeys(f"t{secrets.token_hex(6)}")
        self.redis = client.commands
        self.metrics = metrics
        self.store = ReceiptStore(client.commands, self.keys, ttl_s=TTL_S, metrics=metrics)

    def value(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0.0

    async def written(self, receipt: Receipt) -> bytes | None:
        found: bytes | None = await self.redis.get(self.keys.receipt(receipt.tenant, receipt.id))
        return found


@asynccontextmanager
async def kept(url: str, *, running: bool = True) -> AsyncIterator[Kept]:
    metrics, tasks = Metrics(), Tasks()
    client = RedisClient(url, timeout_s=0.2, metrics=metrics)
    part = Kept(client, metrics)
    if running:
        tasks.keep("receipts", part.store.run())
    try:
        yield part
    finally:
        await tasks.close()
        await client.close()


async def test_a_receipt_is_written_soon_and_found_by_its_tenant(redis_url: str) -> None:
    """What is found is what was put, and it stays for its time."""
    async with kept(redis_url) as part:
        receipt = closed(guided())
        part.store.put(receipt)
        await until(lambda: part.written(receipt))
        raw = await part.store.get("acme", receipt.id)
        assert raw is not None
        assert Receipt.from_json(raw) == receipt
        assert TTL_S - 5 <= await part.redis.ttl(part.keys.receipt("acme", receipt.id)) <= TTL_S
        assert part.value("gkt_receipts_waiting") == 0


async def test_a_receipt_is_found_before_it_is_written(redis_url: str) -> None:
    """By the process that holds it: a caller may ask at once."""
    async with kept(redis_url, running=False) as part:
        receipt = closed(guided())
        part.store.put(receipt)
        assert await part.written(receipt) is None
        assert await part.store.get("acme", receipt.id) == receipt.to_json()


async def test_another_tenants_receipt_is_not_found(redis_url: str) -> None:
    """Neither while it waits in memory nor once it is written."""
    async with kept(redis_url, running=False) as part:
        receipt = closed(guided())
        part.store.put(receipt)
        assert await part.store.get("globex", receipt.id) is None
        assert await part.store.flush()
        assert await part.store.get("globex", receipt.id) is None
        assert await part.store.get("acme", receipt.id) is not None
        assert await part.store.get("acme", "no-such-receipt") is None


async def test_a_receipt_is_written_once(redis_url: str) -> None:
    """A second write, after a reply was lost, changes nothing."""
    async with kept(redis_url, running=False) as part:
        receipt = closed(guided())
        part.store.put(receipt)
        await part.store.flush()
        part.store.put(msgspec.structs.replace(receipt, status="client_gone"))
        assert await part.store.flush()
        assert await part.written(receipt) == receipt.to_json()


async def test_receipts_beyond_one_batch_are_all_written(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven at three to a write."""
    monkeypatch.setattr(store_module, "_BATCH", 3)
    async with kept(redis_url, running=False) as part:
        receipts = [closed(guided()) for _ in range(7)]
        for receipt in receipts:
            part.store.put(receipt)
        assert await part.store.flush()
        assert [await part.written(receipt) for receipt in receipts] == [receipt.to_json() for receipt in receipts]


async def test_receipts_wait_while_redis_is_away_and_go_out_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are counted and can be asked for meanwhile; others cannot be looked up and the caller is told."""
    monkeypatch.setattr(store_module, "_RETRY_S", 0.05)
    async with EmbeddedRedis() as server, kept(server.url) as part:
        await server.stop()
        receipts = [closed(guided()) for _ in range(3)]
        for receipt in receipts:
            part.store.put(receipt)
        await until(lambda: part.value("gkt_receipts_waiting") == 3)
        assert await part.store.get("acme", receipts[0].id) == receipts[0].to_json()
        with pytest.raises(StoreUnavailable):
            await part.store.get("acme", "another")
        assert not await part.store.flush()
        await server.start()
        await until(lambda: part.value("gkt_receipts_waiting") == 0)
        assert [await part.written(receipt) for receipt in receipts] == [receipt.to_json() for receipt in receipts]
        assert part.value("gkt_receipts_lost_total") == 0


async def test_too_many_waiting_receipts_are_dropped_into_the_log(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded; the oldest goes, whole, to the log, and is counted."""
    monkeypatch.setattr(store_module, "_MAX_WAITING", 2)
    async with kept(redis_url, running=False) as part:
        receipts = [closed(guided()) for _ in range(3)]
        with capture_logs() as logs:
            for receipt in receipts:
                part.store.put(receipt)
        (line,) = logs
        assert (line["event"], line["log_level"], line["id"]) == ("receipt_lost", "error", receipts[0].id)
        assert line["receipt"] == receipts[0].as_dict()
        assert part.value("gkt_receipts_lost_total") == 1
        await part.store.flush()
        assert [await part.written(receipt) is not None for receipt in receipts] == [False, True, True]


async def test_the_loop_outlives_what_nobody_expected(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it to die, every later receipt would be lost."""
    monkeypatch.setattr(store_module, "_RETRY_S", 0.05)
    async with kept(redis_url) as part:
        with capture_logs() as logs, monkeypatch.context() as broken:
            broken.setattr(part.redis, "pipeline", lambda **_: 1 / 0)
            receipt = closed(guided())
            part.store.put(receipt)
            await until(lambda: any(line["event"] == "receipts_broke" for line in logs))
        await until(lambda: part.written(receipt))


async def test_a_write_that_redis_refuses_is_tried_again(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one without memory, or a replica: the receipt waits."""
    monkeypatch.setattr(store_module, "_RETRY_S", 0.05)
    async with kept(redis_url) as part, Redis.from_url(redis_url) as admin:
        receipt = closed(guided())
        await admin.config_set("maxmemory", "1")
        try:
            part.store.put(receipt)
            await until(lambda: part.value("gkt_receipts_waiting") == 1)
        finally:
            await admin.config_set("maxmemory", "0")
        await until(lambda: part.written(receipt))
        assert (await asyncio.gather(part.written(receipt)))[0] == receipt.to_json()
