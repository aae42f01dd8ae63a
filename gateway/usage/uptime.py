"""Record in which minutes hourly paid engines were up: two bitmaps in Redis for each engine and UTC day.

Every process checks every engine twice a minute. A second bitmap has the minutes in which any process checked, so that
a stopped gateway does not count as a stopped engine. Days follow the local clock, like receipts. Usage workers copy
bitmaps and the price of the day to the usage database (uptime_table.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from decimal import Decimal

    from gateway.redis.client import RedisClient
    from gateway.redis.keys import RedisKeys

log = structlog.get_logger()

DAY_S = 86_400
MINUTES_A_DAY = 1_440
_RETRY_S = 1.0
_KEPT_S = 8 * DAY_S
_MAX_DAYS = 3
"""Number of days to buffer while Redis is unavailable. Earlier days are dropped."""


@dataclass(slots=True)
class UptimeMinutes:
    """Minutes of one engine and day: `up`, in which the engine was up, and `seen`, in which it was checked."""

    up: set[int] = field(default_factory=set)
    seen: set[int] = field(default_factory=set)


class EngineUptime(NamedTuple):
    """Uptime of one engine on one day. `hourly_usd` is the price on that day."""

    hourly_usd: Decimal
    up_minutes: int
    seen_minutes: int


class Uptime:
    """Record the uptime of the engines that are paid by the hour, given their prices. `clock` returns Unix seconds.

    `retry_s` is the pause after Redis failed.
    """

    def __init__(
        self,
        client: RedisClient,
        keys: RedisKeys,
        hourly_usd: Mapping[str, Decimal],
        clock: Callable[[], float] = time.time,
        retry_s: float = _RETRY_S,
    ) -> None:
        self._retry_s = retry_s
        self._client = client
        self._redis = client.commands
        self._keys = keys.ledger()
        self._hourly_usd, self._rates = hourly_usd, dict(hourly_usd)
        self.clock = clock
        self._unwritten: dict[int, dict[str, UptimeMinutes]] = {}
        self._changed = asyncio.Event()

    def use_prices(self, hourly_usd: Mapping[str, Decimal]) -> None:
        """Record the engines with these prices from now on."""
        self._hourly_usd = hourly_usd
        self._rates |= hourly_usd  # unwritten minutes may be of an engine that is no longer paid by the hour

    def record(self, engine: str, up: bool) -> None:
        """Record that an engine was checked now, and whether it is up."""
        if engine not in self._hourly_usd:
            return
        day, second = divmod(int(self.clock()), DAY_S)
        minutes = self._unwritten.setdefault(day * DAY_S, defaultdict(UptimeMinutes))[engine]
        minutes.seen.add(second // 60)
        if up:
            minutes.up.add(second // 60)
        while len(self._unwritten) > _MAX_DAYS:
            del self._unwritten[min(self._unwritten)]
        self._changed.set()

    async def run(self) -> None:
        """Write records to Redis until canceled. Wait while Redis is unavailable."""
        while True:
            await self._changed.wait()
            await self._client.wait_up()
            try:
                await self.flush()
            except (RedisError, OSError) as error:
                self._client.failed(error)
                log.warning("uptime_not_written", error=type(error).__name__)
                await asyncio.sleep(self._retry_s)

    async def flush(self) -> None:
        """Write buffered records to Redis. Keep them if this fails. Raises RedisError and OSError."""
        self._changed.clear()
        records, self._unwritten = self._unwritten, {}
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for day, engines in records.items():
                    self._put(pipe, day, engines)
                await pipe.execute()
        except BaseException:
            for day, engines in records.items():
                buffered = self._unwritten.setdefault(day, defaultdict(UptimeMinutes))
                for engine, minutes in engines.items():
                    buffered[engine].up |= minutes.up
                    buffered[engine].seen |= minutes.seen
            self._changed.set()
            raise

    def _put(self, pipe: Any, day: int, engines: Mapping[str, UptimeMinutes]) -> None:
        expires_at = round(day + DAY_S + _KEPT_S)
        for engine, minutes in engines.items():
            bitmaps = {self._keys.up(engine, day): minutes.up, self._keys.seen_up(engine, day): minutes.seen}
            for key, of_key in bitmaps.items():
                for minute in of_key:
                    pipe.setbit(key, minute, 1)
                if of_key:
                    pipe.expireat(key, expires_at)
        rates = self._keys.rates(day)
        pipe.hset(rates, mapping={engine: str(self._rates[engine]) for engine in engines})
        pipe.expireat(rates, expires_at)
