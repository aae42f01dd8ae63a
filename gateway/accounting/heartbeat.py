"""The heartbeat of this process in Redis."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.redis.client import RedisClient

log = structlog.get_logger()

# Two heartbeats may be lost before the lease expires.
_BEATS_PER_LEASE = 4


class Heartbeat:
    """Renew this process's heartbeat key.

    Args:
        redis: the connections to Redis, and whether it is up.
        key: the key of this process.
        lease_s: seconds after the last heartbeat until the process counts as dead.
        on_beat: called after each heartbeat.
        on_lapse: called when the key had expired or Redis lost it. Redis may have lost other writes as well.
    """

    def __init__(
        self, redis: RedisClient, key: str, *, lease_s: float, on_beat: Callable[[], None], on_lapse: Callable[[], None]
    ) -> None:
        self._redis = redis
        self._key = key
        self._lease_s = lease_s
        self._on_beat = on_beat
        self._on_lapse = on_lapse

    async def run(self) -> None:
        """Renew the key until canceled, and at once when Redis is up again."""
        first = True
        while True:
            await self._redis.wait_up()
            try:
                before = await self._redis.commands.set(self._key, b"", px=round(self._lease_s * 1000), get=True)
            except Exception as error:
                # The loop survives every error. Without it, other processes would take this one for dead.
                self._redis.failed(error)
                unexpected = not isinstance(error, RedisError | OSError)
                log.warning("heartbeat_missed", error=type(error).__name__, exc_info=unexpected)
            else:
                if before is None and not first:
                    log.warning("heartbeat_lapsed")
                    self._on_lapse()
                first = False
                self._on_beat()
            if self._redis.up:
                await asyncio.sleep(self._lease_s / _BEATS_PER_LEASE)
