"""The nodes of a Redis Cluster: clients that route by hash slot, and checks of each primary."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ClusterDownError, RedisError

from gateway.redis.cluster_client import ClusterClient
from gateway.redis.connection import ReplicaConnected, connect, reason_of
from gateway.redis.topology import NotACluster, SlotNotServed, Topology, cluster_info, unserved_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis.asyncio import Redis

    from gateway.config.redis_url import RedisAddress


class ClusterServers:
    """A cluster. `problems` states what is wrong with it, by the last check."""

    def __init__(self, address: RedisAddress, *, timeout_s: float, **options: Any) -> None:
        self._address, self._timeout_s, self._options = address, timeout_s, options
        self._listening: list[ClusterClient] = []
        open_node = partial(self._node, command_timeout_s=timeout_s, retry=Retry(NoBackoff(), 0))
        self._topology = Topology(address.hosts, lambda node: self._control.node(node))  # noqa: PLW0108  set below
        self._control = ClusterClient(self._topology, open_node)
        self.problems: list[str] = []
        open_node(address.hosts[0])  # raises an error if the options are invalid

    def _node(self, node: str, **options: Any) -> Redis:
        parts = urlsplit(self._address.url)
        user, at, _ = parts.netloc.rpartition("@")
        url = urlunsplit(parts._replace(netloc=f"{user}{at}{node}"))
        return connect(url, connect_timeout_s=self._timeout_s, **self._options, **options)

    def open(self, *, command_timeout_s: float | None, **options: Any) -> Redis:
        """Return a client. The arguments are those of `connect`, for each node."""
        client = ClusterClient(self._topology, partial(self._node, command_timeout_s=command_timeout_s, **options))
        if command_timeout_s is None:
            self._listening.append(client)
        return cast("Redis", client)

    def max_connections(self, client: Redis) -> int:
        node = cast("ClusterClient", client).node(self._address.hosts[0])
        return int(node.connection_pool.max_connections)

    async def check(self, client: Redis) -> Mapping[str, Mapping[str, Any] | Exception]:
        """Return the INFO of each primary, or its error. The name '' stands for the slots of the cluster."""
        try:
            if self._topology.is_due:
                await self._topology.refresh()
            found = await self._check_primaries()
            if any(isinstance(one, ReplicaConnected) for one in found.values()):
                await self._topology.refresh()  # after a failover that an operator began
                found = await self._check_primaries()
        except (RedisError, OSError, ValueError) as error:
            self.problems = [f"no node answers ({reason_of(error)})"]
            return {"": error}
        self.problems = []
        if self.unserved:
            self.problems = [f"{unserved_text(self.unserved)}. redis-cli --cluster fix HOST:PORT assigns them"]
        if not found:
            return {"": SlotNotServed("no node has slots")}
        self.problems += [f"{node}: {_reason(one)}" for node, one in found.items() if isinstance(one, Exception)]
        versions = {str(one["redis_version"]) for one in found.values() if not isinstance(one, Exception)}
        if len(versions) > 1:
            self.problems.append(f"nodes have different versions: {', '.join(sorted(versions))}")
        healthy = [node for node, one in found.items() if not isinstance(one, Exception)]
        self._topology.stale = self._topology.stale or len(healthy) < len(found)
        for subscriber in self._listening:
            await subscriber.disconnect_except(healthy)  # it subscribes to another node
        return {"": {}, **found}

    @property
    def unserved(self) -> Sequence[tuple[int, int]]:
        return self._topology.unserved

    async def _check_primaries(self) -> dict[str, dict[str, Any] | Exception]:
        nodes = list(self._topology.primaries)
        return dict(zip(nodes, await asyncio.gather(*map(self._check, nodes)), strict=True))

    async def _check(self, node: str) -> dict[str, Any] | Exception:
        try:
            async with self._control.node(node).pipeline(transaction=False) as pipe:
                pipe.info("server", "replication")
                pipe.execute_command("CLUSTER INFO")
                info, cluster = await pipe.execute()
        except (RedisError, OSError) as error:
            return error
        if info.get("role") == "slave":
            return ReplicaConnected("the node has become a replica")
        if (state := cluster_info(cluster).get("cluster_state")) != "ok":
            return ClusterDownError(f"cluster_state:{state}")
        return cast("dict[str, Any]", info)

    async def explain(self, error: Exception) -> str:
        hosts = ", ".join(self._address.hosts)
        if isinstance(error, NotACluster):
            return f"{error}: write redis:// instead of redis+cluster://."
        if self._topology.primaries or isinstance(error, SlotNotServed):
            return f"The Redis Cluster of {hosts} serves no request: {'; '.join(self.problems)}."
        return f"The nodes of the Redis Cluster at {hosts} do not answer ({reason_of(error)})."

    def is_up(self, key: str) -> bool:
        return self._topology.is_up(key)

    def up_since(self, key: str) -> float:
        return self._topology.up_since(key)

    def set_up(self, node: str, *, up: bool) -> None:
        """Let commands for a node fail at once, or be sent again."""
        if up:
            self._topology.recover(node)
        elif node:
            self._topology.down.add(node)
            self._topology.stale = True

    async def close(self) -> None:
        await self._control.aclose()


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ClusterDownError | ReplicaConnected) else reason_of(error)
