"""Slices do not change the limits and budgets of a tenant. Only single requests must fit the part of a slice."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter
from contextlib import AsyncExitStack
from decimal import Decimal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError

from gateway.accounting.budgets import Account, LimitUsage, Raise
from gateway.accounting.intent_reaper import IntentReaper
from gateway.accounting.receipt import Receipt
from gateway.accounting.redis_ledger import Settlement
from gateway.accounting.slices import share, share_of, usable
from gateway.accounting.verdict import refusal_error
from gateway.errors import BudgetSpent, NeverFits, RateLimited
from gateway.redis.keys import RedisKeys, slice_names
from gateway.usage.feed import OutboxFeed
from tests.accounting.budget_fixture import budget
from tests.accounting.counts import key, tenant
from tests.accounting.sliced_process import SLICES, SlicedProcess, admitted, refused, sliced_process
from tests.batching.process import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


pytestmark = pytest.mark.process


@pytest_asyncio.fixture
async def ann(redis_url: str) -> AsyncIterator[SlicedProcess]:
    async with sliced_process(redis_url) as part:
        yield part


@pytest_asyncio.fixture
async def both(redis_url: str) -> AsyncIterator[tuple[SlicedProcess, SlicedProcess]]:
    """Two processes of one deployment."""
    keys = RedisKeys(f"t{secrets.token_hex(6)}")
    async with AsyncExitStack() as stack:
        ann, bob = [await stack.enter_async_context(sliced_process(redis_url, keys, name)) for name in ("ann", "bob")]
        yield ann, bob


@given(st.integers(0, 10**18), st.integers(1, 16))
def test_the_parts_of_an_amount_add_up_and_differ_by_one_at_most(amount: int, slices: int) -> None:
    parts = [share(amount, number, slices) for number in range(slices)]
    assert sum(parts) == amount
    assert max(parts) - min(parts) <= 1
    assert parts == sorted(parts, reverse=True)


def test_a_scope_is_divided_with_its_budget() -> None:
    scope = msgspec.structs.replace(budget("10", soft="9.000000000001"), rpm=9, tpm=1000)
    parts = [share_of(scope, number, 4) for number in range(4)]
    assert [part.rpm for part in parts] == [3, 2, 2, 2]
    assert [part.tpm for part in parts] == [250] * 4
    assert [part.parallel for part in parts] == [0] * 4  # no limit
    assert {part.budget.max for part in parts if part.budget is not None} == {"2500000000000"}
    assert [part.budget.soft for part in parts if part.budget is not None] == ["2250000000001", *["2250000000000"] * 3]


def test_a_limit_below_the_number_of_slices_uses_fewer_slices() -> None:
    assert usable([tenant(rpm=100), key(rpm=2)], 4) == 2
    assert usable([tenant(rpm=100), key(parallel=1)], 4) == 1
    assert usable([tenant(rpm=100)], 4) == 4
    assert usable([], 4) == 4
    small = msgspec.structs.replace(budget("10"), rpm=3, tpm=1000)
    parts = [share_of(small, number, 4) for number in range(4)]
    assert [(part.rpm, part.tpm) for part in parts] == [(1, 334), (1, 333), (1, 333), (0, 0)]
    assert sum(int(part.budget.max) for part in parts if part.budget is not None) == 10**13


async def test_requests_of_a_minute_are_exactly_the_limit(both: tuple[SlicedProcess, SlicedProcess]) -> None:
    """Two processes have 120 callers at once. 42 requests pass, and the refusal names the whole limit."""
    scope = tenant(rpm=42)
    verdicts = await asyncio.gather(*(part.ask(scope) for _ in range(60) for part in both))
    refusals = [verdict.refusal for verdict in verdicts if verdict is not None and verdict.refusal is not None]
    assert len(verdicts) - len(refusals) == 42
    assert sum(map(len, await both[0].intents())) + sum(map(len, await both[1].intents())) == 42
    last = await refused(both[0], scope)
    assert (last.limit, last.maximum, last.used, last.need, last.slices) == ("requests", "42", "42", "1", SLICES)
    assert all(0 < one.retry_us / 1e6 <= 60.2 for one in refusals)


async def test_requests_are_spread_over_all_slices(ann: SlicedProcess) -> None:
    await asyncio.gather(*(ann.ask(tenant(rpm=40)) for _ in range(40)))
    assert [len(ids) for ids in await ann.intents()] == [10] * SLICES
    (used,) = await LimitUsage(ann.redis, ann.keys, 10).read("acme", [tenant(rpm=40)], SLICES)
    assert (used.requests, used.tokens, used.parallel) == (40, 400, 0)


async def test_requests_of_a_process_share_a_slice_for_a_while(redis_url: str) -> None:
    """After a refusal, requests share the slice that had room."""
    async with sliced_process(redis_url, keep_s=1000.0) as ann:
        scope = tenant(rpm=40)
        for _ in range(10):
            await admitted(ann, scope)
        assert sorted(len(ids) for ids in await ann.intents()) == [0, 0, 0, 10]
        for _ in range(10):
            await admitted(ann, scope)
        assert sorted(len(ids) for ids in await ann.intents()) == [0, 0, 10, 10]


async def test_a_key_with_a_lower_limit_than_slices_has_its_limit(ann: SlicedProcess) -> None:
    scopes = tenant(rpm=100), key(parallel=2)
    verdicts = [await ann.ask(*scopes) for _ in range(6)]
    assert Counter(verdict is not None and verdict.refusal is None for verdict in verdicts) == {True: 2, False: 4}
    last = await refused(ann, *scopes)
    assert (last.limit, last.scope, last.maximum, last.used) == ("parallel", 2, "2", "2")


async def test_a_key_with_a_lower_limit_than_slices_can_use_all_of_its_limits_and_budget(ann: SlicedProcess) -> None:
    """A limit of one request at a time uses one slice, with the whole limit of tokens and the whole raised budget."""
    scope = msgspec.structs.replace(budget("1", name="key:prod"), tpm=1000, parallel=1)
    account = Account("acme", scope, SLICES)
    verdict = await admitted(ann, tenant(tpm=40_000), scope, usd="0.9", tokens=900)
    assert verdict.left is not None
    assert (verdict.left["tokens"].limit, verdict.left["tokens"].left) == (1000, 100)
    ann.settle(ann.admitted[-1], "0.9")
    assert await ann.store.flush()
    no = await refused(ann, tenant(tpm=40_000), scope, usd="0.2")
    assert (no.limit, no.maximum, no.used, no.slices) == ("budget", str(10**12), str(9 * 10**11), 1)
    seconds, _ = await ann.redis.time()
    await ann.budgets.put_raise(account, Raise(Decimal("0.1"), seconds + 60))
    (balance,) = await ann.budgets.read([account])
    assert (balance.limit_usd, balance.left_usd) == (Decimal("1.1"), Decimal("0.2"))
    await admitted(ann, tenant(tpm=40_000), scope, usd="0.2")


async def test_remainders_are_those_of_the_tenant(ann: SlicedProcess) -> None:
    verdict = await ann.ask(tenant(rpm=42, tpm=4000), tokens=100)
    assert verdict is not None
    assert verdict.left is not None
    requests, tokens = verdict.left["requests"], verdict.left["tokens"]
    assert (requests.limit, tokens.limit) == (42, 4000)
    assert 36 <= requests.left <= 40
    assert tokens.left == 4 * 900


async def test_two_processes_spend_one_budget_up_to_the_documented_bound(
    both: tuple[SlicedProcess, SlicedProcess],
) -> None:
    """A request that fits no slice leaves less than its reservation in each of them."""
    scope, most = budget("1"), Decimal("0.02")
    draws = random.Random(7)
    for part in both:
        answers = await asyncio.gather(*(part.ask(scope, usd=f"{draws.uniform(0.005, 0.02):.6f}") for _ in range(60)))
        assert all(verdict is not None for verdict in answers)
    await both[0].ask_until_refused(scope, usd=str(most))
    spent, reserved = await both[0].spent(scope)
    assert spent == 0
    assert reserved == sum((one.reserved_usd for part in both for one in part.admitted), Decimal(0))
    assert Decimal(1) - SLICES * most < reserved <= 1
    for part in both:
        for one in part.admitted:
            part.settle(one, str(one.reserved_usd))
        assert await part.store.flush()
    assert await both[1].spent(scope) == (reserved, 0)
    last = await refused(both[1], scope, usd="0.02")
    assert (last.limit, last.slices) == ("budget", SLICES)
    assert Decimal(last.maximum) == 10**12
    assert Decimal(last.used) / 10**12 == reserved


async def test_a_receipt_is_stored_in_the_slice_of_its_request_and_found(ann: SlicedProcess) -> None:
    """Usage workers read all slices. Receipts have the tenant's name."""
    for _ in range(20):
        await ann.ask(tenant(rpm=1000))
    in_slices = await ann.intents()
    receipts = {one.id: ann.settle(one, "0.001") for one in ann.admitted}
    assert sum(map(len, in_slices)) == 20
    assert await ann.store.flush()
    ann.store.remember([Settlement(next(iter(receipts.values())), None)])
    for receipt in receipts.values():
        assert Receipt.from_json(await ann.store.get("acme", receipt.id) or b"") == receipt
    for name, ids in zip(slice_names("acme", SLICES), in_slices, strict=True):
        assert await ann.redis.xlen(ann.keys.outbox(name)) == len(ids)
    feed = OutboxFeed(ann.redis, ann.keys, "1")
    entries = (await feed.read_new(1000, all_outboxes=True)).entries
    assert {Receipt.from_json(entry.raw).id for entry in entries} == receipts.keys()
    assert {Receipt.from_json(entry.raw).tenant for entry in entries} == {"acme"}
    await feed.acknowledge(entries)
    assert (await feed.backlog()).waiting == 0


