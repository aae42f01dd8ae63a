"""Delete the outboxes of tenants without a receipt for 32 days.

A process that has named a tenant does so again only after an hour (RedisLedger). So a tenant leaves in two steps. First
no worker reads its outbox any more. Two hours later the outbox is deleted; or the tenant is back if a receipt came.
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
"""A tenant without a receipt for so long leaves."""
STEP_S = 2 * 3600.0
"""Twice as long as a process takes a tenant for named."""

_PER_ROUND = 100
_TENANTS_PER_CALL = 500


class InactiveTenants:
    """Methods raise RedisError and OSError. `now` is Unix seconds by Redis' clock."""

    def __init__(self, redis: Redis, keys: RedisKeys) -> None:
        self._redis = redis
        self._all_keys = keys
        self._keys = keys.ledger()
        self._idle = RedisScript(redis, "gateway.usage", "idle.lua")
        self._delete = RedisScript(redis, "gateway.usage", "outbox_delete.lua")
        self._forget = RedisScript(redis, "gateway.usage", "forget.lua")

    async def begin(self, tenants: Sequence[str], now: float) -> list[str]:
        """Stop reading the outboxes of tenants that were quiet for long. Return these tenants."""
        quiet: list[str] = []
        for start in range(0, len(tenants), _TENANTS_PER_CALL):
            some = tenants[start : start + _TENANTS_PER_CALL]
            (found,) = await self._idle.run([([self._all_keys.outbox(one) for one in some], [])])
            for place, raw in found:
                entry = raw.decode()
                # An outbox that never had an entry: its tenant was named a moment ago.
                if entry != NOTHING and added_ms(entry) / 1000 < now - QUIET_S:
                    quiet.append(some[place - 1])
        del quiet[_PER_ROUND:]
        if quiet:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.zadd(self._keys.leaving, dict.fromkeys(quiet, now))
                pipe.srem(self._keys.tenants, *quiet)
                await pipe.execute()
        return quiet

    async def end(self, now: float) -> list[str]:
        """Delete the outboxes of tenants that left two hours ago and have no receipt. Return these tenants."""
        named: Any = await self._redis.zrangebyscore(self._keys.leaving, "-inf", now - STEP_S, start=0, num=_PER_ROUND)
        gone = []
        for tenant in (raw.decode() for raw in named):
            (empty,) = await self._delete.run([([self._all_keys.outbox(tenant)], [])])
            if not empty:
                await self._redis.sadd(self._keys.tenants, tenant)
            names = [self._keys.tenants, self._keys.leaving]
            names += [self._keys.cursors, self._keys.counted, self._keys.archived, self._keys.holds]
            (forgotten,) = await self._forget.run([(names, [tenant.encode()])])
            if forgotten:
                gone.append(tenant)
        return gone
