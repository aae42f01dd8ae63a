"""Limits per minute and parallel limits: counted in Redis over all processes, exactly."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
import pytest_asyncio
from redis.asyncio import Redis

from gateway.accounting.intent import abandoned
from gateway.accounting.redis_ledger import Settlement
from tests.accounting.counts import LEASE_S, Counted, key, tenant
from tests.accounting.receipt_builders import candidate, intent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest_asyncio.fixture
async def counted(redis_url: str) -> AsyncIterator[Counted]:
    async with Redis.from_url(redis_url) as redis:
        yield Counted(redis)


async def test_requests_of_a_minute_are_counted_over_all_processes(counted: Counted) -> None:
    """Three processes and 90 callers at once: exactly 40 requests pass a limit of 40."""
    scope = tenant(rpm=40)
    verdicts = await asyncio.gather(*(counted.ask(scope, by=name) for _ in range(30) for name in counted.processes))
    assert Counter(verdict.refusal is None for verdict in verdicts) == {True: 40, False: 50}
    refusals = [verdict.refusal for verdict in verdicts if verdict.refusal is not None]
    assert {(no.limit, no.maximum, no.used, no.need) for no in refusals} == {("requests", "40", "40", "1")}
    assert all(59 < no.retry_us / 1e6 <= 60.2 for no in refusals)


async def test_a_minute_slides(counted: Counted) -> None:
    """Each request expires after sixty seconds and a tenth, and none before."""
    scope = tenant(rpm=2)
    assert (await counted.ask(scope)).refusal is None
    await counted.grow_older(scope, 40)
    assert (await counted.ask(scope)).refusal is None
    refused = (await counted.ask(scope)).refusal
    assert refused is not None
    assert 19 < refused.retry_us / 1e6 <= 20.2
    await counted.grow_older(scope, 19)
    assert (await counted.ask(scope)).refusal is not None
    await counted.grow_older(scope, 1.3)
    assert (await counted.ask(scope)).refusal is None
    assert (await counted.ask(scope)).refusal is not None


async def test_expired_usage_is_deleted_from_redis(counted: Counted) -> None:
    scope = tenant(rpm=1000, tpm=100_000)
    for _ in range(3):
        await counted.ask(scope)
        await counted.grow_older(scope, 61)
    await counted.ask(scope)
    window = counted.keys.scope("acme", "tenant")[0]
    assert len(await counted.redis.hgetall(window)) == 5  # from, two sums, and one slot of each
    assert 0 < await counted.redis.pttl(window) <= 60_200


async def test_tokens_are_taken_at_their_estimate_and_corrected_by_the_receipt(counted: Counted) -> None:
    """The receipt corrects the estimate in both directions, in the minute of admission."""
    scope = tenant(tpm=100)
    assert (await counted.ask(scope, tokens=60)).refusal is None
    first = counted.last
    refused = (await counted.ask(scope, tokens=60)).refusal
    assert refused is not None
    assert (refused.limit, refused.used, refused.need) == ("tokens", "60", "60")
    await counted.settle(first, tokens=30)
    assert (await counted.ask(scope, tokens=60)).refusal is None
    await counted.settle(counted.last, tokens=75)
    refused = (await counted.ask(scope, tokens=1)).refusal
    assert refused is not None
    assert refused.used == "105"


async def test_a_receipt_of_an_older_minute_changes_nothing_of_this_one(counted: Counted) -> None:
    scope = tenant(tpm=100)
    await counted.ask(scope, tokens=60)
    old = counted.last
    await counted.grow_older(scope, 70)
    slot, rest = (await counted.redis.hget(counted.keys.intents("acme", "ann"), old.id)).split(b"|", 1)
    await counted.redis.hset(counted.keys.intents("acme", "ann"), old.id, str(int(slot) - 700).encode() + b"|" + rest)
    assert (await counted.ask(scope, tokens=90)).refusal is None
    await counted.settle(old, tokens=5)
    refused = (await counted.ask(scope, tokens=20)).refusal
    assert refused is not None
    assert refused.used == "90"


async def test_a_request_is_admitted_after_the_returned_waiting_time(counted: Counted) -> None:
    """The waiting time depends on the requested tokens. The oldest slots expire first."""
    scope = tenant(tpm=100)
    for tokens in (10, 20, 70):
        assert (await counted.ask(scope, tokens=tokens)).refusal is None
        await counted.grow_older(scope, 10)
    refused = (await counted.ask(scope, tokens=25)).refusal
    assert refused is not None
    assert 39 < refused.retry_us / 1e6 <= 40.2
    await counted.grow_older(scope, refused.retry_us / 1e6 + 0.1)
    assert (await counted.ask(scope, tokens=25)).refusal is None


async def test_a_request_larger_than_the_limit_never_fits(counted: Counted) -> None:
    refused = (await counted.ask(tenant(tpm=100), tokens=101)).refusal
    assert refused is not None
    assert (refused.limit, refused.maximum, refused.need, refused.retry_us) == ("tokens", "100", "101", 0)


async def test_key_and_tenant_limits_are_counted_separately(counted: Counted) -> None:
    """A request that the key's limit refuses does not count for the tenant, and vice versa."""
    both = tenant(rpm=3), key(rpm=2)
    assert [(await counted.ask(*both)).refusal is None for _ in range(3)] == [True, True, False]
    other = tenant(rpm=3), key(rpm=2, name="key:other")
    assert [(await counted.ask(*other)).refusal is None for _ in range(2)] == [True, False]
    refused = (await counted.ask(*other)).refusal
    assert refused is not None
    assert (refused.scope, refused.limit) == (1, "requests")


