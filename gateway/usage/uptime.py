"""The minutes in which engines that are paid by the hour were up: two bitmaps in Redis for each engine and UTC day.

Every process checks every engine twice a minute, and sets the bit of that minute where the engine is up. A second
bitmap holds the minutes in which any process checked: the absence of a gateway does not count as that of an engine.
The price of the day stands beside them, for it may change. Days follow the clock of this machine, as receipts do. Usage
workers copy the bitmaps to the usage database (uptime_table.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from decimal import Decimal

    from redis.asyncio import Redis

    from gateway.redis.client import RedisClient
    from gateway.redis.keys import RedisKeys

log = structlog.get_logger()

DAY_S = 86_400
MINUTES_A_DAY = 1_440
_REST_S = 1.0
_KEPT_S = 8 * DAY_S
_MOST_DAYS = 3
"""How many days wait for a Redis that is away; of those before, it is never known."""


@dataclass(slots=True)
class UptimeMinutes:
    """Of one engine and day: those in which it was up, and those in which anybody looked."""

    up: set[int] = field(default_factory=set)
    seen: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class EngineUptime:
    """What is known of one engine and day. `hourly_usd` is its price then."""

    hourly_usd: Decimal
    up_minutes: int
    seen_minutes: int


class Uptime:
    """Args:
    hourly_usd: by engine, for those that are paid by the hour; others are not written down.
    clock: Unix seconds.
    """

    def __init__(
        self,
        client: RedisClient,
        redis: Redis,
        keys: RedisKeys,
        hourly_usd: Mapping[str, Decimal],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._redis = redis
        self._keys = keys.ledger()
        self._hourly_usd = hourly_usd
        self.clock = clock
        self._untold: dict[int, dict[str, UptimeMinutes]] = {}
        self._news = asyncio.Event()

    def record(self, engine: str, up: bool) -> None:
        """Note how an engine was found just now."""
        if engine not in self._hourly_usd:
            return
        day, second = divmod(int(self.clock()), DAY_S)
        minutes = self._untold.setdefault(day * DAY_S, defaultdict(UptimeMinutes))[engine]
        minutes.seen.add(second // 60)
        if up:
            minutes.up.add(second // 60)
        while len(self._untold) > _MOST_DAYS:
            del self._untold[min(self._untold)]
        self._news.set()

    async def run(self) -> None:
        """Write down what was seen, for ever. While Redis is away it waits."""
        while True:
            await self._news.wait()
            await self._client.wait_up()
            try:
                await self.flush()
            except (RedisError, OSError) as error:
                self._client.failed(error)
                log.warning("uptime_not_written", error=type(error).__name__)
                await asyncio.sleep(_REST_S)

    async def flush(self) -> None:
        """Write down what was seen and is not written yet. What fails is kept. Raises RedisError and OSError."""
        self._news.clear()
        told, self._untold = self._untold, {}
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for day, engines in told.items():
                    self._put(pipe, day, engines)
                await pipe.execute()
        except BaseException:
            self._take_back(told)
            raise

    def _put(self, pipe: Any, day: int, engines: Mapping[str, UptimeMinutes]) -> None:
        ends = round(day + DAY_S + _KEPT_S)
        for engine, minutes in engines.items():
            for key, some in (
                (self._keys.up(engine, day), minutes.up),
                (self._keys.seen_up(engine, day), minutes.seen),
            ):
                for minute in some:
                    pipe.setbit(key, minute, 1)
                if some:
                    pipe.expireat(key, ends)
        rates = self._keys.rates(day)
        pipe.hset(rates, mapping={engine: str(self._hourly_usd[engine]) for engine in engines})
        pipe.expireat(rates, ends)

    def _take_back(self, told: Mapping[int, Mapping[str, UptimeMinutes]]) -> None:
        for day, engines in told.items():
            now = self._untold.setdefault(day, defaultdict(UptimeMinutes))
            for engine, minutes in engines.items():
                now[engine].up |= minutes.up
                now[engine].seen |= minutes.seen
        self._news.set()
