"""The feed reads every outbox, starves no tenant, trims acknowledged entries, and survives data loss in Redis."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest_asyncio

from gateway.usage.feed import GROUP, Backlog, FeedBatch, OutboxFeed
from tests.usage.outboxes import Outboxes, open_outboxes, receipts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest_asyncio.fixture
async def outboxes(redis_url: str, tmp_path: Path) -> AsyncIterator[Outboxes]:
    async with open_outboxes(redis_url, f"sqlite:///{tmp_path}/usage.db") as one:
        yield one


async def test_acknowledged_entries_are_trimmed(outboxes: Outboxes) -> None:
    feed = outboxes.feed()
    await outboxes.settle(*receipts(10), *receipts(3, "beta"))
    taken = await feed.read_new(100)
    assert not taken.more
    assert len(taken.entries) == 13
    assert await outboxes.lengths() == {"acme": 10, "beta": 3}
    await feed.acknowledge(taken.entries)
    assert await outboxes.lengths() == {"acme": 0, "beta": 0}
    assert await feed.backlog() == Backlog()


async def test_entries_pending_at_another_worker_and_later_ones_are_kept(outboxes: Outboxes) -> None:
    ann, bob = outboxes.feed(), outboxes.feed("worker-2")
    await outboxes.settle(*receipts(6))
    first, rest = await ann.read_new(2), await bob.read_new(10)
    await bob.acknowledge(rest.entries)
    assert await outboxes.lengths() == {"acme": 6}
    await ann.acknowledge(first.entries[:1])
    assert await outboxes.lengths() == {"acme": 5}
    backlog = await bob.backlog()
    assert backlog.pending == ("acme",)
    await ann.acknowledge(first.entries[1:])
    assert await outboxes.lengths() == {"acme": 0}


async def test_entries_that_came_during_the_write_stay(outboxes: Outboxes) -> None:
    feed = outboxes.feed()
    await outboxes.settle(*receipts(3))
    taken = await feed.read_new(100)
    await outboxes.settle(*(later := receipts(2)))
    await feed.acknowledge(taken.entries)
    assert (await feed.backlog()).waiting == 2
    await asyncio.sleep(0)
    found = await feed.read_new(100, all_outboxes=True)
    assert [one.raw for one in found.entries] == [one.to_json() for one in later]


async def test_the_entries_of_a_dead_worker_are_claimed(outboxes: Outboxes) -> None:
    ann, bob = outboxes.feed(), outboxes.feed("worker-2")
    await outboxes.settle(*receipts(4), *receipts(2, "beta"))
    taken = await ann.read_new(100)
    assert (await bob.read_new(100)).entries == []
    pending = (await bob.backlog()).pending
    assert sorted(pending) == ["acme", "beta"]
    assert (await bob.claim(pending, 60, 100)).entries == []
    claimed = await bob.claim(pending, 0, 100)
    assert sorted(claimed.entries) == sorted(taken.entries)
    consumers = await outboxes.redis.xinfo_consumers(outboxes.keys.outbox("acme"), GROUP)
    assert {one["name"]: one["pending"] for one in consumers} == {b"worker-1": 0, b"worker-2": 4}


async def test_entries_whose_reply_was_lost_are_read_again(outboxes: Outboxes) -> None:
    """The worker with the same number reads them, without entries that were trimmed meanwhile."""
    await outboxes.settle(*receipts(4), *receipts(2, "beta"))
    await outboxes.feed("worker-2").read_new(2)
    taken = await outboxes.feed().read_new(100)
    assert len(taken.entries) == 4
    feed = outboxes.feed()
    again = await feed.read_pending(100)
    assert sorted(again.entries) == sorted(taken.entries)
    assert again.more
    await outboxes.redis.xtrim(outboxes.keys.outbox("beta"), maxlen=0, approximate=False)
    await feed.acknowledge([one for one in again.entries if one.tenant == "acme"])
    assert await feed.read_pending(100) == FeedBatch([])
    assert (await feed.claim(["beta"], 0, 100)).trimmed == 2


async def test_entries_trimmed_before_their_acknowledgment_are_counted(outboxes: Outboxes) -> None:
    feed = outboxes.feed()
    await outboxes.settle(*receipts(5))
    await feed.read_new(3)
    await outboxes.redis.xtrim(outboxes.keys.outbox("acme"), maxlen=4, approximate=False)
    claimed = await outboxes.feed("worker-2").claim(["acme"], 0, 100)
    assert (len(claimed.entries), claimed.trimmed) == (2, 1)


async def test_entries_that_were_all_trimmed_before_they_were_acknowledged_are_counted(outboxes: Outboxes) -> None:
    """The outbox is empty, and ids of a worker that died are still pending."""
    await outboxes.settle(*receipts(3), *receipts(1, "beta"))
    await outboxes.feed().read_new(10)
    await outboxes.redis.xtrim(outboxes.keys.outbox("acme"), maxlen=0, approximate=False)
    feed = outboxes.feed("worker-2")
    backlog = await feed.backlog()
    assert (backlog.waiting, sorted(backlog.pending)) == (1, ["acme", "beta"])
    assert (await feed.claim(["acme"], 0, 100)).trimmed == 3
    assert (await feed.backlog()).pending == ("beta",)


async def test_a_group_that_is_gone_is_made_again_and_reads_from_the_beginning(outboxes: Outboxes) -> None:
    """A worker that reads the backlog first creates a group, too."""
    ann, bob = outboxes.feed(), outboxes.feed("worker-2")
    await outboxes.settle(*(settled := receipts(3)))
    assert len((await ann.read_new(10)).entries) == 3
    for look_first in (False, True):
        await outboxes.redis.xgroup_destroy(outboxes.keys.outbox("acme"), GROUP)
        if look_first:
            assert (await bob.backlog()).waiting == 3
        found = await ann.read_new(10, all_outboxes=True)
        assert [one.raw for one in found.entries] == [one.to_json() for one in settled]
        assert (await ann.claim(["acme"], 0, 10)).trimmed == 0
    await ann.acknowledge(found.entries)
    assert await outboxes.lengths() == {"acme": 0}


async def test_entries_are_read_after_the_clock_of_redis_went_back(outboxes: Outboxes) -> None:
    future = f"{(int(time.time()) + 3_600) * 1_000}-0"
    first, *rest = receipts(3)
    await outboxes.redis.xadd(outboxes.keys.outbox("acme"), {"receipt": first.to_json()}, id=future)
    await outboxes.settle(*rest[:1])
    feed = outboxes.feed()
    taken = await feed.read_new(10)
    assert [one.raw for one in taken.entries] == [one.to_json() for one in (first, rest[0])]
    await feed.acknowledge(taken.entries)
    await outboxes.settle(*rest[1:])
    assert (await feed.backlog()) == Backlog(waiting=1)
    assert [one.raw for one in (await feed.read_new(10)).entries] == [rest[1].to_json()]


async def test_redis_forgets_between_taking_and_acknowledging(outboxes: Outboxes) -> None:
    feed = outboxes.feed()
    await outboxes.settle(*receipts(3), *receipts(2, "beta"))
    taken = await feed.read_new(100)
    await outboxes.forget_all()
    await outboxes.settle(*(new := receipts(4)))
    await feed.acknowledge(taken.entries)
    assert await outboxes.lengths() == {"acme": 4}
    found = await feed.read_new(100, all_outboxes=True)
    assert [one.raw for one in found.entries] == [one.to_json() for one in new]


async def test_a_loud_tenant_among_quiet_ones_is_read_as_fast_as_alone(outboxes: Outboxes) -> None:
    await outboxes.settle(*(one for place in range(120) for one in receipts(1, f"quiet-{place}")))
    await outboxes.settle(*receipts(2_000, "loud"))
    feed = outboxes.feed()
    first, second = await feed.read_new(1_000), await feed.read_new(1_000)
    assert len(first.entries) + len(second.entries) >= 1_900
    assert len({entry.tenant for entry in first.entries}) == 121
    assert first.more
    assert second.more
    while (rest := await feed.read_new(1_000)).more:
        pass
    assert len({entry.id for entry in rest.entries}) == len(rest.entries)
    assert (await feed.read_new(1_000)).entries == []


async def test_loud_tenants_at_the_front_do_not_keep_the_others_out(outboxes: Outboxes) -> None:
    await outboxes.settle(*receipts(100, "a-loud"), *receipts(100, "b-loud"), *receipts(1, "z-quiet"))
    feed = outboxes.feed(max_tenants=2)
    seen = [entry.tenant for _ in range(3) for entry in (await feed.read_new(10)).entries]
    assert "z-quiet" in seen


async def test_with_many_tenants_the_active_are_read_each_time_and_all_once_a_second(outboxes: Outboxes) -> None:
    now = [1_000.0]
    feed = OutboxFeed(outboxes.redis, outboxes.keys, "worker-1", lambda: now[0], max_tenants=2)
    for name in "abcdef":
        await outboxes.settle(*receipts(1, name))
    assert len((await feed.read_new(100)).entries) == 6
    now[0] += 61
    assert (await feed.read_new(100)).entries == []
    await outboxes.settle(*receipts(1, "c"))
    assert (await feed.read_new(100)).entries == [], "no tenant is active, and a second has not passed"
    now[0] += 1
    assert [one.tenant for one in (await feed.read_new(100)).entries] == ["c"]
    await outboxes.settle(*receipts(1, "c"), *receipts(1, "d"))
    assert [one.tenant for one in (await feed.read_new(100)).entries] == ["c"]
    now[0] += 1
    assert [one.tenant for one in (await feed.read_new(100)).entries] == ["d"]


async def test_many_ids_are_acknowledged_in_several_calls(outboxes: Outboxes) -> None:
    await outboxes.settle(*receipts(50), *receipts(5, "beta"), *receipts(1, "gamma"))
    feed = outboxes.feed(max_ids=7)
    taken = await feed.read_new(100)
    while taken.more:
        more = await feed.read_new(100)
        taken = type(taken)([*taken.entries, *more.entries], more=more.more)
    await feed.acknowledge(taken.entries)
    assert await outboxes.lengths() == {"acme": 0, "beta": 0, "gamma": 0}
