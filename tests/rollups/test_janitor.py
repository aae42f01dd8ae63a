"""Outboxes stay short: what is done with goes, and beyond the bound the oldest of whoever has most."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest_asyncio
import structlog
from hypothesis import given
from hypothesis import strategies as st

from gateway.ledger.redis_ledger import RedisLedger
from gateway.rollups.entries import after, before
from gateway.rollups.janitor import level
from gateway.rollups.leavers import QUIET_S, STEP_S, Leavers
from tests.rollups.books import Books, open_books, plainly, receipts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest_asyncio.fixture
async def books(redis_url: str) -> AsyncIterator[Books]:
    async with open_books(redis_url) as one:
        yield one


async def test_what_is_added_up_and_archived_goes_and_nothing_else(books: Books) -> None:
    await books.settle(*receipts(10))
    entries = await books.outbox()
    janitor = books.janitor(archived=True)
    await books.archive_up_to("acme", entries[5])
    await janitor.tidy()
    assert await books.outbox() == entries
    await books.ann.roll()
    await janitor.tidy()
    assert await books.outbox() == entries[6:]
    await books.archive_up_to("acme", entries[-1])
    await books.settle(*receipts(1))
    await janitor.tidy()
    assert len(await books.outbox()) == 1
    assert (books.ann.state.waiting, books.ann.state.buffered) == (1, 1)
    assert books.ann.state.lost == {"sums": 0, "archive": 0}


async def test_without_an_archive_what_is_added_up_goes(books: Books) -> None:
    await books.settle(*receipts(10))
    await books.ann.roll()
    await books.janitor().tidy()
    assert await books.outbox() == []


@given(st.lists(st.integers(0, 1_000), max_size=12), st.integers(1, 3_000))
def test_the_longest_give_way_first_and_no_further_than_they_must(lengths: list[int], most: int) -> None:
    cut_to = level(lengths, most)
    assert sum(min(one, cut_to) for one in lengths) <= most
    if sum(lengths) > most:
        assert sum(min(one, cut_to + 1) for one in lengths) > most
    else:
        assert cut_to == max(lengths, default=0)


async def test_a_loud_tenant_takes_no_room_of_others_and_what_is_cut_is_counted_and_logged_once(books: Books) -> None:
    quiet = receipts(30, "quiet")
    await books.settle(*receipts(100, "loud"), *quiet)
    janitor = books.janitor(most=80)
    with structlog.testing.capture_logs() as logs:
        await janitor.tidy()
        assert (len(await books.outbox("loud")), len(await books.outbox("quiet"))) == (50, 30)
        assert books.ann.state.lost == {"sums": 50, "archive": 0}
        await books.settle(*receipts(1, "loud"))
        await janitor.tidy()
        assert books.ann.state.lost["sums"] == 51
        await books.roll_all()
        await janitor.tidy()
    assert books.ann.state.lost["sums"] == 51, "counted once"
    assert [line["event"] for line in logs] == ["receipts_unkept"]
    assert (logs[0]["sums"], logs[0]["most"]) == (50, 80)
    assert (await books.total("day")).requests == 131 - 51
    assert [rows for _, rows in (await books.rows()).items() if any(where.tenant == "quiet" for where in rows)]


async def test_what_goes_before_it_is_archived_is_lost_for_the_archive_alone(books: Books) -> None:
    told = receipts(40)
    await books.settle(*told)
    await books.roll_all()
    await books.archive_up_to("acme", (await books.outbox())[9])
    janitor = books.janitor(most=20, archived=True)
    await janitor.tidy()
    assert books.ann.state.lost == {"sums": 0, "archive": 10}
    assert len(await books.outbox()) == 20
    assert await books.rows() == plainly(told)


async def test_what_the_bound_of_an_outbox_cut_by_itself_is_counted_too(books: Books) -> None:
    """Nobody added up, and no janitor looked, for very long."""
    await books.settle(*receipts(20))
    await books.roll_all()
    await books.janitor().tidy()
    await books.settle(*receipts(50))
    await books.redis.xtrim(books.keys.outbox("acme"), maxlen=30, approximate=False)
    janitor = books.janitor()
    for _ in range(2):
        await janitor.tidy()
        await books.roll_all()
    assert books.ann.state.lost == {"sums": 20, "archive": 0}
    assert (await books.total("day")).requests == 50


async def test_a_tenant_that_was_quiet_for_long_is_forgotten_and_comes_back_whole(books: Books) -> None:
    keys = books.keys.ledger()
    await books.settle(*receipts(3))
    await books.roll_all()
    await books.janitor().tidy()
    leavers = Leavers(books.redis, books.keys)
    cursors = {"acme": (await books.redis.hget(keys.cursors, "acme")).decode()}
    now = time.time()
    assert await leavers.begin(cursors, now) == []
    assert await leavers.begin(cursors, now + QUIET_S + 60) == ["acme"]
    later = now + QUIET_S + 60 + STEP_S
    assert await leavers.end(later - 1) == []

    # A process that thinks it named the tenant settles meanwhile: it is looked at again.
    await books.settle(*receipts(2))
    assert await books.ann.roll() == 0
    assert await leavers.end(later) == []
    books.ann._known_at = 0  # five seconds later
    assert await books.ann.roll() == 2

    await books.janitor().tidy()
    assert await leavers.begin(cursors, now + 2 * QUIET_S) == ["acme"]
    assert await leavers.end(now + 3 * QUIET_S) == ["acme"]
    for name in (keys.cursors, keys.counted, keys.leaving, keys.tenants, books.keys.outbox("acme")):
        assert not await books.redis.exists(name)
    books.ledger = RedisLedger(books.redis, books.keys, "ann", 100, 10)
    await books.settle(*receipts(4))
    assert await books.ann.roll() == 4
    await books.janitor().tidy()
    assert (await books.total("day")).requests == 9
    assert books.ann.state.lost["sums"] == 0


async def test_a_new_tenant_does_not_leave_before_its_first_receipt_is_there(books: Books) -> None:
    """The janitor looks between its naming and its receipt."""
    await books.ledger._name_tenants({"acme"})
    await books.janitor().tidy()
    await books.settle(*receipts(2))
    assert await books.ann.roll() == 2


@given(st.integers(1, 2**63), st.integers(0, 2**64 - 1))
def test_the_ids_before_and_after_are_next_to_an_entrys(ms: int, seq: int) -> None:
    entry = f"{ms}-{seq}"
    assert after(before(entry)) == before(after(entry)) == entry
