"""Rows are made anew from the archive while receipts are settled and added up: each counts exactly once."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec
import pytest
import pytest_asyncio
from redis.exceptions import ConnectionError as RedisConnectionError

from gateway.ledger.intent import abandoned
from gateway.ledger.receipt import Receipt
from gateway.ledger.redis_ledger import Settlement
from gateway.rollups.adder import Adder
from gateway.rollups.generations import Generations
from gateway.rollups.rebuild import Archived, Rebuild, RebuildFailed
from tests.ledger.drafts import candidate, intent
from tests.rollups.books import Books, open_books, plainly, receipts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from typing import Any


class Shelf:
    """What an archive does, in memory: each receipt once, by its id, a true one in the place of an abandoned one."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._at: dict[str, str] = {}
        self.kept: dict[str, Archived] = {}
        self.passes = 0
        self.during: Callable[[], Awaitable[None]] | None = None

    async def fetch(self, most: int | None = None) -> None:
        """Keep what is new in the outboxes, then say so."""
        for tenant in await self._books.redis.smembers(self._books.keys.ledger().tenants):
            name = tenant.decode()
            found = await self._books.redis.xrange(
                self._books.keys.outbox(name), min=f"({self._at.get(name, '0-0')}", count=most
            )
            for raw, fields in found:
                self._at[name] = entry = raw.decode()
                receipt = Receipt.from_json(fields[b"receipt"])
                instead = Receipt.from_json(fields[b"instead"]) if b"instead" in fields else None
                earlier = self.kept.get(receipt.id)
                self.kept[receipt.id] = Archived(
                    name, entry, receipt, instead, earlier.entry if instead and earlier else ""
                )
            if found:
                await self._books.archive_up_to(name, self._at[name])

    async def batches(self, since: Mapping[str, str]) -> AsyncIterator[Sequence[Archived]]:
        """Three at a time, as they are when their turn comes."""
        self.passes += 1
        ids = list(self.kept)
        for start in range(0, len(ids), 3):
            yield [self.kept[one] for one in ids[start : start + 3]]
            if self.during is not None:
                await self.during()


@pytest_asyncio.fixture
async def books(redis_url: str) -> AsyncIterator[Books]:
    async with open_books(redis_url) as one:
        yield one


def rebuild(books: Books, shelf: Shelf, told: Callable[[int], None] = lambda _: None) -> Rebuild:
    return Rebuild(books.redis, books.keys, books.retention, shelf, told)


async def test_rows_that_redis_lost_are_made_anew(books: Books) -> None:
    told, shelf, seen = [*receipts(20), *receipts(10, "beta")], Shelf(books), list[int]()
    await books.settle(*told)
    await books.roll_all()
    await shelf.fetch()
    for name in await books.redis.keys(f"*{books.keys.prefix}*"):
        await books.redis.delete(name)
    books.ledger.forget()
    more = receipts(5)
    await books.settle(*more)
    assert await rebuild(books, shelf, seen.append).run() == 30
    assert seen[-1] == 30
    await books.roll_all()
    assert await books.rows() == plainly([*told, *more])


async def test_a_mark_that_lies_before_what_was_taken_from_the_outbox_loses_nothing(books: Books) -> None:
    """After a Redis that forgot, of a tenant whose first entry is not archived yet, or by who noted it late."""
    told, shelf = [*receipts(9), *receipts(5, "beta")], Shelf(books)
    await books.settle(*told)
    await books.roll_all()
    await shelf.fetch()
    await books.janitor(archived=True).tidy()
    told += (new := receipts(4))
    await books.settle(*new)
    for tenant in ("acme", "beta"):
        await books.archive_up_to(tenant, "0-0")
    await rebuild(books, shelf).run()
    await books.roll_all()
    assert await books.rows() == plainly(told)


async def test_receipts_that_come_while_rows_are_made_anew_count_once(books: Books) -> None:
    """Settled, added up, archived and taken from the outbox in every order while a rebuild reads the archive."""
    told = [*receipts(40), *receipts(20, "beta")]
    await books.settle(*told)
    await books.ann.roll()
    shelf, janitor, steps = Shelf(books), books.janitor(archived=True), 0
    await shelf.fetch(25)
    before: list[int] = []

    async def meanwhile() -> None:
        nonlocal steps
        steps += 1
        tenant = ("acme", "beta", f"new{steps % 4}")[steps % 3]
        new = receipts(2, tenant)
        told.extend(new)
        await books.settle(*new)
        if steps % 2:
            await books.ann.roll()
            before.append((await books.total("day")).requests)
        if steps % 3:
            await shelf.fetch(3)
        await janitor.tidy()

    shelf.during = meanwhile
    await rebuild(books, shelf).run()
    assert before == sorted(before), "readers never saw what was half done"
    await books.roll_all()
    assert await books.rows() == plainly(told)
    await shelf.fetch()
    await janitor.tidy()
    assert await books.outbox() == []
    assert books.ann.state.lost == {"sums": 0, "archive": 0}
    latest = [msgspec.json.decode(raw)["id"] for raw in await books.rollups.latest(500)]
    assert len(latest) == len(set(latest))


