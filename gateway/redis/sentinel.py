"""Connections to the master of a Redis Sentinel deployment.

Each new connection asks the sentinels for the master and checks its role: after a failover, some sentinels may still
name the previous one. An error reply READONLY closes its connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.redis.connection import ReplicaConnected, WithLoopDeadlines, connect, reason_of
from gateway.redis.single import SingleServer

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

    from gateway.config.redis_url import RedisAddress


class _FollowsMaster(WithLoopDeadlines, SentinelManagedConnection):
    """A connection that asks the sentinels again before a retry. The library's would connect to the same server."""

    async def _reconnect(self) -> None:
        await self._connect_retry()  # type: ignore[no-untyped-call]


class _FollowsMasterTls(_FollowsMaster, SentinelManagedSSLConnection):
    pass


class SentinelServers(SingleServer):
    """The sentinels of a deployment, and clients of its master.

    Args:
        timeout_s: limit of one command, and of connecting.
        options: of all connections, as for `connect`.
    """

    def __init__(self, address: RedisAddress, *, timeout_s: float, **options: Any) -> None:
        super().__init__(address, timeout_s=timeout_s, **options)
        parsed: Any = parse_url(address.url)
        self._tls = parsed.pop("connection_class", None) is SSLConnection
        self._of_master = {name: value for name, value in parsed.items() if name not in {"host", "port"}}
        self._sentinels = Sentinel([])  # type: ignore[no-untyped-call]
        self._sentinels.sentinels = [
            connect(
                url, command_timeout_s=timeout_s, connect_timeout_s=timeout_s, retry=Retry(NoBackoff(), 0), **options
            )
            for url in address.sentinels
        ]

    def open(self, *, command_timeout_s: float | None, **options: Any) -> Redis:
        """Return a client of the master, which connects with its first command. The arguments are those of `connect`.

        Options of the URL have precedence.
        """
        pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
            self._address.master,
            self._sentinels,
            connection_class=_FollowsMasterTls if self._tls else _FollowsMaster,
            redis_connect_func=_check_role,
            command_timeout_s=command_timeout_s,
            connect_timeout_s=self._timeout_s,
            **self._options | options | self._of_master,
        )
        client = Redis.from_pool(pool)
        self._clients.append(client)
        return client

    async def explain(self, error: Exception) -> str:
        """Return why the master cannot be used, for an error at startup."""
        hosts, master = ", ".join(self._address.hosts), self._address.master
        failures: list[str] = []
        names: set[str] = set()
        for sentinel in self._sentinels.sentinels:
            try:
                masters: Any = await sentinel.sentinel_masters()
                names.update(masters)
            except (RedisError, OSError) as failed:
                failures.append(reason_of(failed))
        if len(failures) == len(self._address.sentinels):
            return f"The sentinels at {hosts} do not answer ({', '.join(sorted(set(failures)))})."
        if master not in names:
            known = ", ".join(sorted(names)) or "none"
            return f"The sentinels at {hosts} know no master '{master}'; they know: {known}."
        return f"The master '{master}' of the sentinels at {hosts} does not answer ({reason_of(error)})."

    async def close(self) -> None:
        await self._sentinels.aclose()


async def _check_role(connection: AbstractConnection) -> None:
    """Log in, and raise ReplicaConnected if the server is no master."""
    await connection.on_connect()
    await connection.send_command("INFO", "replication", check_health=False)
    reply: Any = await connection.read_response()
    if b"role:master" not in bytes(reply):
        raise ReplicaConnected("the server is a replica")
