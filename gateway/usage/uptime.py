"""Publish which engines that are paid by the hour are up, one hash in Redis for each minute.

Every gateway process publishes what its last probes found. An engine is up in a minute if any process found it up, and
seen if any process has probed it. The usage worker counts the minutes in the usage database (uptime_table.py).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

    from gateway.accounting.engine_set import EngineSet
    from gateway.redis.client import RedisClient
    from gateway.redis.keys import LedgerKeys

DAY_S = 86_400
MINUTES_A_DAY = 1_440
KEPT_MINUTES = MINUTES_A_DAY
"""Retention in Redis: minutes are counted if the usage database is unavailable for at most a day."""

UP, SEEN = "up", "seen"
_EVERY_S = 10.0


class EngineUptime(NamedTuple):
    """Uptime of one engine on one day. `hourly_usd` is the price on that day."""

    hourly_usd: Decimal
    up_minutes: int
    seen_minutes: int


class UptimeReporter:
    """Publish the engines of a process. `clock` returns Unix seconds."""

    def __init__(
        self, client: RedisClient, keys: LedgerKeys, engines: EngineSet, clock: Callable[[], float] = time.time
    ) -> None:
        self._client, self._keys, self._engines, self._clock = client, keys, engines, clock

    async def run(self) -> None:
        """Publish several times a minute until canceled. Minutes in which Redis is unavailable stay unseen."""
        await self._client.keep_reading(self.publish, _EVERY_S, "uptime_not_published")

    async def publish(self) -> None:
        """Publish the engines in the current minute. Raises RedisError and OSError."""
        engine_set, found = self._engines, dict[Any, str]()
        for name, model in engine_set.models.items():
            hourly_usd = None if model.price_rule is None else model.price_rule.hourly_usd
            is_up = engine_set.by_name[name].state.up
            if hourly_usd is not None and is_up is not None:
                found |= {f"{kind}:{name}": str(hourly_usd) for kind in ((UP, SEEN) if is_up else (SEEN,))}
        if found:
            key = self._keys.engine_minute(int(self._clock()) // 60)
            async with self._client.commands.pipeline(transaction=False) as pipe:
                pipe.hset(key, mapping=found)
                pipe.expire(key, KEPT_MINUTES * 60)
                await pipe.execute()
