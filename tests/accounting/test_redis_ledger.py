"""The script: each intent becomes one receipt, also with repeated, late or foreign calls."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import msgspec
import pytest_asyncio
from redis.asyncio import Redis

from gateway.accounting.intent import Intent, abandoned
from gateway.accounting.receipt import Receipt
from gateway.accounting.redis_ledger import RedisLedger, Settlement
from gateway.redis.keys import RedisKeys
from tests.accounting.receipt_builders import candidate, closed, guided, intent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TTL_S = 100
LEASE_S = 10


class Shelf:
    """A Redis, and the ledgers of two processes."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.keys = RedisKeys(f"t{secrets.token_hex(6)}")
        self.ann = RedisLedger(redis, self.keys, "ann", TTL_S, LEASE_S)
        self.bob = RedisLedger(redis, self.keys, "bob", TTL_S, LEASE_S)

    async def intents(self, process_id: str = "ann", tenant: str = "acme") -> set[str]:
        return {one.decode() for one in await self.redis.hkeys(self.keys.intents(tenant, process_id))}

    async def receipt(self, one: Intent) -> Receipt | None:
        raw = await self.ann.receipt(one.tenant, one.id)
        return None if raw is None else Receipt.from_json(raw)

    async def abandon(self, *intents: Intent) -> set[str]:
        return await self.bob.abandon("acme", "ann", {one.id: Settlement(abandoned(one, 0), one) for one in intents})

    async def admit(self, *intents: Intent, by: RedisLedger | None = None) -> None:
        await (by or self.ann).exchange([candidate(one) for one in intents], [])

    async def settle(self, *receipts: Receipt) -> list[str]:
        """Return the ids of receipts that replaced abandoned ones."""
        return (await self.ann.exchange([], [Settlement(one, None) for one in receipts])).replaced


@pytest_asyncio.fixture
async def shelf(redis_url: str) -> AsyncIterator[Shelf]:
    async with Redis.from_url(redis_url) as redis:
        yield Shelf(redis)


def truth(one: Intent, status: str = "ok") -> Receipt:
    """Return the receipt as the request's own process settles it."""
    return msgspec.structs.replace(closed(guided(), status), id=one.id, tenant=one.tenant)


async def test_a_receipt_takes_the_place_of_its_intent(shelf: Shelf) -> None:
    """Redis never holds both, and never neither."""
    one, other = intent(), intent()
    await shelf.admit(one, other)
    assert await shelf.intents() == {one.id, other.id}
    assert await shelf.receipt(one) is None
    receipt = truth(one)
    assert await shelf.settle(receipt) == []
    assert await shelf.intents() == {other.id}
    assert await shelf.receipt(one) == receipt
    assert TTL_S - 5 <= await shelf.redis.ttl(shelf.keys.receipt("acme", one.id)) <= TTL_S


async def test_repeated_entries_change_nothing(shelf: Shelf) -> None:
    """After a lost reply, all is sent again. The first receipt remains."""
    one, other = intent(), intent()
    first = truth(one)
    for _ in range(3):
        await shelf.ann.exchange([candidate(other)], [Settlement(first, None)])
    await shelf.settle(truth(one, "client_gone"))
    assert await shelf.receipt(one) == first
    assert await shelf.intents() == {other.id}


async def test_an_intent_never_comes_after_its_receipt(shelf: Shelf) -> None:
    """A command that was given up may run late. It must not restore an ended request."""
    one = intent()
    await shelf.settle(truth(one))
    await shelf.admit(one)
    assert await shelf.intents() == set()
    assert await shelf.abandon(one) == set()


async def test_one_round_trip_serves_many_tenants(shelf: Shelf) -> None:
    """Each tenant's keys are in their own script call, since they are in different slots of a cluster."""
    intents = [intent(tenant=tenant) for tenant in ("acme", "globex", "initech") for _ in range(3)]
    await shelf.admit(*intents)
    await shelf.settle(*(truth(one) for one in intents[::3]))
    for tenant in ("acme", "globex", "initech"):
        stored = await shelf.intents(tenant=tenant)
        assert stored == {one.id for one in intents if one.tenant == tenant and one not in intents[::3]}
        assert len(stored) == 2


async def test_a_missing_script_is_loaded_again(shelf: Shelf) -> None:
    """After a restart, or a failover to a replica, scripts are missing."""
    one, other = intent(), intent(tenant="globex")
    for intents in ([one], [one, other]):
        await shelf.redis.script_flush()
        await shelf.admit(*intents)
    assert await shelf.intents() == {one.id}
    assert await shelf.intents(tenant="globex") == {other.id}


async def test_intents_of_a_dead_process_are_settled_once(shelf: Shelf) -> None:
    """Exactly one of the callers gets the id."""
    intents = [intent() for _ in range(3)]
    await shelf.admit(*intents)
    assert await shelf.abandon(*intents[:2]) == {one.id for one in intents[:2]}
    assert await shelf.abandon(*intents) == {intents[2].id}
    assert await shelf.abandon(*intents) == set()
    assert [receipt.status for one in intents if (receipt := await shelf.receipt(one))] == ["abandoned"] * 3
    assert await shelf.intents() == set()
    assert await shelf.redis.zcard(shelf.keys.owners("acme")) == 0


async def test_the_truth_replaces_an_abandoned_receipt_and_is_never_replaced(shelf: Shelf) -> None:
    """The process was only taken for dead. It gets the ids of the receipts it replaced."""
    one = intent()
    await shelf.admit(one)
    await shelf.abandon(one)
    first = truth(one)
    assert await shelf.settle(first) == [one.id]
    assert await shelf.receipt(one) == first
    assert await shelf.settle(first) == []
    await shelf.redis.hset(shelf.keys.intents("acme", "ann"), one.id, b"1|1|1\n" + one.to_json())
    assert await shelf.abandon(one) == set()
    assert await shelf.receipt(one) == first
    assert await shelf.intents() == set()


async def test_a_route_named_abandoned_is_not_an_abandoned_receipt(shelf: Shelf) -> None:
    """Text in the receipt does not matter."""
    one = intent()
    first = msgspec.structs.replace(truth(one), route='","status":"abandoned"')
    await shelf.settle(first)
    assert await shelf.settle(truth(one)) == []
    assert await shelf.receipt(one) == first


async def test_dead_processes_have_no_heartbeat_and_no_admission_for_a_lease(shelf: Shelf) -> None:
    """A process without a heartbeat and without admissions for a lease, except the caller itself."""
    await shelf.admit(intent())
    await shelf.admit(intent(tenant="globex"))
    await shelf.admit(intent("bob"), by=shelf.bob)
    tenants = ["acme", "globex", "nobody"]
    assert await shelf.bob.expired_processes(tenants, 60) == []
    assert await shelf.bob.expired_processes(tenants, 0) == [("acme", "ann"), ("globex", "ann")]
    await shelf.redis.set(shelf.keys.heartbeat("ann"), "")
    assert await shelf.bob.expired_processes(tenants, 0) == []


async def test_at_most_the_requested_number_of_intents_is_read(shelf: Shelf) -> None:
    intents = {one.id: one for one in (intent() for _ in range(5))}
    await shelf.admit(*intents.values())
    some = await shelf.bob.intents("acme", "ann", 3)
    assert len(some) == 3
    assert {name: Intent.from_json(raw) for name, raw in some.items()}.items() <= intents.items()
    assert await shelf.bob.intents("acme", "carl", 3) == {}
