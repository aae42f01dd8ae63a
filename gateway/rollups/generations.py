"""Takes rows out of Redis that nobody reads: those that newer ones took the place of, and those never finished."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.rollups.sums import SECONDS, periods

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from gateway.redis_keys import RedisKeys
    from gateway.rollups.sums import Period, Retention

# Whoever made them and was late may have been about to write.
_LAPSED_FOR_S = 60
_PERIODS_PER_CALL = 100
_KEYS_PER_CALL = 500


class Generations:
    """Args:
    retention: says which periods there can be.
    """

    def __init__(self, redis: Redis, keys: RedisKeys, retention: Retention) -> None:
        self._redis = redis
        self._keys = keys.ledger()
        self._retention = retention

    async def drop(self) -> list[int]:
        """Drop those whose time is over: which. Raises RedisError and OSError."""
        builds: Any = await self._redis.hgetall(self._keys.builds)
        if not builds:
            return []
        now, _ = await self._redis.time()
        over = [int(one) for one, until in builds.items() if int(until) + _LAPSED_FOR_S < now]
        for generation in over:
            for granularity in SECONDS:
                kept_s = self._retention.of(granularity)
                every = list(periods(granularity, now - kept_s - 2 * SECONDS[granularity], now + SECONDS[granularity]))
                for start in range(0, len(every), _PERIODS_PER_CALL):
                    await self._drop(generation, every[start : start + _PERIODS_PER_CALL])
            await self._redis.unlink(self._keys.build(generation))
            await self._redis.hdel(self._keys.builds, str(generation))
        return over

    async def _drop(self, generation: int, some: Sequence[Period]) -> None:
        keys = self._keys.of(generation)
        async with self._redis.pipeline(transaction=False) as pipe:
            for one in some:
                pipe.smembers(keys.seen(one.granularity, one.start))
            seen = await pipe.execute()
        names = []
        for one, tenants in zip(some, seen, strict=True):
            names += [keys.rows(one.granularity, one.start, tenant.decode()) for tenant in tenants]
            names.append(keys.total(one.granularity, one.start))
        # Last what names the others: who dies over it can be followed.
        names += [keys.seen(one.granularity, one.start) for one in some]
        for start in range(0, len(names), _KEYS_PER_CALL):
            await self._redis.unlink(*names[start : start + _KEYS_PER_CALL])
