"""Receipts are added up exactly, each once, whoever adds."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec
import pytest_asyncio

from gateway.ledger.intent import abandoned
from gateway.ledger.redis_ledger import Settlement
from gateway.rollups.rollup import Row, pico, usd
from gateway.rollups.rollups import OTHER, Period, Retention, Sums
from tests.ledger.drafts import candidate, intent
from tests.rollups.books import Books, open_books, plainly, receipts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest_asyncio.fixture
async def books(redis_url: str) -> AsyncIterator[Books]:
    async with open_books(redis_url) as one:
        yield one


async def test_the_sum_of_receipts_is_the_sum_of_rows_in_every_granularity(books: Books) -> None:
    told = [*receipts(20), *receipts(7, "beta")]
    await books.settle(*told)
    await books.settle(*told[:5])  # told twice: a reply was lost
    assert await books.ann.roll() == 27
    assert await books.ann.roll() == 0
    for granularity in ("minute", "hour", "day"):
        total = await books.total(granularity)
        assert total.requests == 27
        assert usd(total.cost_pico) == sum(one.cost_usd for one in told)
        assert total.errors == {"engine_timeout": sum(one.status != "ok" for one in told)}
        assert total.stages[-1].count == 27
    now = Period.of("day", time.time())
    rows = await books.rollups.rows([now], "beta")
    assert [(where.tenant, row.requests) for _, where, row in rows] == [("beta", 7)]


async def test_of_two_that_add_up_the_same_one_writes(books: Books) -> None:
    told = receipts(5)
    await books.settle(*told)
    mark = await books.rollups.mark()
    assert await books.ann.roll() == 5
    sums = Sums()
    sums.add(told[0])
    assert not await books.rollups.write(mark, sums.spread(), {"acme": "1-1"}, [], time.time())
    assert (await books.total("day")).requests == 5


async def test_a_receipt_that_takes_an_abandoned_ones_place_takes_it_in_the_sums_too(books: Books) -> None:
    one = intent(created=int(time.time()))
    true = msgspec.structs.replace(receipts(1)[0], id=one.id, tenant=one.tenant)

    await books.ledger.exchange([candidate(one)], [])
    await books.ledger.abandon(one.tenant, "ann", {one.id: Settlement(abandoned(one, time.time()), one)})
    await books.ann.roll()
    assert (await books.total("day")).errors == {"abandoned": 1}
    await books.settle(true)
    await books.bob.roll()
    total = await books.total("day")
    assert (total.requests, usd(total.cost_pico), total.errors) == (1, true.cost_usd, {})


async def test_the_last_receipts_stand_ready_the_newest_first(books: Books) -> None:
    told = receipts(6)
    await books.settle(*told)
    await books.ann.roll()
    found = [msgspec.json.decode(raw)["id"] for raw in await books.rollups.latest(3)]
    assert found == [one.id for one in told[:2:-1]]


async def test_rows_beyond_the_bound_count_together_and_those_that_are_there_go_on(redis_url: str) -> None:
    bound = 4
    async with open_books(redis_url, Retention(3600, 86_400, 10 * 86_400, max_rows=bound)) as books:
        told = [msgspec.structs.replace(one, key=f"k{place % 9}") for place, one in enumerate(receipts(45))]
        for start in range(0, 45, 3):
            await books.settle(*told[start : start + 3])
            await books.ann.roll()
        for period, rows in (await books.rows()).items():
            names = {(where.key, where.route) for where in rows}
            assert names == {("k0", "chat"), ("k1", "chat"), ("k2", "chat"), ("k3", "chat"), (OTHER, OTHER)}
            expected = [row.requests for where, row in plainly(told)[period].items() if where.key in {"k0", "k3"}]
            assert [row.requests for where, row in rows.items() if where.key in {"k0", "k3"}] == expected
            together = Row()
            for row in rows.values():
                together.merge(row)
            assert together == (await books.rollups.totals([period]))[0][1]
        assert (await books.total("day")).requests == 45


async def test_a_round_reads_of_everybody_and_in_equal_parts_of_who_has_more(books: Books) -> None:
    await books.settle(*receipts(3_000, "loud"), *receipts(700, "noisy"))
    for place in range(20):
        await books.settle(*receipts(1, f"quiet{place:02}"))
    assert 500 <= await books.ann.roll() <= 750
    by_tenant = {
        where.tenant: row.requests for _, where, row in await books.rollups.rows([Period.of("day", time.time())])
    }
    assert sum(count for tenant, count in by_tenant.items() if tenant.startswith("quiet")) == 20
    assert by_tenant["loud"] == by_tenant["noisy"]
    assert await books.roll_all() == 3_720 - sum(by_tenant.values())
    assert (await books.total("hour")).requests == 3_720


async def test_a_process_that_was_not_first_takes_up_where_the_other_one_is(books: Books) -> None:
    told = receipts(30)
    for place in range(0, 30, 3):
        await books.settle(*told[place : place + 3])
        await (books.ann if place % 2 else books.bob).roll()
        await books.bob.roll()
    assert await books.rows() == plainly(told)


async def test_what_cannot_be_read_is_passed_over(books: Books) -> None:
    told = receipts(2)
    await books.settle(told[0])
    await books.redis.xadd(books.keys.outbox("acme"), {"receipt": "{}"})
    await books.redis.xadd(books.keys.outbox("acme"), {"later": "x"})
    no_number = msgspec.structs.replace(told[0], id="nan", cost_usd=Decimal("NaN"))
    await books.redis.xadd(books.keys.outbox("acme"), {"receipt": no_number.to_json()})
    await books.settle(told[1])
    assert await books.ann.roll() == 5
    assert await books.rows() == plainly(told)


async def test_sums_of_any_size_are_kept_exactly(books: Books) -> None:
    """An engine that counts nonsense must not end the adding up of everybody."""
    dear = Decimal("123456789012.000000000001")
    told = [msgspec.structs.replace(one, cost_usd=dear, baseline_usd=-dear) for one in receipts(3)]
    await books.settle(*told)
    assert await books.ann.roll() == 3
    await books.settle(*(more := receipts(2)))
    assert await books.ann.roll() == 2
    assert await books.rows() == plainly([*told, *more])
    assert (await books.total("day")).cost_pico == 3 * 123456789012000000000001 + sum(
        pico(one.cost_usd) for one in more
    )


async def test_a_redis_that_lost_everything_is_not_taken_for_what_it_was(books: Books) -> None:
    """What a process knows of the last round holds for that history alone."""
    told = receipts(3)
    for place in range(3):
        if place == 2:
            for name in await books.redis.keys(f"*{books.keys.prefix}*"):
                await books.redis.delete(name)
            books.ledger.forget()
            await books.settle(*receipts(1, "beta"))
            await books.bob.roll()
        await books.settle(told[place])
        assert await books.ann.roll() == 1
    assert (await books.total("day")).requests == 2
    assert len(await books.redis.hgetall(books.keys.ledger().cursors)) == 2
