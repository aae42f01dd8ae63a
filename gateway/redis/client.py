"""Connections to Redis: short timeouts for requests, separate connections for blocking commands, and a circuit breaker.

A slow Redis is worse than one that is down, since each request waits for its timeout. So the first failure opens the
breaker for the whole process. Only the watch closes it. The pause grows while Redis answers the watch but fails
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
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError, RedisError, ResponseError

from gateway.config.scalars import PERCENT_ENCODE
from gateway.errors import StartupError
from gateway.redis.connection import connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

MINIMUM_VERSION = (7, 0)
MAX_QUERIES = 200
"""Connections of `queries`, unless the URL sets `max_connections`."""
# A peer that vanished is detected after 5 + 3 * 2 seconds instead of the system's two hours. TCP_KEEPALIVE is macOS's
# name of TCP_KEEPIDLE. Some platforms lack the options.
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPALIVE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
_LOCAL_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# Shorter than the default `redis.lease`, so that a process keeps its lease while it pauses.
MAX_BACKOFF_S = 8.0


class ReconnectBackoff:
    """The pause after a failure of Redis, until `until`. It doubles with each failure, up to `MAX_BACKOFF_S`.

    It restarts at `first_s` after Redis worked for `MAX_BACKOFF_S`. Each attempt costs waiting requests time. Times are
    seconds of one clock, passed as `now`.
    """

    def __init__(self, first_s: float) -> None:
        self._first_s, self._last_s, self.until = first_s, 0.0, -math.inf

    def begin(self, now: float) -> None:
        """Begin a pause after a failure."""
        restarts = now > self.until + MAX_BACKOFF_S
        self._last_s = self._first_s if restarts else min(2 * self._last_s, MAX_BACKOFF_S)
        self.until = now + self._last_s


class RedisClient:
    """The connections of this process to Redis, and the circuit breaker. A command takes at most `timeout_s`.

    Attributes:
        commands: for requests.
        queries: for reads by callers. It has its own connection limit, so that callers cannot use up the connections
            of `commands`. Slots divide them between tenants.
        listening: for subscriptions.
        max_queries: the connection limit of `queries`.
        on_restart: called when Redis was restarted or replaced. It may have lost writes.
        unchanged_at: loop time of the last check that found the same Redis as before; -inf before the first check.
        up: False from the first failure until Redis answers the watch after the pause. Check it before awaiting Redis
            for a request, and continue without Redis where it is False.
    """

    def __init__(self, url: str, *, timeout_s: float, metrics: Metrics, check_interval_s: float = 0.5) -> None:
        # Retry once at once: Redis may have closed a pooled connection while it was idle.
        retry = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
        # The scripts' replies are decoded as RESP2.
        options: dict[str, Any] = {"connect_timeout_s": timeout_s, "protocol": 2}
        if not url.startswith("unix:"):
            options["socket_keepalive"] = True  # detect a peer that vanished
            options["socket_keepalive_options"] = {
                getattr(socket, name): value for name, value in _KEEPALIVE.items() if hasattr(socket, name)
            }
        try:
            address = urlsplit(url)
            # Without user and password.
            self._address = f"{address.hostname}:{address.port or 6379}" if address.hostname else address.path
            self.commands = connect(url, command_timeout_s=timeout_s, retry=retry, **options)
            self.queries = connect(
                url, command_timeout_s=timeout_s, retry=retry, max_connections=MAX_QUERIES, **options
            )
            self.max_queries: int = self.queries.connection_pool.max_connections
            # Subscribers reconnect by themselves, since they must resubscribe.
            self.listening = connect(url, command_timeout_s=None, retry=Retry(NoBackoff(), 0), **options)
        except (ValueError, TypeError, RedisError):
            # The library's message quotes the URL, which may contain the password.
            raise StartupError(
                f"redis.url is invalid: correct it in config.yaml or GKT_REDIS_URL, and {PERCENT_ENCODE}."
            ) from None
        self._metrics, self._check_interval_s = metrics, check_interval_s
        self.on_restart: Callable[[], None] = lambda: None
        self._run_id: str | None = None
        self.unchanged_at = -math.inf
        self.up = True
        self._backoff = ReconnectBackoff(check_interval_s)
        self._is_up = asyncio.Event()
        self._is_up.set()

    def failed(self, error: Exception) -> bool:
        """Report a failed command. It opens the breaker until Redis answers the watch.

        Return whether the error is unexpected, so that a log line needs its traceback: not of Redis or the network.
        Two kinds of errors are ignored: error replies of Redis, such as a script's, and local errors, such as a lack
        of connections or files.
        """
        if isinstance(error, RedisError | OSError) and not isinstance(error, ResponseError) and not _is_local(error):
            self._set_up(up=False, error=type(error).__name__)
        return not isinstance(error, RedisError | OSError)

    async def wait_up(self) -> None:
        """Wait until the breaker is closed."""
        await self._is_up.wait()

    async def wait_answered(self) -> None:
        """Wait until Redis has answered a command that is sent after this call."""
        while True:
            await self.wait_up()
            try:
                await self.commands.info("server")
            except (RedisError, OSError) as error:
                self.failed(error)
                await asyncio.sleep(self._check_interval_s)
            else:
                return

    async def require(self, *, embedded: bool = True) -> None:
        """Check at startup that Redis is up and recent enough. Raises StartupError, which may suggest `embedded`."""
        try:
            info = await self.commands.info("server")
        except (RedisError, OSError, ValueError) as error:  # ValueError: invalid TLS options
            advice = "Start it, or correct redis.url in config.yaml or GKT_REDIS_URL."
            if embedded:
                advice = "Start it, correct redis.url in config.yaml or GKT_REDIS_URL, or write 'url: embedded'."
            reason = type(error).__name__
            raise StartupError(f"Redis at {self._address} does not answer ({reason}). {advice}") from error
        version = str(info["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_VERSION:
            minimum = ".".join(map(str, MINIMUM_VERSION))
            raise StartupError(f"Redis {version} is too old: version {minimum} or later is required.")
        self._run_id = info.get("run_id")
        self._metrics.redis_up.set(1)

    async def watch(self) -> None:
        """Check Redis in intervals until canceled, so that an idle process detects an outage as well."""
        while True:
            started_at = asyncio.get_running_loop().time()
            try:
                info = await self.commands.info("server")
            except (RedisError, OSError) as error:
                self.failed(error)
            else:
                self._check_run_id(info.get("run_id"))
                self.unchanged_at = started_at
                if asyncio.get_running_loop().time() >= self._backoff.until:
                    self._set_up(up=True)
            await asyncio.sleep(self._check_interval_s)

    def _check_run_id(self, run_id: str | None) -> None:
        previous, self._run_id = self._run_id, run_id
        if previous is not None and run_id != previous:
            log.warning("redis_restarted")
            self.on_restart()

    def _set_up(self, *, up: bool, error: str | None = None) -> None:
        self._metrics.redis_up.set(int(up))
        if up == self.up:
            return
        self.up = up
        if up:
            self._is_up.set()
        else:
            self._is_up.clear()
            self._backoff.begin(asyncio.get_running_loop().time())
        log.warning("redis", up=up, error=error)

    async def close(self) -> None:
        await self.commands.aclose()
        await self.queries.aclose()
        await self.listening.aclose()


def _is_local(error: BaseException | None) -> bool:
    """Return whether the error is local to this process. The library wraps the system's error."""
    while error is not None:
        if isinstance(error, MaxConnectionsError) or (isinstance(error, OSError) and error.errno in _LOCAL_ERRNOS):
            return True
        error = error.__cause__ or error.__context__
    return False
