"""The failure of a shard of a real cluster does not affect tenants on other nodes. Each receipt is stored once."""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest
import pytest_asyncio
from redis.exceptions import RedisError

from gateway.accounting.spool import Spool, SpoolEntry
from gateway.redis.keys import RedisKeys
from gateway.redis.slots import slot_of
from gateway.runtime.tasks import BackgroundTasks
from tests.accounting.receipt_builders import closed, guided, intent
from tests.accounting.test_intent_reaper import LEASE_S, die, process
from tests.accounting.test_spool import a_process, in_redis
from tests.batching.process import until
from tests.redis.test_cluster import uncover
from tests.redis_clients import opened_by_url
from tests.redis_groups import cluster_group

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from gateway.accounting.receipt import Receipt
    from tests.accounting.test_intent_reaper import Process
    from tests.redis_groups import ClusterGroup

pytestmark = [pytest.mark.long, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def group() -> AsyncIterator[ClusterGroup]:
    async with cluster_group() as running:
        yield running


@pytest.fixture(autouse=True)
def _clusters_by_url() -> Iterator[None]:
    with opened_by_url():
        yield


async def keys_on_nodes(group: ClusterGroup) -> RedisKeys:
    """Return keys with the tenant acme and the heartbeat of ann on one node, and all else on other nodes."""
    await until(group.is_ready, 60)
    owners = await group.owner_ports()
    while True:
        keys = RedisKeys(f"t{secrets.token_hex(4)}")
        failing = {owners[slot_of(key)] for key in (keys.tenant_base("acme"), keys.heartbeat("ann"))}
        others = [keys.tenant_base("globex"), keys.ledger_base, *map(keys.heartbeat, ("bob", "dave"))]
        if len(failing) == 1 and not failing & {owners[slot_of(key)] for key in others}:
            return keys


@asynccontextmanager
async def stopped_shard(group: ClusterGroup, key: str) -> AsyncIterator[None]:
    """Stop the primary of a key and its replica, inside the block."""
    primary = await group.owner(slot_of(key))
    stopped = [primary, *await group.replicas(primary)]
    assert len(stopped) == 2
    for server in stopped:
        server.send(signal.SIGSTOP)
    try:
        yield
    finally:
        for server in stopped:
            server.send(signal.SIGCONT)


def receipts(tenant: str, count: int) -> list[Receipt]:
    return [msgspec.structs.replace(closed(guided()), tenant=tenant) for _ in range(count)]


def ids(*found: list[Receipt]) -> list[str]:
    return sorted(one.id for some in found for one in some)


async def until_stored(group: ClusterGroup, keys: RedisKeys, *expected: list[Receipt]) -> None:
    """Wait until Redis has a receipt and an outbox entry for each of these receipts, and no others.

    A node that was stopped may fail over after it accepted receipts. The process sends lost receipts again.
    """

    async def stored() -> tuple[list[str], list[str]]:
        (names, of_acme), (_, of_globex) = [await in_redis(group.url, keys, tenant) for tenant in ("acme", "globex")]
        return names, sorted(of_acme + of_globex)

    async def is_stored() -> bool:
        return await stored() == (ids(*expected), ids(*expected))

    try:
        await until(is_stored, 20)
    except AssertionError:
        assert await stored() == (ids(*expected), ids(*expected))
        raise


async def swept(part: Process) -> int:
    """Run a round of a process's reaper, as its task does. Return the number of settled requests."""
    try:
        return await part.sweeper.sweep()
    except (RedisError, OSError) as error:
        part.client.failed(error)
        return 0


async def test_no_living_process_is_declared_dead_after_the_outage_of_its_node(group: ClusterGroup) -> None:
    """The node of the tenant and of the heartbeat hangs for longer than a lease. The process renews both later."""
    keys = await keys_on_nodes(group)
    base = keys.tenant_base("acme")
    async with (
        process(group.url, keys, "ann", sweeps=False, beats=False, timeout_s=2) as ann,
        process(group.url, keys, "bob", sweeps=False, timeout_s=2) as bob,
    ):
        beating, later = BackgroundTasks(), BackgroundTasks()
        beating.keep("heartbeat", ann.heartbeat.run())
        await ann.admit(one := intent())
        await until(lambda: ann.redis.hexists(keys.intents("acme", "ann"), one.id))
        await beating.close()  # first, because a stopped server executes a buffered heartbeat when it continues
        async with stopped_shard(group, base):
            await until(lambda: not bob.client.is_up(base), 20)
            await asyncio.sleep(2 * LEASE_S)
        await until(lambda: bob.client.is_up(base), 20)
        assert await bob.sweeper.sweep() == 0
        later.keep("heartbeat", ann.heartbeat.run())
        await asyncio.sleep(2 * LEASE_S)
        assert await bob.sweeper.sweep() == 0
        assert await bob.receipts() == []
        await later.close()
        await until(lambda: swept(bob), 20)
        assert ids(await bob.receipts()) == [one.id]


async def test_requests_of_dead_processes_on_other_nodes_are_settled_meanwhile(group: ClusterGroup) -> None:
    """The heartbeat of another process is on the failed node, so the requests of that process stay."""
    keys = await keys_on_nodes(group)
    await die(group.url, keys, "dave", [of_dave := intent("dave", tenant="globex")])
    await die(group.url, keys, "ann", [of_ann := intent("ann", tenant="globex")])
    async with process(group.url, keys, "bob", sweeps=False, timeout_s=2) as bob:
        await until(lambda: bob.client.up_since(keys.tenant_base("acme")) < math.inf)
        async with stopped_shard(group, keys.tenant_base("acme")):
            await until(lambda: not bob.client.is_up(keys.tenant_base("acme")), 20)
            await asyncio.sleep(1.5 * LEASE_S)
            await until(lambda: swept(bob), 20)
            exists = [await bob.redis.exists(keys.receipt("globex", one.id)) for one in (of_dave, of_ann)]
            assert exists == [1, 0]
        await until(lambda: swept(bob), 20)
        assert ids(await bob.receipts("globex")) == sorted([of_dave.id, of_ann.id])


async def test_receipts_of_dead_processes_for_other_nodes_are_sent_once(group: ClusterGroup, tmp_path: Path) -> None:
    """The file has receipts for a failed node and for another one. Those for the failed node wait for it."""
    keys = await keys_on_nodes(group)
    base = keys.tenant_base("acme")
    waiting, others = receipts("acme", 6), receipts("globex", 6)
    lines = [SpoolEntry("ann", one).to_line() for pair in zip(waiting, others, strict=True) for one in pair]
    often = {"orphans_interval_s": 0.1, "send_batch": 4}
    async with a_process(group.url, tmp_path, "bob", keys, **often) as bob:
        async with stopped_shard(group, base):
            await until(lambda: not bob.client.is_up(base), 20)
            spool = Spool.create(tmp_path / "ann.jsonl")
            spool.append([*lines, b'{"owner": "ann", "receipt": {"id": "of-2030"}}\n'], 1_000_000)
            spool.close(remove=False)
            await until(lambda: bob.value("gkt_spool_replayed_total", spool="dead") == 6, 20)
            more = receipts("globex", 1)
            spool = Spool.create(tmp_path / "carl.jsonl")  # of the next round
            spool.append([SpoolEntry("carl", one).to_line() for one in more], 1_000_000)
            spool.close(remove=False)
            await until(lambda: bob.value("gkt_spool_replayed_total", spool="dead") == 7, 20)
            unsent = [line for line in (tmp_path / "ann.jsonl").read_bytes().splitlines() if line.startswith(b"{")]
            assert sorted(json.loads(line)["receipt"]["id"] for line in unsent) == sorted([*ids(waiting), "of-2030"])
        await until((tmp_path / "ann.unreadable").exists, 20)
        assert bob.value("gkt_spool_replayed_total", spool="dead") == 13
        await until_stored(group, keys, waiting, others, more)


async def test_only_receipts_for_the_failed_node_go_to_the_spool(group: ClusterGroup, tmp_path: Path) -> None:
    keys = await keys_on_nodes(group)
    base = keys.tenant_base("acme")
    async with a_process(group.url, tmp_path, "ann", keys, max_waiting=5) as ann:
        waiting, others = receipts("acme", 10), receipts("globex", 40)
        async with stopped_shard(group, base):
            await until(lambda: not ann.client.is_up(base), 20)
            for start in range(0, 10, 5):
                for one in waiting[start : start + 5]:
                    ann.store.put(one)
                await until(lambda start=start: ann.value("gkt_spool_receipts") == start + 5, 20)
            for one in others:
                ann.store.put(one)
                await until(lambda one=one: not ann.store.holds(one.id), 20)
            assert sorted(ann.lines()) == ids(waiting)
        await until(lambda: ann.value("gkt_spool_receipts") == 0 and ann.value("gkt_receipts_waiting") == 0, 20)
        await until_stored(group, keys, waiting, others)
        assert ann.value("gkt_receipts_lost_total") == 0


async def test_spooled_receipts_for_other_nodes_are_sent_meanwhile(group: ClusterGroup, tmp_path: Path) -> None:
    """All nodes failed, and memory had no room for all receipts. One shard returns later than the others."""
    keys = await keys_on_nodes(group)
    base = keys.tenant_base("acme")
    waiting, others = receipts("acme", 10), receipts("globex", 10)
    async with a_process(group.url, tmp_path, "ann", keys, max_waiting=5) as ann:
        async with stopped_shard(group, base):
            async with stopped_shard(group, keys.tenant_base("globex")):
                await until(lambda: not any(map(ann.client.is_up, [base, keys.tenant_base("globex")])), 20)
                for number, some in enumerate((others[:5], others[5:], waiting[:5], waiting[5:]), 1):
                    for one in some:
                        ann.store.put(one)
                    await until(lambda number=number: ann.value("gkt_spool_receipts") == 5 * number, 20)
            await until(lambda: not any(ann.store.holds(one.id) for one in others), 30)
            assert not ann.client.is_up(base)
            assert ann.value("gkt_spool_replayed_total", spool="own") == 10
        await until(lambda: ann.value("gkt_spool_receipts") == 0 and ann.value("gkt_receipts_waiting") == 0, 20)
        await until_stored(group, keys, waiting, others)
        assert ann.value("gkt_receipts_lost_total") == 0


async def test_receipts_of_a_slot_without_a_node_are_spooled(group: ClusterGroup, tmp_path: Path) -> None:
    keys = await keys_on_nodes(group)
    slot = slot_of(keys.tenant_base("acme"))
    owner = await group.owner(slot)
    async with a_process(group.url, tmp_path, "ann", keys) as ann:
        await uncover(group, owner, slot)
        try:
            await until(lambda: not ann.client.is_whole, 20)
            (one,) = receipts("acme", 1)
            ann.store.put(one)
            await until(lambda: ann.value("gkt_spool_receipts") == 1, 20)
        finally:
            await group.run(owner, "CLUSTER", "ADDSLOTS", slot)
        await until(lambda: ann.value("gkt_spool_receipts") == 0 and ann.value("gkt_receipts_waiting") == 0, 20)
        await until_stored(group, keys, [one])


async def test_receipts_that_a_full_node_rejects_do_not_delay_those_of_other_tenants(
    group: ClusterGroup, tmp_path: Path
) -> None:
    """The rejected receipts are older, and more than fit in an exchange."""
    keys = await keys_on_nodes(group)
    full = await group.owner(slot_of(keys.tenant_base("acme")))
    async with a_process(group.url, tmp_path, "ann", keys) as ann:
        rejected, others = receipts("acme", 300), receipts("globex", 300)
        await group.run(full, "CONFIG", "SET", "maxmemory", "1")
        try:
            for one in rejected:
                ann.store.put(one)
            await until(lambda: ann.value("gkt_spool_receipts") == 300, 20)
            for one in others:
                ann.store.put(one)
                await asyncio.sleep(0)
            await until(lambda: not any(ann.store.holds(one.id) for one in others), 20)
            more = receipts("acme", 5)
            for one in (*more, *(latest := receipts("globex", 5))):
                ann.store.put(one)
            await until(lambda: ann.value("gkt_spool_receipts") == 305, 20)
            assert sorted(ann.lines()) == ids(rejected, more)
        finally:
            await group.run(full, "CONFIG", "SET", "maxmemory", "0")
        await until(lambda: ann.value("gkt_spool_receipts") == 0 and ann.value("gkt_receipts_waiting") == 0, 20)
        await until_stored(group, keys, rejected, more, others, latest)
        assert ann.value("gkt_receipts_lost_total") == 0
