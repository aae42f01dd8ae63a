"""A master of Redis Sentinel and nodes of a Redis Cluster fail under load.

Each answered request has one receipt in the end, and budgets are kept. Each test prints its counts (`pytest -rP`, or
`-s`).
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from redis.exceptions import RedisError

from gateway.accounting.local_limits import KNOWN_AFTER_S
from gateway.redis.keys import RedisKeys, slice_name, slice_names
from gateway.redis.slots import slot_of
from tests.gateway_process import KEY, OTHER_KEY
from tests.redis_groups import cluster_group, sentinel_group, until
from tests.system.test_budgets_under_faults import CALLERS, EACH_USD, Load, counted, ready
from tests.usage.crash_world import open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.gateway_process import GatewayProcess
    from tests.redis_groups import ClusterGroup, RedisServer
    from tests.usage.crash_world import World

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

TENANTS = {"acme": KEY, "globex": OTHER_KEY}
SLICES = 4


@asynccontextmanager
async def timed_outages(processes: list[GatewayProcess]) -> AsyncIterator[list[float]]:
    """Measure how long Redis was down for some process inside the block, in seconds."""
    found, ended = [0.0], asyncio.Event()

    async def sample() -> None:
        last = time.monotonic()
        async with httpx.AsyncClient(timeout=10) as client:
            while not ended.is_set():
                states = [(await client.get(f"{one.admin_url}/readyz")).json()["redis"] for one in processes]
                now = time.monotonic()
                found[0] += (now - last) * any(not one["up"] or one["problems"] for one in states)
                last = now
                await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as group:
        group.create_task(sample())
        try:
            yield found
        finally:
            ended.set()


async def test_a_killed_master_loses_no_receipt(tmp_path: Path) -> None:
    """The master is killed twice. The other server takes over, and the killed one returns as its replica."""
    async with sentinel_group() as group, open_world(tmp_path, redis_url=group.url) as world:
        for _ in range(2):
            await world.add_gateway()
        async with world.under_load(), timed_outages(world.gateways) as down:
            await world.answer(50)
            for _ in range(2):
                before = await group.master()
                await before.kill()
                await until(lambda: group.has_moved(before))  # noqa: B023
                await world.answer(50)
                await before.start()
                await until(lambda: group.follows(before))  # noqa: B023
            await world.answer(50)
        resent = int(world.figure("gkt_receipts_resent_total"))
        await world.accounted(killed="the master, twice", resent=resent, down_s=round(down[0], 1), **facts(world))
        assert resent > 0


async def test_a_stopped_master_that_continues_gets_no_writes(tmp_path: Path) -> None:
    """The master hangs until another one is elected. It continues as a master for a moment, and is demoted."""
    async with sentinel_group() as group, open_world(tmp_path, redis_url=group.url) as world:
        await world.add_gateway()
        async with world.under_load(), timed_outages(world.gateways) as down:
            await world.answer(50)
            before = await group.master()
            before.send(signal.SIGSTOP)
            await until(lambda: group.has_moved(before))
            await world.answer(50)
            before.send(signal.SIGCONT)
            await until(lambda: group.follows(before))
            await world.answer(50)
        await world.accounted(stopped="the master", down_s=round(down[0], 1), **facts(world))


async def test_a_killed_master_does_not_exceed_a_budget(tmp_path: Path) -> None:
    async with sentinel_group() as group, fleet(tmp_path, group.url, "0.03") as (load, processes):
        await asyncio.sleep(KNOWN_AFTER_S + 1)
        async with load.running(), timed_outages(processes) as down:
            await load_begun(load)
            before, spent_usd = await group.master(), load.spent_usd
            await before.kill()
            await until(lambda: group.has_moved(before))
            during_usd = load.spent_usd - spent_usd
            await until(lambda: is_spent(load, processes), 120)
        print_budget(load, processes, during_usd=during_usd, down_s=round(down[0], 1))
        # A request that was under way counts twice at most: in Redis, and in the part of its process.
        assert load.spent_usd <= load.budget_usd + CALLERS * EACH_USD


async def test_a_killed_primary_and_moving_slots_lose_no_receipt(tmp_path: Path) -> None:
    """Primary nodes are killed one after the other. The slots of both tenants move twice."""
    async with cluster_group() as group:
        prefix = await spread_prefix(group)
        async with open_world(tmp_path, redis_url=group.url, prefix=prefix) as world:
            for _ in range(2):
                await world.add_gateway()
            async with (
                world.under_load(2, KEY),
                world.under_load(2, OTHER_KEY),
                timed_outages(world.gateways) as down,
            ):
                await world.answer(50)
                for victim in group.servers[:2]:
                    await victim.kill()
                    await until(lambda: has_new_owner(group, victim))  # noqa: B023
                    await world.answer(50)
                    await victim.start()
                    await until(group.is_ready)
                for tenant in TENANTS:
                    slot = slot_of(world.keys.tenant_base(tenant))
                    for _ in range(2):
                        source = await group.owner(slot)
                        ports = [port for port in await group.primaries() if port != source.port]
                        target = group.at(secrets.choice(ports))
                        await group.begin_move(slot, target)
                        await world.answer(10)
                        await group.end_move(slot, source, target)
                        await world.answer(20)
            resent = int(world.figure("gkt_receipts_resent_total"))
            await world.accounted(
                killed="2 primaries", moved="2 slots, twice", resent=resent, down_s=round(down[0], 1), **facts(world)
            )
            assert resent > 0


async def test_a_stopped_shard_does_not_stop_other_tenants(tmp_path: Path) -> None:
    """Primary and replica of one tenant's slot hang for ten seconds. The other tenant's limits are those of Redis."""
    async with cluster_group() as group:
        prefix = await spread_prefix(group)
        async with open_world(tmp_path, redis_url=group.url, prefix=prefix) as world:
            process = await world.add_gateway()
            async with world.under_load(2, KEY), world.under_load(2, OTHER_KEY):
                await world.answer(50)
                victim = await group.owner(slot_of(world.keys.tenant_base("acme")))
                stopped = [victim, *await group.replicas(victim)]
                for server in stopped:
                    server.send(signal.SIGSTOP)
                await until(lambda: names_problem(process, victim))
                before = local_admissions(process)
                state = await readyz(process)
                await asyncio.sleep(10)
                answered = len(world.answered)
                await world.answer(50)
                after = local_admissions(process)
                for server in stopped:
                    server.send(signal.SIGCONT)
                await until(group.is_ready)
                await world.answer(50)
            assert state["status"] == "degraded"
            assert state["redis"]["up"]
            assert after["acme"] > before["acme"]
            assert after["globex"] == before["globex"]
            grown = {tenant: int(after[tenant] - before[tenant]) for tenant in TENANTS}
            await world.accounted(stopped="a shard", local_by_tenant=grown, answered_meanwhile=answered, **facts(world))


async def test_a_tenant_with_slices_continues_without_one_of_them(tmp_path: Path) -> None:
    """The shard of a slice hangs for ten seconds. The other slices admit all requests, with the limits of Redis."""
    async with cluster_group() as group:
        prefix, number = await sliced_prefix(group)
        async with open_world(tmp_path, redis_url=group.url, prefix=prefix) as world:
            world.tenants["acme"] = world.tenants["acme"] | {"redis_slices": SLICES}
            processes = [await world.add_gateway() for _ in range(2)]
            async with world.under_load(4, KEY):
                await world.answer(100)
                victim = await group.owner(slot_of(world.keys.tenant_base(slice_name("acme", number))))
                stopped = [victim, *await group.replicas(victim)]
                for server in stopped:
                    server.send(signal.SIGSTOP)
                for process in processes:
                    await until(lambda: names_problem(process, victim))  # noqa: B023
                before = sum(local_admissions(process)["acme"] for process in processes)
                answered = len(world.answered)
                await asyncio.sleep(10)
                during = len(world.answered) - answered
                after = sum(local_admissions(process)["acme"] for process in processes)
                for server in stopped:
                    server.send(signal.SIGCONT)
                await until(group.is_ready)
                await world.answer(100)
            outboxes = [world.keys.outbox(name) for name in slice_names("acme", SLICES)]
            existing = [name for name in outboxes if await world.redis.exists(name)]
            added = [(await world.redis.xinfo_stream(name))["entries-added"] for name in existing]
            await world.accounted(stopped="a slice", answered_meanwhile=during, by_slice=added, **facts(world))
            assert during > 0
            assert after == before
            assert len(added) > 1


async def test_a_killed_primary_and_a_stopped_shard_do_not_exceed_budgets(tmp_path: Path) -> None:
    async with cluster_group() as group:
        prefix = await spread_prefix(group)
        async with fleet(tmp_path, group.url, "0.03", prefix=prefix, keys=TENANTS) as (load, processes):
            await asyncio.sleep(KNOWN_AFTER_S + 1)
            async with load.running(), timed_outages(processes) as down:
                await load_begun(load)
                victim = await group.owner(slot_of(RedisKeys(prefix).tenant_base("acme")))
                await victim.kill()
                await until(lambda: has_new_owner(group, victim))
                await victim.start()
                await until(group.is_ready)
                victim = await group.owner(slot_of(RedisKeys(prefix).tenant_base("globex")))
                stopped = [victim, *await group.replicas(victim)]
                for server in stopped:
                    server.send(signal.SIGSTOP)
                await asyncio.sleep(10)
                for server in stopped:
                    server.send(signal.SIGCONT)
                await until(group.is_ready)
                await until(lambda: is_spent(load, processes), 120)
            print_budget(load, processes, down_s=round(down[0], 1))
            for tenant in TENANTS:
                assert load.spent_by(tenant) <= load.budget_usd + CALLERS * EACH_USD


@asynccontextmanager
async def fleet(
    folder: Path, redis_url: str, max_usd: str, *, prefix: str | None = None, keys: dict[str, str] | None = None
) -> AsyncIterator[tuple[Load, list[GatewayProcess]]]:
    """Run two gateways before one engine."""
    load = Load(folder, redis_url, max_usd, keys, prefix=prefix)
    with ExitStack() as stack:
        stack.enter_context(load.engine.running())
        processes = [load.process(f"p{number}") for number in range(2)]
        for process in processes:
            stack.callback(process.close)
        await asyncio.gather(*(asyncio.to_thread(process.start) for process in processes))
        for process in processes:
            await ready(process.url)
        load.urls = [process.url for process in processes]
        yield load, processes


async def spread_prefix(group: ClusterGroup) -> str:
    """Return a prefix with which both tenants and the set of all tenants are on three primaries."""
    owners = await group.owner_ports()
    while True:
        keys = RedisKeys(f"a{secrets.token_hex(4)}")
        names = [keys.tenant_base("acme"), keys.tenant_base("globex"), keys.ledger_base]
        if len({owners[slot_of(name)] for name in names}) == len(names):
            return keys.prefix


async def sliced_prefix(group: ClusterGroup) -> tuple[str, int]:
    """Return a prefix with which the slices of a tenant are on several primaries, and the number of a slice.

    The primary of that slice has neither the first slice nor the set of all tenants.
    """
    while True:
        keys = RedisKeys(f"a{secrets.token_hex(4)}")
        names = [keys.ledger_base, *(keys.tenant_base(name) for name in slice_names("acme", SLICES))]
        busy, first, *others = [(await group.owner(slot_of(name))).port for name in names]
        for number, port in enumerate(others, 1):
            if port not in {busy, first}:
                return keys.prefix, number


async def has_new_owner(group: ClusterGroup, victim: RedisServer) -> bool:
    """Return whether the other nodes have replaced a node, and serve all slots."""
    for server in group.servers:
        if server is victim:
            continue
        try:
            primaries = await group.primaries(server)
        except (RedisError, OSError):
            return False
        if victim.port in primaries or len(primaries) < 3:
            return False
    return True


def local_admissions(process: GatewayProcess) -> dict[str, float]:
    return {tenant: counted(process, "gkt_local_admissions_total", tenant=tenant) for tenant in TENANTS}


async def names_problem(process: GatewayProcess, server: RedisServer) -> bool:
    return any(str(server.port) in problem for problem in (await readyz(process))["redis"]["problems"])


async def readyz(process: GatewayProcess) -> dict[str, Any]:
    async with httpx.AsyncClient() as client:
        body: dict[str, Any] = (await client.get(f"{process.admin_url}/readyz")).json()
        return body


async def load_begun(load: Load) -> None:
    async def begun() -> bool:
        return load.spent_usd > load.budget_usd / 20

    await until(begun)


async def is_spent(load: Load, processes: list[GatewayProcess]) -> bool:
    """Return whether most of each budget is spent, and Redis rejects requests for the rest."""

    def rejected(tenant: str) -> bool:
        return any(counted(one, "gkt_limited_total", limit="budget", tenant=tenant) for one in processes)

    spent = all(map(load.has_spent_most, load.tenants))
    return spent and all([await asyncio.to_thread(rejected, tenant) for tenant in load.tenants])


def print_budget(load: Load, processes: list[GatewayProcess], **more: object) -> None:
    local = {
        outcome: int(sum(counted(one, "gkt_local_admissions_total", outcome=outcome) for one in processes))
        for outcome in ("admitted", "budget")
    }
    spent = {tenant: str(load.spent_by(tenant)) for tenant in load.tenants}
    print(f"budget {load.budget_usd} USD, spent {spent}, decided without Redis {local}, {more}")


def facts(world: World) -> dict[str, object]:
    return {"refused": dict(world.refused), "local": int(world.figure("gkt_local_admissions_total"))}
