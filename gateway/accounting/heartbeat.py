"""How the fleet knows that this process lives."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.redis.client import RedisClient

log = structlog.get_logger()

# Two beats may be lost before the lease is.
_BEATS_PER_LEASE = 4


class Heartbeat:
    """Args:
    key: this process's own.
    lease_s: after this long without a beat the process counts as gone.
    beaten: called after each beat.
    lapsed: called when it did, or when Redis forgot the last beat, and with it whatever else it was told.
    """

    def __init__(
        self, redis: RedisClient, key: str, *, lease_s: float, beaten: Callable[[], None], lapsed: Callable[[], None]
    ) -> None:
        self._redis = redis
        self._key = key
        self._lease_s = lease_s
        self._beaten = beaten
        self._lapsed = lapsed

    async def run(self) -> None:
        """Beat for ever, and at once when Redis is back."""
        first = True
        while True:
            await self._redis.wait_up()
            try:
                before = await self._redis.commands.set(self._key, b"", px=round(self._lease_s * 1000), get=True)
            except Exception as error:
                # Whatever it was, the loop lives on: without it the process would be taken for dead.
                self._redis.failed(error)
                unexpected = not isinstance(error, RedisError | OSError)
                log.warning("heartbeat_missed", error=type(error).__name__, exc_info=unexpected)
            else:
                if before is None and not first:
                    log.warning("heartbeat_lapsed")
                    self._lapsed()
                first = False
                self._beaten()
            if self._redis.up:
                await asyncio.sleep(self._lease_s / _BEATS_PER_LEASE)