async def test_callers_get_the_limit_with_the_smallest_remainder(counted: Counted) -> None:
    verdict = await counted.ask(tenant(rpm=100, tpm=50), key(rpm=2, tpm=1000))
    assert verdict.left is not None
    requests, tokens = verdict.left["requests"], verdict.left["tokens"]
    assert (requests.limit, requests.left, tokens.limit, tokens.left) == (2, 1, 50, 40)
    assert 59 < requests.reset_us / 1e6 <= 60.2
    assert (await counted.ask()).left is None


async def test_no_more_run_at_a_time_than_may(counted: Counted) -> None:
    """The parallel limit holds over all processes. Each ended request frees a slot."""
    scope = tenant(parallel=5)
    ones = [intent(name) for _ in range(4) for name in counted.processes]
    verdicts = await asyncio.gather(*(counted.ask(scope, by=one.process_id, one=one) for one in ones))
    held = [one for one, verdict in zip(ones, verdicts, strict=True) if verdict.refusal is None]
    assert len(held) == 5
    assert {verdict.refusal.limit for verdict in verdicts if verdict.refusal is not None} == {"parallel"}
    charged = msgspec.structs.replace(held[0], charges=(scope.charge,))
    await counted.settle(charged, tokens=1, by=held[0].process_id)
    assert [(await counted.ask(scope, by="bob")).refusal is None for _ in range(2)] == [True, False]


async def test_slots_of_a_dead_process_are_free_after_its_lease(counted: Counted) -> None:
    """The slots are free before the dead process is settled, but not while its lease lasts."""
    scope = tenant(parallel=2)
    await counted.ask(scope, by="ann")
    await counted.ask(scope, by="bob")
    assert (await counted.ask(scope, by="carl")).refusal is not None
    for _ in range(4):
        await asyncio.sleep(LEASE_S / 3)
        await counted.processes["bob"].exchange([], [], ["acme"])  # renew the lease only
    assert (await counted.ask(scope, by="carl")).refusal is None
    assert (await counted.ask(scope, by="carl")).refusal is not None


async def test_the_dead_are_settled_once_and_give_nothing_back_twice(counted: Counted) -> None:
    scope = tenant(parallel=2, tpm=1000)
    await counted.ask(scope, by="ann", tokens=100)
    left = counted.last
    settlement = {left.id: Settlement(abandoned(left, 0), left)}
    for name in ("bob", "carl", "bob"):
        await counted.processes[name].abandon("acme", "ann", settlement)
    await counted.settle(left, tokens=1)
    assert [(await counted.ask(scope, by="bob")).refusal is None for _ in range(3)] == [True, True, False]
    assert await counted.redis.hgetall(counted.keys.scope("acme", "tenant")[1]) == {b"bob": b"2"}


async def test_a_command_that_is_run_twice_counts_once(counted: Counted) -> None:
    """The connection may break after Redis ran the command. The client then sends it again."""
    scope = tenant(rpm=10, parallel=10)
    one = intent()
    verdicts = [await counted.ask(scope, one=one) for _ in range(3)]
    assert [verdict.variant for verdict in verdicts] == [1, 1, 1]
    await counted.ask(scope)
    held = await counted.redis.hmget(counted.keys.scope("acme", "tenant")[0], "requests")
    assert held == [b"2"]


async def test_requests_admitted_without_redis_are_counted_after_its_return(counted: Counted) -> None:
    """Admitted requests count even above the limit. Later requests are refused."""
    scope = tenant(rpm=2, parallel=9)
    ones = [candidate(intent(), scope, force=True) for _ in range(3)]
    brought = await counted.processes["ann"].exchange(ones, [])
    assert all(verdict.refusal is None for verdict, _, _ in brought.verdicts.values())
    refused = (await counted.ask(scope)).refusal
    assert refused is not None
    assert refused.used == "3"


async def test_tenants_without_limits_leave_nothing_but_their_intents(counted: Counted) -> None:
    await counted.ask()
    names = {name.decode().rpartition(":")[2] for name in await counted.redis.keys(f"*{counted.keys.prefix}:*")}
    assert names == {"ann", "owners"}
