"""The connections to Redis: short deadlines for requests, and connections of their own for what blocks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from gateway.errors import StartupError

if TYPE_CHECKING:
    from gateway.metrics import Metrics

log = structlog.get_logger()

MINIMUM_VERSION = (7, 0)
_LOOK_EVERY_S = 0.5


class RedisClient:
    """Args:
    timeout_s: how long a command may take. A slow Redis is worse than a dead one.
    """

    def __init__(self, url: str, *, timeout_s: float, metrics: Metrics) -> None:
        # One retry, at once: a connection of the pool that Redis closed meanwhile says nothing about Redis.
        retry = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
        address = urlsplit(url)
        # Without what may be a password.
        self._where = f"{address.hostname}:{address.port or 6379}" if address.hostname else address.path
        connecting: dict[str, Any] = {"socket_connect_timeout": timeout_s}
        if not url.startswith("unix:"):
            connecting["socket_keepalive"] = True  # a peer that vanished must not be waited for
        self.commands = Redis.from_url(url, socket_timeout=timeout_s, retry=retry, **connecting)
        # Who listens connects anew by itself, and must know when it did.
        self.listening = Redis.from_url(url, socket_timeout=None, retry=Retry(NoBackoff(), 0), **connecting)
        self._metrics = metrics
        self.up = True

    async def require(self) -> None:
        """Refuse to start without a Redis that is there and new enough. Raises StartupError."""
        try:
            info = await self.commands.info("server")
        except (RedisError, OSError) as error:
            raise StartupError(
                f"Redis at {self._where} does not answer ({type(error).__name__}). Start it, correct redis.url in "
                "config.yaml or GKT_REDIS_URL, or write 'url: embedded'."
            ) from error
        version = str(info["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_VERSION:
            wanted = ".".join(map(str, MINIMUM_VERSION))
            raise StartupError(f"Redis {version} is too old: at least {wanted} is needed.")
        self._metrics.redis_up.set(1)

    async def watch(self) -> None:
        """Look every two seconds, for readiness and the metric; requests find out by themselves."""
        while True:
            try:
                await self.commands.ping()
                up = True
            except (RedisError, OSError):
                up = False
            if up != self.up:
                log.warning("redis", up=up)
            self.up = up
            self._metrics.redis_up.set(int(up))
            await asyncio.sleep(_LOOK_EVERY_S)

    def failed(self, error: Exception) -> None:
        """A command failed: nobody asks again until the watch has seen Redis answer."""
        if self.up:
            log.warning("redis", up=False, error=type(error).__name__)
        self.up = False
        self._metrics.redis_up.set(0)

    async def close(self) -> None:
        await self.commands.aclose()
        await self.listening.aclose()
