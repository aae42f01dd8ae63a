"""Open clients of the servers that `redis.url` names: one server, the master of a Sentinel deployment, or a cluster."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from gateway.redis.cluster import ClusterServers
from gateway.redis.sentinel import SentinelServers
from gateway.redis.single import SingleServer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis.asyncio import Redis

    from gateway.config.redis_url import RedisAddress

# A peer that vanished is detected after 5 + 3 * 2 seconds instead of the system's two hours. TCP_KEEPALIVE is macOS's
# name of TCP_KEEPIDLE. Some platforms lack the options.
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPALIVE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}


Checks: TypeAlias = "Mapping[str, Mapping[str, Any] | Exception]"
"""Sections of INFO, or the error, of each node that requests use. A single server and a master have the name ''."""


class Servers(Protocol):
    """The servers that a URL names.

    Attributes:
        problems: the defects that the last check found.
        unserved: ranges of hash slots that no node of a cluster serves.
    """

    problems: list[str]

    @property
    def unserved(self) -> Sequence[tuple[int, int]]: ...

    def open(self, *, command_timeout_s: float | None, **options: Any) -> Redis:
        """Return a client, which connects with its first command. The arguments are those of `connect`."""

    def max_connections(self, client: Redis) -> int:
        """Return the connection limit of a client."""

    async def check(self, client: Redis) -> Checks:
        """Ask each node for its state."""

    async def explain(self, error: Exception) -> str:
        """Return why the servers cannot be used, for an error at startup."""

    def is_up(self, key: str) -> bool:
        """Return whether the node of a key has not failed, if nodes fail separately; else True."""

    def up_since(self, key: str) -> float:
        """Return the loop time since which the node of a key has not failed, if nodes fail separately; else -inf."""

    def set_up(self, node: str, *, up: bool) -> None:
        """Store whether a node has failed."""

    async def close(self) -> None: ...


def servers_of(address: RedisAddress, timeout_s: float) -> Servers:
    """Return the servers of an address. Raises ValueError, TypeError and RedisError for invalid options."""
    # The scripts' replies are decoded as RESP2.
    options: dict[str, Any] = {"protocol": 2}
    if not address.url.startswith("unix:"):
        options["socket_keepalive"] = True  # detect a peer that vanished
        options["socket_keepalive_options"] = {
            getattr(socket, name): value for name, value in _KEEPALIVE.items() if hasattr(socket, name)
        }
    if address.kind == "sentinel":
        return SentinelServers(address, timeout_s=timeout_s, **options)
    if address.kind == "cluster":
        return ClusterServers(address, timeout_s=timeout_s, **options)
    return SingleServer(address, timeout_s=timeout_s, **options)
