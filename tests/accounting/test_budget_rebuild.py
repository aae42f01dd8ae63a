"""Receipts count in the running period of each budget, or in a part of a rolling one."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from gateway.accounting.budget_rebuild import BudgetRebuild, PeriodSpend, running_since
from gateway.accounting.budgets import SHARES, Account, Budgets
from gateway.config.limits import BudgetDuration
from gateway.pricing import dollars
from tests.accounting.budget_fixture import BudgetFixture, budget
from tests.accounting.receipt_builders import closed, guided

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from gateway.accounting.receipt import Receipt

MONTH = Account("acme", budget("10"))
HOURS = Account("acme", budget("10", name="key:ci", period=BudgetDuration(6, "h")))
ROLLING = Account("acme", budget("10", name="key:app", period=BudgetDuration(1, "d"), aligned=False))
SLOT_S = 86_400 / SHARES


def seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


NOW_S = seconds("2026-03-02 13:30")


def charge(usd: str, created_s: float, total_ms: float = 0.0) -> Receipt:
    base = closed(guided())
    timings = msgspec.structs.replace(base.timings, total_ms=total_ms)
    return msgspec.structs.replace(base, created=int(created_s), cost_usd=Decimal(usd), timings=timings)


def spent(account: Account, *charges: Receipt, now_s: int = NOW_S) -> Mapping[int, int]:
    spend = PeriodSpend(now_s)
    for one in charges:
        spend.add(one, [account])
    return dict(next((slots for _, slots in spend), {}))


@pytest.mark.parametrize(
    ("account", "start"), [(MONTH, "2026-03-01 00:00"), (HOURS, "2026-03-02 12:00")], ids=["month", "six hours"]
)
def test_a_request_counts_in_the_period_in_which_it_ended(account: Account, start: str) -> None:
    start_s = seconds(start)
    assert running_since(account.terms, NOW_S) == start_s
    assert spent(account, charge("1", start_s - 60, 59_999)) == {}
    assert spent(account, charge("1", start_s - 60, 60_000), charge("0.5", NOW_S)) == {0: 15 * 10**11}


def test_a_rolling_budget_has_the_slots_of_its_receipts() -> None:
    first = int(NOW_S / SLOT_S) - SHARES
    start_s = running_since(ROLLING.terms, NOW_S)
    assert start_s == int(first * SLOT_S)
    assert spent(ROLLING, charge("1", start_s - 1)) == {}
    held = spent(ROLLING, charge("1", start_s), charge("2", start_s + SLOT_S), charge("4", NOW_S, 60_000))
    assert held == {first: 10**12, first + 1: 2 * 10**12, first + SHARES: 4 * 10**12}


def test_receipts_without_cost_change_no_budget() -> None:
    assert spent(MONTH, charge("0", NOW_S)) == {}


@pytest_asyncio.fixture
async def fixture(redis_url: str) -> AsyncIterator[BudgetFixture]:
    async with Redis.from_url(redis_url) as redis:
        yield BudgetFixture(redis)


async def rebuilt(fixture: BudgetFixture, account: Account, slots: Mapping[int, int], now_s: int) -> tuple[str, str]:
    budgets = Budgets(fixture.redis, fixture.keys)
    result = await BudgetRebuild(fixture.redis, budgets, now_s).restore(account, slots)
    return str(result.before_usd), str(result.after_usd)


async def test_a_rolling_budget_is_raised_to_the_sum_of_its_receipts(fixture: BudgetFixture) -> None:
    """Redis has one slot with less and one with more than its receipts. Latest slots come first, old ones expire."""
    now_s, _ = await fixture.redis.time()
    now = int(now_s / SLOT_S)
    await fixture.ask("1", ROLLING.scope)
    await fixture.settle(fixture.last, "1")
    slots = {now - 50: 2 * 10**12, now: 5 * 10**11}
    assert await rebuilt(fixture, ROLLING, {now - 1: 10**12}, now_s) == ("1", "1"), "settled in the slot after its end"
    assert await rebuilt(fixture, ROLLING, slots, now_s) == ("1", "2.5")
    assert await rebuilt(fixture, ROLLING, slots, now_s) == ("2.5", "2.5")
    slots = {now - 50: 2 * 10**12, now - 60: 3 * 10**12}
    assert await rebuilt(fixture, ROLLING, slots, now_s) == ("2.5", "5")
    refused = (await fixture.ask("5.1", ROLLING.scope)).refusal
    assert refused is not None
    assert dollars(refused.used) == 5
    ring = f"{fixture.keys.scope('acme', 'key:app')[2]}:86400"
    added = await fixture.redis.hmget(ring, f"u{now - 50}", f"u{now - 60}")
    assert added == [str(2 * 10**12).encode(), str(2 * 10**12).encode()]
    assert await fixture.redis.hget(ring, "from") == str(now - 60).encode()
    assert 0 < await fixture.redis.ttl(ring) <= SLOT_S * (SHARES + 2)


async def test_a_calendar_budget_gets_what_is_missing(fixture: BudgetFixture) -> None:
    now_s, _ = await fixture.redis.time()
    await fixture.ask("1", MONTH.scope)
    await fixture.settle(fixture.last, "1")
    assert await rebuilt(fixture, MONTH, {0: 3 * 10**12}, now_s) == ("1", "3")
    assert (await fixture.money(MONTH.scope))[0] == 3


async def test_a_budget_of_an_earlier_period_begins_a_new_one(fixture: BudgetFixture) -> None:
    """Events of the earlier period may be sent again."""
    now_s, _ = await fixture.redis.time()
    key = fixture.keys.scope("acme", "tenant")[2]
    await fixture.redis.hset(key, mapping={"period": "mo1:3", "spent": str(7 * 10**12), "soft_told": "1"})
    assert await rebuilt(fixture, MONTH, {0: 10**12}, now_s) == ("0", "1")
    assert await fixture.redis.hget(key, "soft_told") is None
    assert (await fixture.money(MONTH.scope))[0] == 1
    assert (await fixture.ask("9", MONTH.scope)).refusal is None
    assert (await fixture.ask("0.1", MONTH.scope)).refusal is not None
