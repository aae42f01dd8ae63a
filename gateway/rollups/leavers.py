"""Forgets tenants that had no receipt for long: what is known of their outboxes, and the outboxes, which are empty.

A process that has named a tenant does so again only after an hour (RedisLedger). So a tenant leaves in two steps: first
nobody looks at its outbox any more, and hours later, when all have named whom they still know, the rest goes; or it is
back if anything came meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.redis_script import Script
from gateway.rollups.entries import NOTHING, made_ms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

    from gateway.redis_keys import RedisKeys

QUIET_S = 32 * 86_400.0
"""After so long without a receipt a tenant is forgotten."""
STEP_S = 2 * 3600.0
"""Twice as long as a process knows a tenant for named."""

_PER_ROUND = 100


class Leavers:
    def __init__(self, redis: Redis, keys: RedisKeys) -> None:
        self._redis = redis
        self._all_keys = keys
        self._keys = keys.ledger()
        self._delete = Script(redis, "gateway.rollups", "outbox_delete.lua")
        self._forget = Script(redis, "gateway.rollups", "tenant_forget.lua")

    async def begin(self, empty: Mapping[str, str], now: float) -> list[str]:
        """Let those leave that were quiet for long: whom. Raises RedisError and OSError.

        Args:
            empty: tenants with an empty outbox, and their last entry that is added up.
            now: Unix seconds, by Redis' clock.
        """
        # One of which nothing was ever added up was named a moment ago, and its first receipt is on the way.
        known = {tenant: entry for tenant, entry in empty.items() if entry != NOTHING}
        quiet = [tenant for tenant, entry in known.items() if made_ms(entry) / 1000 < now - QUIET_S][:_PER_ROUND]
        if quiet:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.zadd(self._keys.leaving, dict.fromkeys(quiet, now))
                pipe.srem(self._keys.tenants, *quiet)
                await pipe.execute()
        return quiet

    async def end(self, now: float) -> list[str]:
        """Forget those that left a while ago and have nothing: whom. Raises RedisError and OSError."""
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
