"""The primaries of a Redis Cluster and their hash slots."""

from __future__ import annotations

import asyncio
import math
import random
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from gateway.redis.slots import SLOTS, slot_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from redis.asyncio import Redis

_REFRESH_EVERY_S = 5.0
_ASKED_AT_ONCE = 3
_MAX_RANGES = 10


class NodeDown(RedisConnectionError):
    """The node of a slot failed, and has not answered the watch since."""


class SlotNotServed(RedisConnectionError):
    """No known node serves a slot."""


class NotACluster(RedisConnectionError):
    """A server has cluster mode disabled."""


class Topology:
    """The owner of each slot, as `host:port`. Clients share one topology.

    Args:
        seeds: nodes to ask first, until the cluster has named its nodes.
        connect: returns the client of a node.

    Attributes:
        down: nodes that failed. Commands for them fail at once.
        stale: whether a failure or a redirection indicates a change.
        unserved: ranges of slots without an owner; empty before the first refresh.
    """

    def __init__(self, seeds: Sequence[str], connect: Callable[[str], Redis]) -> None:
        self._seeds, self._connect = list(seeds), connect
        self._owners: list[str | None] = [None] * SLOTS
        self._nodes: list[str] = []  # primaries and replicas
        self.primaries: list[str] = []
        self.down: set[str] = set()
        self.stale = True
        self.unserved: list[tuple[int, int]] = []
        self._up_since: dict[str, float] = {}  # of primaries
        self._served_since: dict[int, float] = {}  # of slots that had no owner, or one that failed
        self._refreshed_at = 0.0
        self._refreshing = asyncio.Lock()

    async def owner(self, slot: int | None) -> str:
        """Return the primary of a slot, or any primary for None. Raises NodeDown, SlotNotServed and RedisError."""
        if not self.primaries:
            await self.refresh()
        if slot is None:
            if not set(self.primaries) - self.down:
                raise NodeDown("no primary answers")
            return self.any_node()
        owner = self._owners[slot]
        if owner is None:
            self.stale = True
            raise SlotNotServed(f"no node serves slot {slot}")
        if owner in self.down:
            raise NodeDown(f"{owner} does not answer")
        return owner

    def any_node(self) -> str:
        """Return a random primary, if possible one that has not failed."""
        up = [node for node in self.primaries if node not in self.down]
        return random.choice(up or self.primaries or self._seeds)  # noqa: S311

    def is_up(self, key: str) -> bool:
        """Return whether the node of a key is known and has not failed; True before the first refresh."""
        if not self.primaries:
            return True
        owner = self._owners[slot_of(key)]
        return owner is not None and owner not in self.down

    def up_since(self, key: str) -> float:
        """Return the loop time since which the node of a key is known and has not failed; infinity if it has."""
        slot = slot_of(key)
        owner = self._owners[slot]
        if owner is None or owner in self.down:
            return math.inf
        return max(self._up_since[owner], self._served_since.get(slot, -math.inf))

    def recover(self, node: str) -> None:
        """Send commands to a node again."""
        if node in self.down:
            self.down.discard(node)
            self._up_since[node] = asyncio.get_running_loop().time()

    def move(self, slot: int, node: str) -> None:
        """Store a new owner of a slot, which another node named."""
        if self._owners[slot] != node:
            owners = self._owners.copy()
            owners[slot], self.stale = node, True
            self._use(owners, [*dict.fromkeys([*self.primaries, node])])

    @property
    def is_due(self) -> bool:
        return self.stale or asyncio.get_running_loop().time() > self._refreshed_at + _REFRESH_EVERY_S

    async def refresh(self) -> None:
        """Read the slots again. Raises RedisError and OSError if no node answers.

        Several nodes are asked, since one that is cut off from the others may still name itself.
        """
        asked_at = asyncio.get_running_loop().time()
        async with self._refreshing:
            if self._refreshed_at >= asked_at:
                return
            self.stale = False
            try:
                self._replace(await self._read())
            except BaseException:
                self.stale = True
                raise
            self._refreshed_at = asyncio.get_running_loop().time()

    async def _read(self) -> list[tuple[int, list[Any]]]:
        """Return the slots as nodes report them, each with the epoch of the node's view."""
        error: Exception = RedisConnectionError("no node answers")
        known = [node for node in self._nodes if node not in self.down]
        random.shuffle(known)
        candidates = [*dict.fromkeys([*known, *self._seeds, *self._nodes])]
        for start in range(0, len(candidates), _ASKED_AT_ONCE):
            batch = candidates[start : start + _ASKED_AT_ONCE]
            views: list[tuple[int, list[Any]]] = []
            for reply in await asyncio.gather(*map(self._ask, batch), return_exceptions=True):
                if isinstance(reply, tuple):
                    views.append(reply)
                elif isinstance(reply, Exception):
                    error = reply
                else:
                    raise reply
            if views:
                return views
        raise error

    async def _ask(self, node: str) -> tuple[int, list[Any]]:
        host = node.rpartition(":")[0]
        async with self._connect(node).pipeline(transaction=False) as pipe:
            pipe.execute_command("CLUSTER INFO")
            pipe.execute_command("CLUSTER SLOTS")
            info, slots = await pipe.execute(raise_on_error=False)
        for reply in (info, slots):
            if isinstance(reply, ResponseError):
                if "cluster support disabled" in str(reply):
                    raise NotACluster(f"{node} has cluster mode disabled")
                raise reply
        epoch = int(cluster_info(info).get("cluster_current_epoch", 0))
        return epoch, [(*map(int, one[:2]), [node_address(host, server) for server in one[2:]]) for one in slots]

    def _replace(self, views: Iterable[tuple[int, list[Any]]]) -> None:
        owners: list[str | None] = [None] * SLOTS
        nodes: dict[str, None] = {}
        primaries: dict[str, None] = {}
        for _, ranges in sorted(views, key=lambda view: view[0]):  # the newest view replaces the others
            for first, last, servers in ranges:
                owners[first : last + 1] = [servers[0]] * (last + 1 - first)
                nodes |= dict.fromkeys(servers)
        for owner in owners:
            if owner is not None:
                primaries[owner] = None
        self._nodes = list(nodes)
        self._use(owners, list(primaries))
        self.down &= set(primaries)

    def _use(self, owners: list[str | None], primaries: list[str]) -> None:
        now = asyncio.get_running_loop().time()
        for first, last in self.unserved:
            self._served_since |= {slot: now for slot in range(first, last + 1) if owners[slot] is not None}
        if self.down:  # an operator may have assigned slots of a failed node to another one
            moved = zip(range(SLOTS), self._owners, owners, strict=True)
            self._served_since |= {
                slot: now for slot, before, owner in moved if before in self.down and owner != before
            }
        self._up_since = {node: self._up_since.get(node, now) for node in primaries}
        self._owners, self.primaries, self.unserved = owners, primaries, _without_owner(owners)


