"""Keeps a process's keys as they are in Redis, and tells Redis which of them are in use."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from gateway.errors import StartupError
from gateway.keys.redis_keyring import HistoryHead
from gateway.keys.ring import Keyring

if TYPE_CHECKING:
    from gateway.keys.redis_keyring import RedisKeyring
    from gateway.redis.client import RedisClient

log = structlog.get_logger()

_LOOK_EVERY_S = 0.5
_TELL_EVERY_S = 5.0
_TOLD_AT_ONCE = 1000
_MOST_SEEN = 200_000
# Keys that Redis has forgotten do not hold anyway, so they may stand here for a while.
_MOST_FORGOTTEN = 1000
_TRIES_AT_START = 5


class KeyFollower:
    """Looks for changes twice a second. While Redis is away what was last read holds on."""

    def __init__(self, redis: RedisClient, in_redis: RedisKeyring, ring: Keyring) -> None:
        self._redis = redis
        self._in_redis = in_redis
        self._ring = ring
        self._head = HistoryHead()
        self._seen: set[str] = set()
        self._catching_up = asyncio.Lock()
        self._failed = False

    def record_use(self, sha256: str) -> None:
        """A key of those that are known was used."""
        if len(self._seen) < _MOST_SEEN:
            self._seen.add(sha256)

    async def start(self) -> None:
        """Read all keys: before that, those who have one would be turned away. Raises StartupError."""
        for _ in range(_TRIES_AT_START):
            try:
                await self.catch_up()
            except (RedisError, OSError) as error:
                why = type(error).__name__
                await asyncio.sleep(_LOOK_EVERY_S)
            else:
                return
        raise StartupError(f"The callers' keys cannot be read from Redis ({why}). Is it overloaded?")

    async def follow(self) -> None:
        """Read what changes, for ever.

        Also while requests let Redis rest: a key that is revoked must not hold on because something else was slow.
        """
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                await self.catch_up()
            except Exception as error:
                # Requests find out for themselves whether Redis is slow for them: a page of keys may take longer.
                if not self._failed or not _expected(error):
                    log.warning("keys_not_read", error=type(error).__name__, exc_info=not _expected(error))
                self._failed = True
            else:
                self._failed = False

    async def report(self) -> None:
        """Tell which keys are in use, for ever."""
        while True:
            await asyncio.sleep(_TELL_EVERY_S)
            if not self._redis.up:
                continue
            try:
                await self.report_uses()
            except Exception as error:
                log.warning("key_uses_not_written", error=type(error).__name__, exc_info=not _expected(error))

    async def report_uses(self) -> None:
        """Tell which keys are in use. Raises RedisError and OSError; what was not told is told the next time."""
        while self._seen:
            some = [self._seen.pop() for _ in range(min(_TOLD_AT_ONCE, len(self._seen)))]
            try:
                await self._in_redis.record_use(some)
            except BaseException:
                self._seen.update(some)
                raise

    async def catch_up(self) -> None:
        """Know what Redis knows now. Raises RedisError and OSError."""
        async with self._catching_up:
            if not await self._read(self._head):
                # Redis has begun anew, or lost the last moments in a failover: what it has now is what counts.
                before = len(self._ring)
                if await self._read(HistoryHead()):
                    log.warning("keys_reloaded", before=before, now=len(self._ring))

    async def _read(self, since: HistoryHead) -> bool:
        """Read what came after `since`, or all: whether `since` is still a part of the history."""
        # All that is read anew is gathered apart: until it is whole, what was known holds.
        ring = self._ring if since.version else Keyring()
        seen, after = since, since.version
        while True:
            page = await self._in_redis.read(seen, after)
            if not page.known:
                return False
            if page.unreadable:
                # They stay in Redis: a newer version of the gateway may be able to read them.
                log.error("keys_unreadable", keys=page.unreadable)
            ring.update(page.keys)
            if page.last:
                break
            seen, after = page.head, page.read_version
        if ring is not self._ring:
            self._ring.replace_with(ring)
        self._ring.mark_read(page.redis_s)
        # Redis forgets keys that ended long ago and says nothing of it. They do not hold, and take room.
        self._head = HistoryHead() if len(self._ring) > page.total_keys + _MOST_FORGOTTEN else page.head
        return True


def _expected(error: Exception) -> bool:
    return isinstance(error, RedisError | OSError)