async def test_a_raise_is_divided_and_read_as_one(ann: SlicedProcess) -> None:
    scope = budget("0.04")
    account = Account("acme", scope, SLICES)
    for _ in range(4):
        await admitted(ann, scope, usd="0.01")
    assert (await refused(ann, scope, usd="0.01")).maximum == str(4 * 10**10)
    seconds, _ = await ann.redis.time()
    await ann.budgets.put_raise(account, Raise(Decimal("0.080000000001"), seconds + 60))
    (balance,) = await ann.budgets.read([account])
    assert balance.raised == Raise(Decimal("0.080000000001"), seconds + 60)
    assert balance.left_usd == Decimal("0.080000000001")
    for _ in range(4):
        await admitted(ann, scope, usd="0.02")
    assert (await refused(ann, scope, usd="0.02")).used == str(12 * 10**10)
    await ann.budgets.put_raise(account, None)
    (balance,) = await ann.budgets.read([account])
    assert (balance.raised, balance.limit_usd) == (None, Decimal("0.04"))


async def test_events_are_sent_once_with_the_figures_of_the_whole_budget(
    both: tuple[SlicedProcess, SlicedProcess],
) -> None:
    """Two processes send one soft and one hard event for four slices. After a raise, the hard event is sent again."""
    ann, bob = both
    scope = budget("0.4", soft="0.2")
    await ann.ask_until_refused(scope, usd="0.01")
    await refused(bob, scope, usd="0.01")
    await until(lambda: len(ann.events) + len(bob.events) == 2)
    await asyncio.gather(*(part.ask(scope, usd="0.01") for part in both))
    events = {one.event.kind: one for one in (*ann.events, *bob.events)}
    assert events.keys() == {"soft", "hard"}
    assert {(one.tenant, one.scope) for one in events.values()} == {("acme", scope)}
    soft, hard = events["soft"].event, events["hard"].event
    assert 20 * 10**10 <= int(soft.spent) + int(soft.reserved) <= 40 * 10**10
    assert (hard.reserved, hard.limit, hard.soft) == (str(40 * 10**10), str(40 * 10**10), str(20 * 10**10))
    seconds, _ = await ann.redis.time()
    await bob.budgets.put_raise(Account("acme", scope, SLICES), Raise(Decimal("0.04"), seconds + 60))
    await bob.ask_until_refused(scope, usd="0.01")
    await until(lambda: len(ann.events) + len(bob.events) == 3)
    assert bob.events[-1].event.limit == str(44 * 10**10)


