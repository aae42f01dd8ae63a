"""A client that sends each command to the node of its hash slot.

redis-py's own cluster client disconnects all nodes when one fails, and may send ASKING on another connection than the
command that follows. This client uses redis-py's client of one server for each node.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from redis.commands import AsyncCoreCommands
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ExecAbortError,
    MovedError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from gateway.redis.slots import by_slot, slot_of_command
from gateway.redis.topology import SlotNotServed, node_address, unserved_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Sequence

    from redis.asyncio import Redis
    from redis.asyncio.client import PubSub

    from gateway.redis.topology import Topology

_Commands: Any = AsyncCoreCommands  # its declarations are for clients of one server
_MAX_REDIRECTIONS = 8
_TRY_AGAIN_S = 0.02
_TRIES = 5
_REDIRECTIONS = (AskError, TryAgainError)  # MovedError is an AskError
NODE = "gkt_node"
"""The attribute of an error with the address of the node that failed."""


class ClusterClient(_Commands):  # type: ignore[misc]
    """Commands of redis-py's client. A command with several keys needs keys of one slot.

    Redirections are followed: a node rejects a redirected command before it runs. `connect` returns the client of a
    node.
    """

    is_cluster = True

    def __init__(self, topology: Topology, connect: Callable[[str], Redis]) -> None:
        self._topology, self._connect = topology, connect
        self._nodes: dict[str, Redis] = {}

    def node(self, address: str) -> Redis:
        """Return the client of a node."""
        if address not in self._nodes:
            self._nodes[address] = self._connect(address)
        return self._nodes[address]

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command. Raises RedisError and OSError; `gkt_node` of an error is the node that failed."""
        slot = slot_of_command(args)
        tries = 0
        for _ in range(_MAX_REDIRECTIONS):
            address = await self._topology.owner(slot)
            try:
                return await self._send(address, args, options)
            except TryAgainError:
                tries += 1
                if tries == _TRIES:
                    raise
                await asyncio.sleep(_TRY_AGAIN_S)
            except MovedError as moved:
                self._topology.move(moved.slot_id, _target(moved, address))
        raise TryAgainError(f"{args[0]} was redirected {_MAX_REDIRECTIONS} times")

    async def _send(self, address: str, args: Sequence[Any], options: dict[str, Any]) -> Any:
        try:
            node: Any = self.node(address)
            return await node.execute_command(*args, **options)
        except AskError as ask:
            if isinstance(ask, MovedError):
                raise
            return await self._ask(_target(ask, address), args, options)
        except (RedisError, OSError) as error:
            self.mark(error, address)
            raise

    async def _ask(self, address: str, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """Send a command to the node that imports its slot. ASKING applies to the next command of its connection."""
        try:
            async with self.node(address).pipeline(transaction=False) as pipe:
                pipe.execute_command("ASKING")
                pipe.execute_command(*args, **options)
                _, reply = await pipe.execute(raise_on_error=False)
        except (RedisError, OSError) as error:
            self.mark(error, address)
            raise
        if isinstance(reply, Exception):
            self.mark(reply, address)
            raise reply from None
        return reply

    def mark(self, error: Exception, address: str) -> None:
        """Store the node in an error, if the error indicates a failed node."""
        if isinstance(error, ClusterDownError) or not isinstance(error, ResponseError):
            self._topology.stale = True
            setattr(error, NODE, address)

    def pipeline(self, transaction: bool = True) -> ClusterPipeline:
        return ClusterPipeline(self, self._topology, transaction=transaction)

    def pubsub(self, **options: Any) -> PubSub:
        """Return a subscription on some node: PUBLISH reaches the subscribers of all nodes."""
        return self.node(self._topology.any_node()).pubsub(**options)

    async def on_primaries(self, *args: Any) -> list[Any]:
        """Send a command to all primaries that have not failed. Raises RedisError and OSError if one fails."""
        await self._topology.owner(None)
        up = [node for node in self._topology.primaries if node not in self._topology.down]
        return await asyncio.gather(*(self._send(node, args, {}) for node in up))

    async def script_load(self, script: Any) -> Any:
        return (await self.on_primaries("SCRIPT LOAD", script))[0]

    async def scan_iter(self, match: Any = None, count: int | None = None, *_: Any, **__: Any) -> AsyncIterator[Any]:
        """Yield the keys of all primaries. A key that moves meanwhile may be yielded twice."""
        await self._topology.refresh()
        if self._topology.unserved:
            raise SlotNotServed(unserved_text(self._topology.unserved))
        for address in list(self._topology.primaries):
            async for key in self.node(address).scan_iter(match, count):
                yield key

    async def unlink(self, *names: Any) -> int:
        async with self.pipeline(transaction=False) as pipe:
            for group in by_slot(self, names, lambda name: name):
                pipe.execute_command("UNLINK", *group)
            return sum(await pipe.execute())

    def get_encoder(self) -> Any:
        node: Any = self.node(self._topology.any_node())
        return node.get_encoder()

    async def disconnect_except(self, addresses: Collection[str]) -> None:
        """Close the connections to all other nodes, also those in use."""
        for address, node in tuple(self._nodes.items()):  # a subscriber may add a node meanwhile
            if address not in addresses:
                await node.connection_pool.disconnect()

    async def aclose(self) -> None:
        for node in self._nodes.values():
            await node.aclose()


class ClusterPipeline(_Commands):  # type: ignore[misc]
    """Commands that are sent together, to all their nodes at once. A transaction needs keys of one slot."""

    def __init__(self, client: ClusterClient, topology: Topology, *, transaction: bool) -> None:
        self._client, self._topology, self._transaction = client, topology, transaction
        self._commands: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._commands = []

    def execute_command(self, *args: Any, **options: Any) -> Self:
        self._commands.append((args, options))
        return self

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Return the replies in order.

        Without `raise_on_error`, an error takes the place of the reply of its command, also where a node failed.
        """
        commands, self._commands = self._commands, []
        if not commands:
            return []
        replies: list[Any] = [None] * len(commands)
        groups: dict[str, list[int]] = {}
        keyless: list[int] = []
        for index, (args, _) in enumerate(commands):
            slot = slot_of_command(args)
            if slot is None:
                keyless.append(index)
                continue
            try:
                groups.setdefault(await self._topology.owner(slot), []).append(index)
            except (RedisError, OSError) as error:
                replies[index] = error
        if keyless:  # the clock is that of the keys
            address = next(iter(groups), None) or await self._topology.owner(None)
            groups[address] = sorted([*keyless, *groups.get(address, [])])
        await asyncio.gather(*(self._run(node, commands, indexes, replies) for node, indexes in groups.items()))
        if raise_on_error:
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        return replies

    async def _run(self, address: str, commands: Sequence[Any], indexes: Sequence[int], replies: list[Any]) -> None:
        batch = [commands[index] for index in indexes]
        try:
            found = await (self._transact(address, batch) if self._transaction else self._send(address, batch))
        except (RedisError, OSError) as error:
            self._client.mark(error, address)
            found = [error] * len(indexes)
        for index, (args, options), reply in zip(indexes, batch, found, strict=True):
            replies[index] = reply
            if isinstance(reply, _REDIRECTIONS) and not self._transaction:
                try:
                    replies[index] = await self._client.execute_command(*args, **options)
                except (RedisError, OSError) as error:
                    replies[index] = error
            elif isinstance(reply, Exception):
                self._client.mark(reply, address)

    async def _send(self, address: str, commands: Sequence[Any]) -> list[Any]:
        async with self._client.node(address).pipeline(transaction=self._transaction) as pipe:
            for args, options in commands:
                pipe.execute_command(*args, **options)
            return list(await pipe.execute(raise_on_error=False))

    async def _transact(self, address: str, commands: Sequence[Any]) -> list[Any]:
        """Send a transaction. A node rejects it before it runs if its slot moves or has moved."""
        for _ in range(_MAX_REDIRECTIONS):
            try:
                return await self._send(address, commands)
            except MovedError as moved:
                address = _target(moved, address)
                self._topology.move(moved.slot_id, address)
            except (AskError, TryAgainError, ExecAbortError):
                await asyncio.sleep(_TRY_AGAIN_S)
        raise TryAgainError(f"a transaction was redirected {_MAX_REDIRECTIONS} times")


def _target(redirection: AskError, address: str) -> str:
    """Return the node that a redirection from the node at `address` names."""
    return node_address(address.rpartition(":")[0], (redirection.host, redirection.port))
