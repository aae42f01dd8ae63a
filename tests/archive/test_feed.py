"""The archive's feed: it gets over whatever Redis forgets, says nothing it does not know, and starves nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_asyncio
from redis.asyncio import Redis

from gateway.archive import feed as archive_feed
from gateway.archive.archive import Archive
from gateway.archive.feed import ArchiveFeed
from gateway.metrics import Metrics
from gateway.redis_client import RedisClient
from gateway.rollups.entries import before, parts
from tests.archive.archives import Fed, address, receipts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest


@pytest_asyncio.fixture
async def fed(redis_url: str, data: Path) -> AsyncIterator[Fed]:
    client = RedisClient(redis_url, timeout_s=2, metrics=Metrics())
    archive = Archive(address("sqlite", data))
    async with Redis.from_url(redis_url) as redis:
        yield Fed(redis, client, archive)
    await archive.close()
    await client.close()


async def forget_all(fed: Fed) -> None:
    """A Redis that was started anew, empty."""
    await fed.redis.delete(*await fed.redis.keys(f"*{fed.keys.prefix}*"))
    fed.ledger.forget()


async def test_an_archiver_that_holds_what_redis_forgot_writes_it_and_goes_on(fed: Fed) -> None:
    """Redis comes back empty between its taking and its telling: of some tenants nothing is there any more."""
    told = [*receipts(3), *receipts(2, "beta")]
    await fed.settle(*told)
    await fed.ann._turn()
    await fed.settle(*(more := [*receipts(3), *receipts(2, "beta")]))
    fed.ann._held = (await fed.feed.take(100)).entries
    await forget_all(fed)
    await fed.settle(*(new := receipts(4)))
    await fed.ann._turn()
    await fed.ann._turn()
    assert sorted(await fed.ids()) == sorted(one.id for one in (*told, *more, *new))
    assert set(await fed.feed.archived()) == {"acme"}


async def test_who_takes_over_makes_groups_that_are_gone_by_then(fed: Fed) -> None:
    """It archived once, and then another process did, while Redis forgot all groups or a quiet tenant's."""
    await fed.settle(*receipts(1))
    await fed.ann._turn()
    await fed.ann._lease.leave()
    bob = fed.archiver("bob")
    await bob._turn()
    await forget_all(fed)
    bob._feed = ArchiveFeed(fed.redis, fed.keys)
    await bob._turn()
    await fed.ann._turn()
    await fed.redis.delete(fed.keys.ledger().archiver)
    await fed.settle(*(new := receipts(3)))
    await fed.ann._turn()
    assert fed.ann._leads
    assert {one.id for one in new} <= set(await fed.ids())


async def test_what_is_archived_never_goes_back(fed: Fed) -> None:
    """What was archived is trimmed, and what came after is taken and not written yet: an archive that is away."""
    await fed.settle(*receipts(3))
    await fed.ann._turn()
    reached = (await fed.feed.archived())["acme"]
    await fed.redis.xtrim(fed.keys.outbox("acme"), maxlen=0, approximate=False)
    await fed.settle(*receipts(1))
    (taken,) = (await fed.feed.take(10)).entries
    await fed.feed.behind()
    now = (await fed.feed.archived())["acme"]
    assert parts(reached) <= parts(now) < parts(taken.id)
    assert now == before(taken.id)


async def test_of_a_new_outbox_all_before_its_first_entry_is_archived(fed: Fed) -> None:
    """Whatever Redis had before: it is in the archive, or nowhere."""
    await fed.settle(*receipts(3))
    ((first, _), *_) = await fed.redis.xrange(fed.keys.outbox("acme"))
    await fed.feed.behind()
    assert await fed.feed.archived() == {"acme": before(first.decode())}


async def test_a_loud_tenant_among_many_quiet_ones_is_archived_as_fast_as_alone(fed: Fed) -> None:
    """There is room for a thousand in a round: who has them, has them."""
    await fed.settle(*(one for place in range(120) for one in receipts(1, f"quiet-{place}")))
    await fed.settle(*receipts(2_000, "loud"))
    first, second = await fed.feed.take(1_000), await fed.feed.take(1_000)
    assert len(first.entries) + len(second.entries) >= 1_900
    assert len({entry.tenant for entry in first.entries}) == 121
    assert first.more
    assert second.more
    while (rest := await fed.feed.take(1_000)).more:
        pass
    assert len({entry.id for entry in rest.entries}) == len(rest.entries)
    assert (await fed.feed.take(1_000)).entries == []


async def test_loud_tenants_at_the_front_do_not_keep_the_others_out(fed: Fed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_feed, "_TENANTS_PER_CALL", 2)
    await fed.settle(*receipts(100, "a-loud"), *receipts(100, "b-loud"), *receipts(1, "z-quiet"))
    seen = [entry.tenant for _ in range(3) for entry in (await fed.feed.take(10)).entries]
    assert "z-quiet" in seen
