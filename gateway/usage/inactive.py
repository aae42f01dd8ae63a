"""Delete the outboxes of tenants without a receipt for 32 days.

A process that has registered a tenant registers it again only after an hour (RedisLedger). So a tenant is removed in
two steps. First, workers stop reading its outbox. Two hours later, the outbox is deleted, or, if a receipt came, the
tenant is restored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.redis.script import RedisScript
from gateway.usage.entries import NOTHING, added_ms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from gateway.redis.keys import RedisKeys

QUIET_S = 32 * 86_400.0
"""Time without a receipt after which a tenant is removed."""
STEP_S = 2 * 3600.0
"""Twice the time between two registrations of a tenant by one process."""

_PER_ROUND = 100
_TENANTS_PER_CALL = 500


class InactiveTenants:
    """Remove inactive tenants. Methods raise RedisError and OSError. `now` is Unix seconds by Redis' clock."""

    def __init__(self, redis: Redis, keys: RedisKeys) -> None:
        self._redis = redis
        self._all_keys = keys
        self._keys = keys.ledger()
        self._idle = RedisScript(redis, "gateway.usage", "idle.lua")
        self._delete = RedisScript(redis, "gateway.usage", "outbox_delete.lua")
        self._forget = RedisScript(redis, "gateway.usage", "forget.lua")

    async def begin(self, tenants: Sequence[str], now: float) -> list[str]:
        """Stop reading the outboxes of inactive tenants. Return these tenants."""
        inactive: list[str] = []
        for start in range(0, len(tenants), _TENANTS_PER_CALL):
            batch = tenants[start : start + _TENANTS_PER_CALL]
            (outboxes,) = await self._idle.run([([self._all_keys.outbox(tenant) for tenant in batch], [])])
            for index, raw in outboxes:
                last_id = raw.decode()
                # NOTHING: the outbox never had an entry, because its tenant was just registered.
                if last_id != NOTHING and added_ms(last_id) / 1000 < now - QUIET_S:
                    inactive.append(batch[index - 1])
        del inactive[_PER_ROUND:]
        if inactive:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.zadd(self._keys.leaving, dict.fromkeys(inactive, now))
                pipe.srem(self._keys.tenants, *inactive)
                await pipe.execute()
        return inactive

    async def end(self, now: float) -> list[str]:
        """Delete the empty outboxes of tenants whose first step was two hours ago. Return these tenants."""
        leaving: Any = await self._redis.zrangebyscore(
            self._keys.leaving, "-inf", now - STEP_S, start=0, num=_PER_ROUND
        )
        deleted = []
        for tenant in (raw.decode() for raw in leaving):
            (empty,) = await self._delete.run([([self._all_keys.outbox(tenant)], [])])
            if not empty:
                await self._redis.sadd(self._keys.tenants, tenant)
            names = [self._keys.tenants, self._keys.leaving]
            names += [self._keys.cursors, self._keys.counted, self._keys.archived, self._keys.holds]
            (forgotten,) = await self._forget.run([(names, [tenant.encode()])])
            if forgotten:
                deleted.append(tenant)
        return deleted
