"""The topology of a cluster records the time since which a node serves a slot."""

from __future__ import annotations

import asyncio
import math

import pytest

from gateway.redis.slots import SLOTS, slot_of
from gateway.redis.topology import Topology

FIRST, SECOND = "192.0.2.1:6379", "192.0.2.2:6379"
HALF = SLOTS // 2
KEY = next(key for key in map(str, range(100)) if slot_of(key) < HALF)
OTHER = next(key for key in map(str, range(100)) if slot_of(key) >= HALF)
DIVIDED = [(0, HALF - 1, [FIRST]), (HALF, SLOTS - 1, [SECOND])]


@pytest.mark.parametrize("failed", [True, False])
async def test_slots_of_a_failed_node_are_new_to_the_node_that_gets_them(failed: bool) -> None:
    """A slot that is moved with its keys, from a node that works, has all its writes."""
    topology = Topology([FIRST], NotImplemented)
    topology._replace([(1, DIVIDED)])
    before = topology.up_since(KEY)
    if failed:
        topology.down.add(FIRST)
        assert topology.up_since(KEY) == math.inf
    while (now := asyncio.get_running_loop().time()) <= before:
        await asyncio.sleep(0)
    topology._replace([(2, [(0, SLOTS - 1, [SECOND])])])
    assert topology.is_up(KEY)
    assert (topology.up_since(KEY) >= now) is failed
    assert topology.up_since(OTHER) == before
