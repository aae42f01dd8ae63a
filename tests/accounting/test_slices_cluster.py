"""On a real cluster, a failed node affects only the slices on it."""

from __future__ import annotations

import asyncio
import secrets
import signal
from typing import TYPE_CHECKING

import msgspec
import pytest

from gateway.accounting.receipt import Receipt
from gateway.redis.keys import RedisKeys, slice_names
from gateway.redis.slots import slot_of
from tests.accounting.budget_fixture import budget
from tests.accounting.sliced_process import SLICES, sliced_process
from tests.redis_clients import opened_by_url
from tests.redis_groups import cluster_group, until

if TYPE_CHECKING:
    from tests.accounting.sliced_process import SlicedProcess
    from tests.redis_groups import ClusterGroup

pytestmark = [pytest.mark.process, pytest.mark.long, pytest.mark.timeout(240)]


async def test_requests_continue_while_the_node_of_a_slice_fails() -> None:
    """The other slices admit their parts of limits and budgets. The receipts of the failed node wait for it."""
    async with cluster_group() as group:
        keys, ports = await spread_keys(group)
        scope = msgspec.structs.replace(budget("4"), rpm=400)
        with opened_by_url():
            async with sliced_process(group.url, keys, timeout_s=1.0) as ann:
                await ann.client.require()
                await asyncio.gather(*(ann.ask(scope, usd="0.01") for _ in range(40)))
                before = await ann.intents()
                assert all(before)
                victim = group.at(ports[-1])
                failed = [number for number, port in enumerate(ports) if port == victim.port]
                stopped = [victim, *await group.replicas(victim)]
                for server in stopped:
                    server.send(signal.SIGSTOP)
                await until(lambda: is_down(ann, failed))
                during = [await ann.ask(scope, usd="0.01") for _ in range(40)]
                assert all(verdict is not None and verdict.refusal is None for verdict in during)
                assert ann.metrics.registry.get_sample_value(
                    "gkt_local_admissions_total", {"tenant": "acme", "outcome": "admitted"}
                ) in {None, 0.0}
                receipts = {one.id: ann.settle(one, "0.01") for one in ann.admitted}
                await ann.ask_until_refused(scope, usd="0.9")
                for server in stopped:
                    server.send(signal.SIGCONT)
                await until(group.is_ready)
                await until(lambda: whole(ann))
                assert await ann.store.flush()
                spent, reserved = await ann.spent(scope)
                assert (spent, spent + reserved <= 4) == (sum(one.cost_usd for one in receipts.values()), True)
                found = [Receipt.from_json(await ann.store.get("acme", one) or b"") for one in receipts]
                assert found == list(receipts.values())
                lengths = [await ann.redis.xlen(keys.outbox(name)) for name in slice_names("acme", SLICES)]
                assert sum(lengths) == len(receipts)
                assert all(lengths[number] == len(before[number]) for number in failed)


async def spread_keys(group: ClusterGroup) -> tuple[RedisKeys, list[int]]:
    """Return keys with which the slices are on several primaries, and the port of each slice. The primary of the
    last slice has neither the first slice nor the set of all tenants."""
    while True:
        keys = RedisKeys(f"t{secrets.token_hex(6)}")
        names = [keys.ledger_base, *(keys.tenant_base(name) for name in slice_names("acme", SLICES))]
        ledger, *ports = [(await group.owner(slot_of(name))).port for name in names]
        if ports[-1] not in {ledger, ports[0]}:
            return keys, ports


async def is_down(ann: SlicedProcess, failed: list[int]) -> bool:
    names = slice_names("acme", SLICES)
    return not any(ann.store.is_up(names[number]) for number in failed)


async def whole(ann: SlicedProcess) -> bool:
    return ann.client.is_whole and not ann.store.is_blocked
