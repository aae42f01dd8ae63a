"""Keep the keys of a process equal to those in Redis, and report used keys to Redis."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from gateway.errors import StartupError
from gateway.keys.held import Keyring
from gateway.keys.redis_keyring import HistoryHead

if TYPE_CHECKING:
    from gateway.keys.redis_keyring import RedisKeyring
    from gateway.redis.client import RedisClient

log = structlog.get_logger()

_READ_EVERY_S = 0.5
_REPORT_EVERY_S = 5.0
_REPORTED_AT_ONCE = 1000
_MAX_USED = 200_000
# Keys that Redis has deleted ended long ago, so they may stay in memory for a while.
_MAX_DELETED = 1000
_START_ATTEMPTS = 5


class KeyFollower:
    """Read changes of keys twice a second. While Redis is unavailable, the last known keys stay valid."""

    def __init__(self, redis: RedisClient, in_redis: RedisKeyring, ring: Keyring) -> None:
        self._redis = redis
        self._in_redis = in_redis
        self._ring = ring
        self._head = HistoryHead()
        self._used: set[str] = set()
        self._catching_up = asyncio.Lock()
        self._failed = False

    def record_use(self, sha256: str) -> None:
        """Record the use of a known key."""
        if len(self._used) < _MAX_USED:
            self._used.add(sha256)

    async def start(self) -> None:
        """Read all keys, because unknown keys are rejected. Raises StartupError."""
        for _ in range(_START_ATTEMPTS):
            try:
                await self.catch_up()
            except (RedisError, OSError) as error:
                reason = type(error).__name__
                await asyncio.sleep(_READ_EVERY_S)
            else:
                return
        raise StartupError(f"The API keys cannot be read from Redis ({reason}). Check whether Redis is overloaded.")

    async def follow(self) -> None:
        """Read changes until canceled.

        It also reads while requests avoid Redis: a revoked key must not stay valid because another command was slow.
        """
        while True:
            await asyncio.sleep(_READ_EVERY_S)
            try:
                await self.catch_up()
            except Exception as error:
                # Do not mark Redis as failed: a page of keys may take longer than the commands of requests.
                unexpected = not isinstance(error, RedisError | OSError)
                if unexpected or not self._failed:
                    log.warning("keys_not_read", error=type(error).__name__, exc_info=unexpected)
                self._failed = True
            else:
                self._failed = False

    async def report(self) -> None:
        """Report used keys until canceled."""
        while True:
            await asyncio.sleep(_REPORT_EVERY_S)
            if not self._redis.up:
                continue
            try:
                await self.report_uses()
            except Exception as error:
                unexpected = not isinstance(error, RedisError | OSError)
                log.warning("key_uses_not_written", error=type(error).__name__, exc_info=unexpected)

    async def report_uses(self) -> None:
        """Report used keys to Redis. Keep them for the next call if this fails. Raises RedisError and OSError."""
        while self._used:
            batch = [self._used.pop() for _ in range(min(_REPORTED_AT_ONCE, len(self._used)))]
            try:
                await self._in_redis.record_use(batch)
            except BaseException:
                self._used.update(batch)
                raise

    async def catch_up(self) -> None:
        """Read all changes that Redis has now. Raises RedisError and OSError."""
        async with self._catching_up:
            if not await self._read(self._head):
                # Redis lost its data, or its last changes in a failover. Its current keys apply.
                before = len(self._ring)
                if await self._read(HistoryHead()):
                    log.warning("keys_reloaded", before=before, now=len(self._ring))

    async def _read(self, since: HistoryHead) -> bool:
        """Read changes after `since`, or all keys. Return whether `since` is part of the history."""
        # Collect all keys in a new ring: until it is complete, the known keys stay valid.
        ring = self._ring if since.version else Keyring()
        seen, after = since, since.version
        while True:
            page = await self._in_redis.read(seen, after)
            if not page.known:
                return False
            if page.unreadable:
                # They stay in Redis, because a newer version of the gateway may be able to read them.
                log.error("keys_unreadable", keys=page.unreadable)
            ring.update(page.keys)
            if page.last:
                break
            seen, after = page.head, page.read_version
        if ring is not self._ring:
            self._ring.replace_with(ring)
        self._ring.mark_read(page.redis_s)
        # Redis deletes keys that ended long ago without a change record. Read all keys again to free their memory.
        self._head = HistoryHead() if len(self._ring) > page.total_keys + _MAX_DELETED else page.head
        return True
