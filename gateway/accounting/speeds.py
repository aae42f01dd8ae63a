"""The limits in Redis as callers see them: what of each is in use. It changes nothing; exchange.lua counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.accounting.rings import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from gateway.accounting.scopes import Scope
    from gateway.redis.keys import RedisKeys

_MICRO = 1_000_000
_SLOT_US = 100_000  # a minute's slots; exchange.lua has the same numbers
_SLOTS = 600


@dataclass(frozen=True, slots=True)
class RecentUsage:
    """What was used in the last 60 seconds, and what runs now."""

    requests: int
    tokens: int
    parallel: int


class LimitUsage:
    """Args:
    lease_s: after so long without a word, a process no longer holds what runs in parallel.
    """

    def __init__(self, redis: Redis, keys: RedisKeys, lease_s: float) -> None:
        self._redis = redis
        self._keys = keys
        self._lease_us = round(lease_s * _MICRO)

    async def look(self, tenant: str, scopes: Sequence[Scope]) -> list[RecentUsage]:
        """Of each scope of a tenant, in one round trip. Raises RedisError and OSError."""
        if not scopes:
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zrange(self._keys.owners(tenant), 0, -1, withscores=True)
            for scope in scopes:
                window, parallel, _ = self._keys.scope(tenant, scope.name)
                pipe.hgetall(window)
                pipe.hgetall(parallel)
            (seconds, microseconds), owners, *found = await pipe.execute()
        now_us = seconds * _MICRO + microseconds
        living = {owner for owner, heard_us in owners if heard_us >= now_us - self._lease_us}
        return [
            RecentUsage(
                requests=_used(window, "requests", now_us),
                tokens=_used(window, "tokens", now_us),
                parallel=sum(int(count) for owner, count in parallel.items() if owner in living),
            )
            for window, parallel in zip(found[::2], found[1::2], strict=True)
        ]


def _used(window: dict[bytes, bytes], name: str, now_us: int) -> int:
    return counted(window, name, now_us=now_us, length_us=_SLOT_US, last=_SLOTS)
