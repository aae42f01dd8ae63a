"""The connections to Redis: short deadlines for requests, connections of their own for what blocks, and a breaker.

A slow Redis is worse than a dead one: each request would wait for its whole timeout. So the first failure opens the
breaker for everybody, and only the watch closes it: later each time, while what answers the watch goes on failing the
requests.
"""

from __future__ import annotations

import asyncio
import errno
import math
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError, RedisError, ResponseError

from gateway.config.redis_url import ENCODE
from gateway.errors import StartupError
from gateway.redis.connection import use_loop_deadlines

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

MINIMUM_VERSION = (7, 0)
MAX_QUERIES = 200
"""Connections of `queries`, unless the address says `max_connections`."""
_LOOK_EVERY_S = 0.5
# A peer that vanished without a word is given up after 5 + 3 * 2 seconds; the system's own patience is two hours. Not
# every platform can be told.
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
_LOCAL_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# Shorter than `redis.lease` by default: a process that rests is not given up by its fleet.
LONGEST_REST_S = 8.0


class ReconnectBackoff:
    """For how long Redis is left alone after it failed: twice as long as the last time, unless it went well since then
    for as long as the longest rest. Who fails often is not tried often: each try costs those who wait for it its time.

    Times are seconds on one clock, handed in as `now`.

    Attributes:
        until: when Redis may be asked again.
    """

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s
        self._last_s = 0.0
        self.until = -math.inf

    def begin(self, now: float) -> None:
        """Redis failed."""
        anew = now > self.until + LONGEST_REST_S
        self._last_s = self._first_s if anew else min(2 * self._last_s, LONGEST_REST_S)
        self.until = now + self._last_s


class RedisClient:
    """Args:
    timeout_s: how long a command may take.

    Attributes:
        queries: for what callers read as often as they like. Its connections are bounded apart, so that a crowd of
            callers leaves `commands` the connections that requests need. Slots divide them between tenants.
        max_queries: how many connections `queries` has at most.
        on_restart: called when Redis is another one than before, or was started anew: it may have forgotten something.
        same_at: loop time at which Redis was last asked and was the same as before; -inf before the watch has asked.
        up: False from the first failure until the watch has seen Redis answer, after a rest. Whoever is about to await
            Redis for a request asks this first, and goes on without Redis when it says False.
    """

    def __init__(self, url: str, *, timeout_s: float, metrics: Metrics) -> None:
        # One retry, at once: a connection of the pool that Redis closed meanwhile says nothing about Redis.
        retry = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
        # The scripts' replies are read as version 2 of the protocol writes them.
        connecting: dict[str, Any] = {"connect_timeout_s": timeout_s, "protocol": 2}
        if not url.startswith("unix:"):
            connecting["socket_keepalive"] = True  # a peer that vanished must not be waited for
            connecting["socket_keepalive_options"] = {
                getattr(socket, name): value for name, value in _KEEPALIVE.items() if hasattr(socket, name)
            }
        try:
            address = urlsplit(url)
            # Without what may be a password.
            self._where = f"{address.hostname}:{address.port or 6379}" if address.hostname else address.path
            self.commands = use_loop_deadlines(
                Redis.from_url(url, command_timeout_s=timeout_s, retry=retry, **connecting)
            )
            self.queries = use_loop_deadlines(
                Redis.from_url(url, command_timeout_s=timeout_s, retry=retry, max_connections=MAX_QUERIES, **connecting)
            )
            self.max_queries: int = self.queries.connection_pool.max_connections
            # Who listens connects anew by itself, and must know when it did.
            self.listening = use_loop_deadlines(
                Redis.from_url(url, command_timeout_s=None, retry=Retry(NoBackoff(), 0), **connecting)
            )
        except (ValueError, TypeError, RedisError):
            # The client quotes what it cannot read, and that may be a part of the password.
            raise StartupError(
                f"redis.url cannot be read: correct it in config.yaml or GKT_REDIS_URL, and {ENCODE}."
            ) from None
        self._metrics = metrics
        self.on_restart: Callable[[], None] = _nothing
        self._run_id: str | None = None
        self.same_at = -math.inf
        self.up = True
        self._rest = ReconnectBackoff(_LOOK_EVERY_S)
        self._answers = asyncio.Event()
        self._answers.set()

    def failed(self, error: Exception) -> None:
        """Tell that a command failed. Nobody awaits Redis again until it has answered the watch.

        An error that Redis itself replied with, such as a script's, does not count: it answered. Nor does one that has
        nothing to do with Redis, such as a lack of connections or files in this process.
        """
        if isinstance(error, RedisError | OSError) and not isinstance(error, ResponseError) and not _is_local(error):
            self._turn(up=False, error=type(error).__name__)

    async def wait_up(self) -> None:
        """Wait until Redis is there, as far as is known."""
        await self._answers.wait()

    async def answered(self) -> None:
        """Wait until Redis has answered a question that is asked from now on."""
        while True:
            await self.wait_up()
            try:
                await self.commands.info("server")
            except (RedisError, OSError) as error:
                self.failed(error)
                await asyncio.sleep(_LOOK_EVERY_S)
            else:
                return

    async def require(self, *, embedded: bool = True) -> None:
        """Refuse to start without a Redis that is there and new enough. Raises StartupError.

        Args:
            embedded: whether one of its own would do for who asks, and is to be advised.
        """
        try:
            info = await self.commands.info("server")
        except (RedisError, OSError, ValueError) as error:  # ValueError: TLS options that cannot be
            do = "Start it, or correct redis.url in config.yaml or GKT_REDIS_URL."
            if embedded:
                do = "Start it, correct redis.url in config.yaml or GKT_REDIS_URL, or write 'url: embedded'."
            raise StartupError(f"Redis at {self._where} does not answer ({type(error).__name__}). {do}") from error
        version = str(info["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_VERSION:
            wanted = ".".join(map(str, MINIMUM_VERSION))
            raise StartupError(f"Redis {version} is too old: at least {wanted} is needed.")
        self._run_id = info.get("run_id")
        self._metrics.redis_up.set(1)

    async def watch(self) -> None:
        """Look twice a second, for ever. A process that asks Redis for nothing learns of its absence here too."""
        while True:
            asked_at = asyncio.get_running_loop().time()
            try:
                info = await self.commands.info("server")
            except (RedisError, OSError) as error:
                self.failed(error)
            else:
                self._know(info.get("run_id"))
                self.same_at = asked_at
                if asyncio.get_running_loop().time() >= self._rest.until:
                    self._turn(up=True)
            await asyncio.sleep(_LOOK_EVERY_S)

    def _know(self, run_id: str | None) -> None:
        before, self._run_id = self._run_id, run_id
        if before is not None and run_id != before:
            log.warning("redis_restarted")
            self.on_restart()

    def _turn(self, *, up: bool, error: str | None = None) -> None:
        self._metrics.redis_up.set(int(up))
        if up == self.up:
            return
        self.up = up
        if up:
            self._answers.set()
        else:
            self._answers.clear()
            self._rest.begin(asyncio.get_running_loop().time())
        log.warning("redis", up=up, error=error)

    async def close(self) -> None:
        await self.commands.aclose()
        await self.queries.aclose()
        await self.listening.aclose()


def _is_local(error: BaseException | None) -> bool:
    """Return whether this process lacks what it needs to ask Redis. The client wraps the system's error."""
    while error is not None:
        if isinstance(error, MaxConnectionsError) or (isinstance(error, OSError) and error.errno in _LOCAL_ERRNOS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _nothing() -> None:
    return
