"""Read the current use of limits from Redis. Only exchange.lua changes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.accounting.rings import ring_sum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from gateway.accounting.scopes import Scope
    from gateway.redis.keys import RedisKeys

_MICRO = 1_000_000
_SLOT_US = 100_000  # slots of the last minute; exchange.lua has the same constants
_SLOTS = 600


@dataclass(frozen=True, slots=True)
class RecentUsage:
    """The use of the last 60 seconds, and the requests that run now."""

    requests: int
    tokens: int
    parallel: int


class LimitUsage:
    """Read the use of limits.

    Args:
        redis: the connection for queries.
        keys: the names of keys.
        lease_s: seconds without a heartbeat after which the parallel slots of a process are free.
    """

    def __init__(self, redis: Redis, keys: RedisKeys, lease_s: float) -> None:
        self._redis = redis
        self._keys = keys
        self._lease_us = round(lease_s * _MICRO)

    async def read(self, tenant: str, scopes: Sequence[Scope]) -> list[RecentUsage]:
        """Return the use of each scope, in one round trip. Raises RedisError and OSError."""
        if not scopes:
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zrange(self._keys.owners(tenant), 0, -1, withscores=True)
            for scope in scopes:
                window, parallel, _ = self._keys.scope(tenant, scope.name)
                pipe.hgetall(window)
                pipe.hgetall(parallel)
            (seconds, microseconds), owners, *results = await pipe.execute()
        now_us = seconds * _MICRO + microseconds
        living = {process_id for process_id, seen_us in owners if seen_us >= now_us - self._lease_us}
        return [
            RecentUsage(
                requests=_used(window, "requests", now_us),
                tokens=_used(window, "tokens", now_us),
                parallel=sum(int(count) for process_id, count in parallel.items() if process_id in living),
            )
            for window, parallel in zip(results[::2], results[1::2], strict=True)
        ]


def _used(window: dict[bytes, bytes], name: str, now_us: int) -> int:
    return ring_sum(window, name, now_us=now_us, length_us=_SLOT_US, last=_SLOTS)
