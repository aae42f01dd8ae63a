"""Measure how slices divide the requests of one tenant among the primaries of a Redis Cluster, without gateways.

    PYTHONPATH=. python load_tests/tenant_slices.py
    PYTHONPATH=. python load_tests/tenant_slices.py --slices 1,3 --requests 2000

Stores of this process admit requests with limits and budgets of tenant and key, and settle them at once. The cluster
has three primaries with a replica each. The table has the CPU time of each primary, and its calls of the admission
script. Only loopback is used. The run ends by itself.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from gateway.redis.keys import RedisKeys, slice_names
from gateway.redis.slots import slot_of
from load_tests.machine import machine
from tests.accounting.budget_fixture import budget
from tests.accounting.sliced_process import SlicedProcess, sliced_process
from tests.redis_clients import opened_by_url
from tests.redis_groups import NODES, cluster_group

if TYPE_CHECKING:
    from tests.redis_groups import ClusterGroup

_STORES, _CALLERS = 6, 16  # callers of each store
_KEEP_S = 5.0  # as in a gateway
_LIMITS = {"rpm": 10**8, "tpm": 10**9, "parallel": 10**5}
_SCOPES = [msgspec.structs.replace(budget("100000", name=name), **_LIMITS) for name in ("tenant", "key:bench")]

out = Console(width=120, highlight=False)


async def _spread_keys(group: ClusterGroup, slices: int) -> RedisKeys:
    """Return keys with which the slices are on as many primaries as possible."""
    while True:
        keys = RedisKeys(f"s{secrets.token_hex(4)}")
        owners = {(await group.owner(slot_of(keys.tenant_base(name)))).port for name in slice_names("acme", slices)}
        if len(owners) == min(slices, NODES):
            return keys


async def _counters(group: ClusterGroup) -> list[tuple[float, int]]:
    """Return the CPU time in seconds and the script calls of each primary since its start."""
    found = []
    for server in group.servers[:NODES]:
        async with server.client() as redis:
            info = await redis.info("all")
        calls = info.get("cmdstat_evalsha", {}).get("calls", 0)
        found.append((info["used_cpu_user"] + info["used_cpu_sys"], calls))
    return found


async def _call(store: SlicedProcess, requests: int) -> None:
    for _ in range(requests):
        await store.ask(*_SCOPES, usd="0.01")
        store.settle(store.admitted.pop(), "0.005")


async def _measure(group: ClusterGroup, slices: int, requests: int) -> list[str]:
    keys = await _spread_keys(group, slices)
    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(
                sliced_process(group.url, keys, f"store-{number}", slices=slices, keep_s=_KEEP_S)
            )
            for number in range(_STORES)
        ]
        before, began = await _counters(group), time.perf_counter()
        each = requests // (_STORES * _CALLERS)
        await asyncio.gather(*(_call(store, each) for store in stores for _ in range(_CALLERS)))
        if not all([await store.store.flush() for store in stores]):
            raise RuntimeError("Redis did not store all receipts: run the measurement again")
        seconds = time.perf_counter() - began
        used = [(now[0] - then[0], now[1] - then[1]) for then, now in zip(before, await _counters(group), strict=True)]
    nodes = [f"{cpu_s:.2f} s, {calls}" for cpu_s, calls in used]
    return [
        str(slices),
        f"{each * _STORES * _CALLERS / seconds:.0f}",
        *nodes,
        f"{sum(cpu_s for cpu_s, _ in used):.2f} s",
    ]


async def _run(slices: list[int], requests: int) -> None:
    table = Table("slices", "requests/s", *(f"primary {number}" for number in range(1, NODES + 1)), "all")
    async with cluster_group() as group:
        with opened_by_url():
            for number in slices:
                table.add_row(*await _measure(group, number, requests))
    out.print(machine())
    out.print(table)


def main(
    slices: Annotated[str, typer.Option(help="Numbers of slices, with commas. A number may occur twice.")] = "1,3,1,3",
    requests: Annotated[int, typer.Option(min=96, help="Requests of each row.")] = 9600,
) -> None:
    """Measure each number of slices."""
    asyncio.run(_run([int(number) for number in slices.split(",")], requests))


if __name__ == "__main__":
    typer.run(main)
