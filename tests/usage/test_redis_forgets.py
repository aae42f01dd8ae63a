"""Redis restarts from any prefix of its append-only file: each receipt is written once, and no entry remains.

A Redis with appendfsync everysec loses its last commands at a power cut. A prefix remains, so streams and their
consumer groups agree. The gateways settle again what Redis forgot, and workers hold entries that it forgot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import delete

from gateway.local.redis import EmbeddedRedis
from gateway.usage.entries import id_parts
from gateway.usage.tables import RECEIPTS, SUMS
from tests.usage.outboxes import Outboxes, open_outboxes, receipts

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.accounting.receipt import Receipt
    from gateway.usage.entries import OutboxEntry
    from gateway.usage.feed import OutboxFeed


class History:
    """Commands of two workers, with the size of the append-only file after each.

    Attributes:
        settled: all receipts.
        written: entries that a worker wrote to the database, and then acknowledged.
        held: the entries that the first worker holds at the end.
    """

    def __init__(self, outboxes: Outboxes, file: Path) -> None:
        self.outboxes = outboxes
        self.file = file
        self.sizes: list[int] = []
        self.settled: list[Receipt] = []
        self.written: list[OutboxEntry] = []
        self.held: list[OutboxEntry] = []

    async def settle(self, count: int, tenant: str = "acme") -> None:
        self.settled += (new := receipts(count, tenant))
        await self.outboxes.settle(*new)
        self.note()

    async def acknowledge(self, feed: OutboxFeed, entries: list[OutboxEntry]) -> None:
        self.written += entries
        await feed.acknowledge(entries)
        self.note()

    def note(self) -> None:
        self.sizes.append(self.file.stat().st_size)

    async def make(self) -> None:
        ann, bob = self.outboxes.feed(), self.outboxes.feed("worker-2")
        await self.settle(3)
        first = (await ann.read_new(2)).entries
        self.note()
        second = (await bob.read_new(10)).entries
        self.note()
        await self.acknowledge(bob, second)
        await self.settle(2)
        await self.settle(2, "beta")
        await self.acknowledge(ann, first)
        self.held = (await ann.read_new(10, all_outboxes=True)).entries
        self.note()
        await bob.claim(["acme"], 0, 1)
        self.note()
        await self.settle(1, "beta")


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_any_lost_suffix_of_redis_data_leads_to_the_same_sums(tmp_path: Path) -> None:
    async with (
        EmbeddedRedis(append_fsync="always", folder=tmp_path) as server,
        open_outboxes(server.url, f"sqlite:///{tmp_path}/usage.db") as outboxes,
    ):
        (file,) = tmp_path.glob("appendonlydir/*.incr.aof")
        history = History(outboxes, file)
        await history.make()
        whole = file.read_bytes()
        assert history.sizes[-1] == len(whole)
        assert len(history.held) == 4
        cuts = {*history.sizes, *(size - 40 for size in history.sizes)}  # some are within a command
        for cut in sorted(cuts):
            await server.stop()
            file.write_bytes(whole[:cut])
            await server.start()
            await _check_groups(outboxes)
            await _settle_again(outboxes, history)


async def _check_groups(outboxes: Outboxes) -> None:
    """Assert that no group is ahead of its stream, because its new entries would not be delivered."""
    for tenant in await outboxes.lengths():
        outbox = outboxes.keys.outbox(tenant)
        if not await outboxes.redis.exists(outbox):
            continue
        last = (await outboxes.redis.xinfo_stream(outbox))["last-generated-id"].decode()
        for group in await outboxes.redis.xinfo_groups(outbox):
            assert id_parts(group["last-delivered-id"].decode()) <= id_parts(last)


async def _settle_again(outboxes: Outboxes, history: History) -> None:
    with outboxes.store.engine.writing() as connection:
        connection.execute(delete(RECEIPTS))
        connection.execute(delete(SUMS))
    await outboxes.store.write(history.written)
    outboxes.ledger.forget_tenants()
    await outboxes.settle(*history.settled)
    worker = await outboxes.worker(claim_after_s=0.0)
    worker._held = list(history.held)
    for _ in range(5):  # it reads its pending entries, claims those of other workers, and reads new entries
        outboxes.later_s += 10
        await worker.publish_once()
        await worker.round()
    await outboxes.leases[-1].leave()
    await outboxes.check(history.settled)
    assert await outboxes.lengths() == {"acme": 0, "beta": 0}
    assert [await outboxes.pending(one) for one in ("acme", "beta")] == [0, 0]
