"""Clients of Redis for tests: the client of a gateway, and a client that reads the keys of a cluster."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Self

import pytest
from redis.asyncio import Redis

from gateway.config.redis_url import redis_address
from gateway.redis.client import RedisClient
from gateway.redis.cluster_client import ClusterClient
from gateway.redis.servers import servers_of
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@asynccontextmanager
async def client_on(
    url: str, timeout_s: float = 5.0, *, watched: bool = True, metrics: Metrics | None = None
) -> AsyncIterator[RedisClient]:
    """Open a gateway's client. Its circuit breakers close again only if it is `watched`."""
    client = RedisClient(url, timeout_s=timeout_s, metrics=metrics or Metrics(), check_interval_s=0.05)
    tasks = BackgroundTasks()
    if watched:
        tasks.keep("redis", client.watch())
    try:
        yield client
    finally:
        await tasks.close()
        await client.close()


class InspectedCluster(ClusterClient):
    """A client of a cluster, with more methods of a client of one server, for tests that read keys of all nodes."""

    def __init__(self, url: str) -> None:
        servers: Any = servers_of(redis_address(url), 60.0)
        self.__dict__ |= servers.open(command_timeout_s=60.0).__dict__
        self._servers = servers

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await super().aclose()
        await self._servers.close()

    async def keys(self, pattern: str = "*") -> list[bytes]:
        return [raw async for raw in self.scan_iter(pattern, 1000)]

    async def flushall(self) -> None:
        await self.on_primaries("FLUSHALL")

    flushdb = flushall

    async def script_flush(self) -> None:
        await self.on_primaries("SCRIPT FLUSH")

    async def delete(self, *names: Any) -> int:
        return await self.unlink(*names)

    async def pubsub_numsub(self, channel: str) -> list[tuple[bytes, int]]:
        replies = await self.on_primaries("PUBSUB NUMSUB", channel)
        return [(channel.encode(), sum(int(count) for reply in replies for _, count in reply))]


@contextmanager
def opened_by_url() -> Iterator[None]:
    """Let `Redis.from_url` open clusters, too."""
    original: Any = Redis.__dict__["from_url"]

    def from_url(cls: type[Redis], url: str, **options: Any) -> Any:
        return InspectedCluster(url) if "+cluster" in url else original.__func__(cls, url, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Redis, "from_url", classmethod(from_url))
        yield
