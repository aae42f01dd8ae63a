"""How the archive is doing: what the process that fills it says of it, and all others repeat."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import structlog
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from gateway.metrics import Metrics
    from gateway.redis_client import RedisClient
    from gateway.redis_keys import LedgerKeys

log = structlog.get_logger()

HEAR_EVERY_S = 2.0
_GOOD_FOR_MS = 15_000
NOBODY = "nobody fills it"


class ArchiveState(msgspec.Struct, frozen=True):
    """Attributes:
    up: whether the last write went well; None: it is not known yet.
    lag_s: for how long the oldest receipt waits to be archived.
    waiting: how many do.
    error: what is wrong, in a word.
    by: the process that fills it.
    """

    up: bool | None = None
    lag_s: float = 0.0
    waiting: int = 0
    error: str | None = None
    by: str | None = None


class ArchiveBoard:
    """Where the state is told and heard. Methods that ask Redis raise RedisError and OSError.

    Attributes:
        state: what is known.
    """

    def __init__(self, redis: Redis, keys: LedgerKeys, metrics: Metrics, where: str) -> None:
        self._redis = redis
        self._key = keys.archive
        self._metrics = metrics
        self.where = where
        self.state = ArchiveState()
        self._unheard = False

    async def tell(self, state: ArchiveState) -> None:
        """Let everybody know."""
        self._know(state)
        await self._redis.set(self._key, msgspec.json.encode(state), px=_GOOD_FOR_MS)

    async def hear(self) -> None:
        """Ask what was told last."""
        raw = await self._redis.get(self._key)
        if raw is not None:
            self._know(msgspec.json.decode(raw, type=ArchiveState))
        elif self._unheard:
            self._know(ArchiveState(up=False, error=NOBODY))
        # The first time another process may just be taking over.
        self._unheard = raw is None

    async def follow(self, client: RedisClient) -> None:
        """Hear it every other second, for ever: of a process that does not fill the archive itself."""
        while True:
            await client.wait_up()
            try:
                await self.hear()
            except Exception as error:
                client.failed(error)
                if not isinstance(error, RedisError | OSError):
                    log.warning("archive_unheard", error=type(error).__name__, exc_info=True)
            await asyncio.sleep(HEAR_EVERY_S)

    def _know(self, state: ArchiveState) -> None:
        self.state = state
        self._metrics.archive_up.set(int(state.up is True))
        self._metrics.archive_lag.set(state.lag_s)
        self._metrics.archive_waiting.set(state.waiting)