async def test_a_slice_past_its_part_of_a_soft_budget_sends_nothing(ann: SlicedProcess) -> None:
    """A large request exceeds the slice's part of the soft budget, but not the soft budget."""
    scope = budget("4", soft="2")
    assert not (await admitted(ann, scope, usd="0.9")).soft
    while not (await admitted(ann, scope, usd="0.01")).soft:
        pass
    assert await ann.tasks.drain(5) == 0
    assert ann.events == []


async def test_a_lost_reply_admits_a_request_in_one_slice(ann: SlicedProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis admits the request, and the reply is lost. The request is sent again to the same slice."""
    scope, exchange = budget("1"), ann.ledger.exchange
    lost = 0

    async def without_reply(*call: Any) -> Any:
        nonlocal lost
        result = await exchange(*call)
        if call[0] and not lost:
            lost += 1
            raise RedisConnectionError("the reply is lost")
        return result

    monkeypatch.setattr(ann.ledger, "exchange", without_reply)
    assert await ann.ask(scope, usd="0.01", on_failure="allow") is None
    assert lost == 1
    await until(lambda: ann.client.up and not ann.store.is_blocked)
    await admitted(ann, scope, usd="0.02")
    assert await ann.spent(scope) == (0, Decimal("0.03"))
    assert sorted(one for ids in await ann.intents() for one in ids) == sorted(one.id for one in ann.admitted)
    for one in ann.admitted:
        ann.settle(one, "0.005")
    assert await ann.store.flush()
    assert await ann.spent(scope) == (Decimal("0.01"), 0)


async def test_requests_of_a_dead_process_are_settled_in_their_slices(
    both: tuple[SlicedProcess, SlicedProcess],
) -> None:
    """The process was only unreachable. Its own receipt replaces the abandoned one in the slice."""
    ann, bob = both
    scope = msgspec.structs.replace(budget("1"), rpm=12)
    for _ in range(12):
        await ann.ask(scope, usd="0.01")
    assert [len(ids) for ids in await ann.intents()] == [3] * SLICES
    settled: list[Receipt] = []
    recorder: Any = SimpleNamespace(record_abandoned=settled.append)
    names = slice_names("acme", SLICES)
    await IntentReaper(
        bob.client, bob.ledger, recorder, tenants=lambda: names, holds=bob.store.holds, lease_s=0.0
    ).sweep()
    assert {one.id for one in settled} == {one.id for one in ann.admitted}
    assert {(one.tenant, one.status) for one in settled} == {("acme", "abandoned")}
    assert await bob.spent(scope) == (Decimal("0.12"), 0)
    found = [Receipt.from_json(await bob.store.get("acme", one.id) or b"") for one in settled]
    assert found == settled
    ann.settle(ann.admitted[0], "0.001")
    assert await ann.store.flush()
    assert await bob.spent(scope) == (Decimal("0.111"), 0)


async def test_more_slices_keep_what_the_first_one_has_spent(redis_url: str) -> None:
    """Each slice has its part of the budget, so at most the parts of new slices are spent in addition."""
    scope, keys = budget("1"), RedisKeys(f"t{secrets.token_hex(6)}")
    async with sliced_process(redis_url, keys, slices=1) as ann:
        for _ in range(80):
            await ann.ask(scope, usd="0.01")
        ann.slices = 4
        assert await ann.spent(scope) == (0, Decimal("0.8"))
        await ann.ask_until_refused(scope, usd="0.01")
        assert await ann.spent(scope) == (0, Decimal("0.8") + Decimal("0.75"))
        ann.slices = 2
        assert await ann.spent(scope) == (0, Decimal("0.8") + Decimal("0.25"))
        for one in ann.admitted:
            ann.settle(one, "0.01")
        assert await ann.store.flush()
        ann.slices = 4
        assert await ann.spent(scope) == (Decimal("1.55"), 0)


async def test_errors_name_the_whole_limit_and_the_part_that_a_request_must_fit(ann: SlicedProcess) -> None:
    scope = msgspec.structs.replace(budget("1"), tpm=1000)
    with pytest.raises(NeverFits) as never:
        raise refusal_error(await refused(ann, scope, tokens=251), (scope,), 0)
    assert "may use 251 tokens, and the limit of this tenant is 1000 per minute" in never.value.message
    assert "must fit one of 4 equal parts" in never.value.message
    with pytest.raises(BudgetSpent) as spent:
        raise refusal_error(await refused(ann, scope, usd="0.26"), (scope,), 0)
    assert "$1 per month, has $1 left, and this request may cost $0.26" in spent.value.message
    assert "must fit one of 4 equal parts" in spent.value.message
    for _ in range(4):
        await ann.ask(scope, tokens=200)
    with pytest.raises(RateLimited) as limited:
        raise refusal_error(await refused(ann, scope, tokens=100), (scope,), 0)
    assert "is 1000 tokens per minute: 800 were used" in limited.value.message
    assert "must fit one of 4 equal parts" in limited.value.message


async def test_without_redis_a_process_has_its_part_of_each_slice(
    ann: SlicedProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two processes spends a quarter of the remainder of the slices, in whole requests of each slice."""
    scope = msgspec.structs.replace(budget("1.6"), rpm=40)
    for _ in range(40):
        await ann.ask(scope, usd="0.01")
    monkeypatch.setattr(ann.store, "is_up", lambda _: False)
    scope = msgspec.structs.replace(scope, rpm=0)
    await ann.ask_until_refused(scope, usd="0.01")
    assert len(ann.admitted) - 40 == SLICES * 7  # 0.3 USD were left in each
    verdict = await ann.ask(scope, usd="0.01")
    assert verdict is not None
    assert verdict.refusal is not None
    assert verdict.refusal.maximum == "75000000000"