def _without_owner(owners: Sequence[str | None]) -> list[tuple[int, int]]:
    """Return the first and the last slot of each range without an owner."""
    ranges: list[tuple[int, int]] = []
    if None in owners:
        for slot, owner in enumerate(owners):
            if owner is None and ranges and ranges[-1][1] == slot - 1:
                ranges[-1] = ranges[-1][0], slot
            elif owner is None:
                ranges.append((slot, slot))
    return ranges


def unserved_text(ranges: Sequence[tuple[int, int]]) -> str:
    """Return a sentence on slots without a node."""
    return f"{slot_count(ranges)} of {SLOTS} slots have no node: {ranges_text(ranges)}"


def ranges_text(ranges: Sequence[tuple[int, int]]) -> str:
    """Return the first ranges of slots as text."""
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:_MAX_RANGES]]
    more = len(ranges) - len(shown)
    return ", ".join(shown) + (f" and {more} more ranges" if more else "")


def slot_count(ranges: Iterable[tuple[int, int]]) -> int:
    """Return the number of slots in some ranges."""
    return sum(last + 1 - first for first, last in ranges)


def cluster_info(raw: Any) -> dict[str, str]:
    """Return the fields of CLUSTER INFO."""
    if isinstance(raw, dict):
        return raw
    lines = bytes(raw).decode().splitlines()
    return {name: value for name, _, value in (line.partition(":") for line in lines)}


def node_address(host: str, server: Sequence[Any]) -> str:
    """Return host and port of a server. Without a host, it has that of the node which named it."""
    name = server[0].decode() if isinstance(server[0], bytes) else server[0]
    if name and ":" in name and not name.startswith("["):
        name = f"[{name}]"
    return f"{name if name and name != '?' else host}:{int(server[1])}"
