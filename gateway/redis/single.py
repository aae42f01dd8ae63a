"""Open clients of a single Redis server, and check it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from gateway.redis.connection import ReplicaConnected, connect, reason_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

    from gateway.config.redis_url import RedisAddress


class NotSingle(RedisConnectionError):
    """The server is one of several, which serve other keys."""


class SingleServer:
    """A server that fails as a whole."""

    unserved: tuple[tuple[int, int], ...] = ()

    def __init__(self, address: RedisAddress, *, timeout_s: float, **options: Any) -> None:
        self._address, self._timeout_s, self._options = address, timeout_s, options
        self._clients: list[Redis] = []
        self.problems: list[str] = []

    def open(self, *, command_timeout_s: float | None, **options: Any) -> Redis:
        client = connect(
            self._address.url,
            command_timeout_s=command_timeout_s,
            connect_timeout_s=self._timeout_s,
            **self._options,
            **options,
        )
        self._clients.append(client)
        return client

    def max_connections(self, client: Redis) -> int:
        return int(client.connection_pool.max_connections)

    async def check(self, client: Redis) -> Mapping[str, Mapping[str, Any] | Exception]:
        try:
            info: Any = await client.info("server", "replication")
        except (RedisError, OSError, ValueError) as error:  # ValueError: invalid TLS options
            return {"": error}
        if "cluster" in {info.get("redis_mode"), info.get("server_mode")}:  # the name in Redis, and in Valkey
            return {"": NotSingle("a node of a Redis Cluster")}
        if info.get("role") != "slave":
            return {"": info}
        for one in self._clients:  # the name of the primary may have another address now
            await one.connection_pool.disconnect(inuse_connections=False)
        return {"": ReplicaConnected(f"a replica of {info.get('master_host')}:{info.get('master_port')}")}

    async def explain(self, error: Exception) -> str:
        """Return why the server cannot be used, for an error at startup."""
        if isinstance(error, NotSingle):
            return f"Redis at {self._address.hosts[0]} is {error}. Write redis+cluster:// instead of redis://."
        if isinstance(error, ReplicaConnected):
            return (
                f"Redis at {self._address.hosts[0]} is {error}, and rejects writes. Name the primary; with Redis "
                "Sentinel the sentinels: redis+sentinel://HOST:26379,HOST:26379/MASTER_NAME."
            )
        return f"Redis at {self._address.hosts[0]} does not answer ({reason_of(error)})."

    def is_up(self, key: str) -> bool:
        """Return True: the server fails as a whole."""
        return True

    def up_since(self, key: str) -> float:
        """Return -inf: the server fails as a whole."""
        return -math.inf

    def set_up(self, node: str, *, up: bool) -> None:
        """Do nothing: clients may try at any time."""

    async def close(self) -> None:
        """Do nothing: clients close their own connections."""