async def test_an_outbox_that_is_cut_meanwhile_costs_another_pass_and_no_receipt(books: Books) -> None:
    told, shelf = receipts(30), Shelf(books)
    await books.settle(*told)
    await books.ann.roll()
    await shelf.fetch()
    cuts = 2

    async def meanwhile() -> None:
        nonlocal cuts
        if not cuts:
            return
        cuts -= 1
        new = receipts(6)
        told.extend(new)
        await books.settle(*new)
        await books.ann.roll()
        await shelf.fetch()
        await books.janitor(most=2, archived=True).tidy()

    shelf.during = meanwhile
    await rebuild(books, shelf).run()
    assert shelf.passes == 2
    await books.roll_all()
    assert await books.rows() == plainly(told)


@pytest.mark.parametrize("when", ["before", "during", "after"])
@pytest.mark.parametrize("archived", ["the first", "both, one marked", "both"])
async def test_an_abandoned_receipt_and_the_true_one_around_the_cut_count_once(
    books: Books, archived: str, when: str
) -> None:
    """Whichever of them the archive had when the cut was made, and whichever it has when it is read."""
    one = intent(created=int(time.time()))
    true = msgspec.structs.replace(receipts(1)[0], id=one.id, tenant=one.tenant)
    others, shelf = receipts(8, one.tenant), Shelf(books)
    await books.ledger.exchange([candidate(one)], [])
    await books.ledger.abandon(one.tenant, "ann", {one.id: Settlement(abandoned(one, time.time()), one)})
    await books.ann.roll()
    await shelf.fetch()
    cut = (await books.outbox())[-1]
    true_told = False

    async def settle_true() -> None:
        nonlocal true_told
        if true_told:
            return
        true_told = True
        await books.settle(true, *others)
        await books.ann.roll()
        if archived != "the first":
            await shelf.fetch()
        if archived == "both, one marked":
            await books.archive_up_to(one.tenant, cut)

    if when == "before":
        await settle_true()
    elif when == "during":
        shelf.during = settle_true
    await rebuild(books, shelf).run()
    await settle_true()
    await books.roll_all()
    assert await books.rows() == plainly([true, *others])


async def test_a_rebuild_that_dies_leaves_all_as_it_was_and_its_rows_go(books: Books) -> None:
    told, shelf = receipts(10), Shelf(books)
    await books.settle(*told)
    await books.ann.roll()
    await shelf.fetch()

    async def dies() -> None:
        raise RedisConnectionError

    shelf.during = dies
    with pytest.raises(RedisConnectionError):
        await rebuild(books, shelf).run()
    shelf.during = None
    with pytest.raises(RebuildFailed, match="already"):
        await rebuild(books, shelf).run()
    assert await books.rows() == plainly(told)

    keys = books.keys.ledger()
    await books.redis.hset(keys.builds, "1", str(int(time.time()) - 1))  # a minute later
    await rebuild(books, shelf).run()
    assert await books.rows() == plainly(told)
    generations = Generations(books.redis, books.keys, books.retention)
    assert await generations.drop() == []
    for one in ("0", "1"):
        await books.redis.hset(keys.builds, one, str(int(time.time()) - 100))
    assert sorted(await generations.drop()) == [0, 1]
    left = [name.decode() for name in await books.redis.keys(f"{keys.base.replace('{', '[{]')}*")]
    assert not [name for name in left if ":g1:" in name or name.startswith(keys.base + "rows:")]
    assert await books.rows() == plainly(told)


async def test_a_reply_that_is_lost_adds_nothing_twice(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    told, shelf = receipts(10), Shelf(books)
    await books.settle(*told)
    await shelf.fetch()
    write, lost = Adder.write, 2

    async def loses(self: Adder, *what: Any) -> str | None:
        nonlocal lost
        lost -= 1
        if lost == 1:
            raise RedisConnectionError  # it never came there
        done = await write(self, *what)
        if lost == 0:
            raise RedisConnectionError  # it came, and the answer did not
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Adder, "write", loses)
        await rebuild(books, shelf).run()
    assert lost <= 0
    await books.roll_all()
    assert await books.rows() == plainly(told)


async def test_readers_see_whole_rows_at_every_moment(books: Books) -> None:
    told, shelf = receipts(60), Shelf(books)
    await books.settle(*told)
    await books.roll_all()
    await shelf.fetch()
    shelf.during = lambda: asyncio.sleep(0.002)
    seen = set()

    done = False

    async def look() -> None:
        while not done:
            seen.add((await books.total("day")).requests)
            seen.add(sum(row.requests for row in (await books.rows_of_today()).values()))

    async with asyncio.TaskGroup() as group:
        group.create_task(look())
        for _ in range(3):
            await rebuild(books, shelf).run()
        done = True
    assert seen == {60}
