"""Connections to Redis: short timeouts for requests, separate connections for blocking commands, and a circuit breaker.

A slow Redis is worse than one that is down, since each request waits for its timeout. So the first failure opens the
breaker for the whole process. Only the watch closes it. The pause grows while Redis answers the watch but fails
requests.
"""

from __future__ import annotations

import asyncio
import errno
import math
import time
from typing import TYPE_CHECKING, Any

import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ClusterDownError, MaxConnectionsError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from gateway.config.redis_url import redis_address
from gateway.config.scalars import PERCENT_ENCODE
from gateway.errors import StartupError
from gateway.redis.cluster_client import NODE
from gateway.redis.servers import servers_of
from gateway.redis.slots import is_cluster
from gateway.redis.topology import NodeDown, SlotNotServed, ranges_text, slot_count

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from gateway.redis.servers import Checks
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

MINIMUM_VERSION = (7, 0)
MIN_SKEW_S = 1.0
"""Smaller differences of clocks are ignored: the measurement includes delays of the event loop."""
MAX_QUERIES = 200
"""Connections of `queries`, unless the URL sets `max_connections`."""
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


class _Node:
    """The state of a node that fails separately: a server, a master, or a primary of a cluster."""

    def __init__(self, first_pause_s: float) -> None:
        self.up = True
        self.since = math.inf  # loop time since which its breaker is closed; infinity before the first reply
        self.run_id: str | None = None
        self.backoff = ReconnectBackoff(first_pause_s)


class RedisClient:
    """The connections of this process to Redis, and the circuit breaker. A command takes at most `timeout_s`.

    In a cluster each primary has a breaker. Commands for a node whose breaker is open fail at once.

    Attributes:
        commands: for requests.
        queries: for reads by callers. It has its own connection limit, so that callers cannot use up the connections
            of `commands`. Slots divide them between tenants.
        listening: for subscriptions.
        max_queries: the connection limit of `queries`.
        timeout_s: the longest duration of a command.
        is_cluster: whether nodes fail separately.
        on_restart: called when Redis was restarted or replaced. It may have lost writes.
        unchanged_at: loop time of the last check that found the same Redis as before; -inf before the first check.
        up: False from the first failure until Redis answers the watch after the pause. Check it before awaiting Redis
            for a request, and continue without Redis where it is False. In a cluster: whether some primary is up.
        clock_skew_s: how far the clock of this host is ahead of Redis' clock; 0 below `MIN_SKEW_S`.
    """

    def __init__(self, url: str, *, timeout_s: float, metrics: Metrics, check_interval_s: float = 0.5) -> None:
        # Retry once at once: Redis may have closed a pooled connection while it was idle.
        retry = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
        try:
            self._servers = servers_of(redis_address(url), timeout_s)
            self.commands = self._servers.open(command_timeout_s=timeout_s, retry=retry)
            self.queries = self._servers.open(command_timeout_s=timeout_s, retry=retry, max_connections=MAX_QUERIES)
            self.is_cluster = is_cluster(self.commands)
            self.max_queries = self._servers.max_connections(self.queries)
            # Subscribers reconnect by themselves, since they must resubscribe.
            self.listening = self._servers.open(command_timeout_s=None, retry=Retry(NoBackoff(), 0))
        except (ValueError, TypeError, RedisError):
            # The library's message quotes the URL, which may contain the password.
            raise StartupError(
                f"redis.url is invalid: correct it in config.yaml or GKT_REDIS_URL, and {PERCENT_ENCODE}."
            ) from None
        self.timeout_s = timeout_s
        self._metrics, self._check_interval_s = metrics, check_interval_s
        self.on_restart: Callable[[], None] = lambda: None
        self._nodes = {"": _Node(check_interval_s)}
        self._unserved = self._servers.unserved
        self._run_ids: set[str] = set()  # of all nodes by the last check of the watch
        self.unchanged_at = -math.inf
        self.clock_skew_s = 0.0
        self.up = True
        self._is_up = asyncio.Event()
        self._is_up.set()

    @property
    def problems(self) -> Sequence[str]:
        """Return what is wrong with the servers. A cluster may have problems while it is up."""
        return self._servers.problems

    @property
    def is_whole(self) -> bool:
        """Return whether no breaker is open, and some node serves each slot of a cluster."""
        return all(node.up for node in self._nodes.values()) and not self._servers.unserved

    def now(self) -> float:
        """Return Unix seconds by the clock of Redis, so that receipts and queries of all hosts have one clock."""
        return time.time() - self.clock_skew_s

    def is_up(self, key: str) -> bool:
        """Return whether the breaker of a key's node is closed."""
        return self.up and self._servers.is_up(key)

    def up_since(self, key: str) -> float:
        """Return the loop time since which this process reaches a key's node without failure; infinity if it failed."""
        return max(self._nodes[""].since, self._servers.up_since(key))

    def failed(self, error: Exception) -> bool:
        """Report a failed command. It opens the breaker until Redis answers the watch.

        Return whether the error is unexpected, so that a log line needs its traceback: not of Redis or the network.
        Two kinds of errors are ignored: error replies of Redis, such as a script's, and local errors, such as a lack
        of connections or files. The reply READONLY counts as an outage, since the server has become a replica, and so
        does CLUSTERDOWN.
        """
        is_reply = isinstance(error, ResponseError) and not isinstance(error, ReadOnlyError | ClusterDownError)
        is_known = isinstance(error, NodeDown | SlotNotServed)  # the breaker of the node is open, or the slot has none
        if isinstance(error, RedisError | OSError) and not (is_reply or is_known or _is_local(error)):
            self._set_up(getattr(error, NODE, ""), up=False, error=type(error).__name__)
        return not isinstance(error, RedisError | OSError)

    async def wait_up(self) -> None:
        """Wait until the breaker is closed."""
        await self._is_up.wait()

    async def keep_reading(self, read: Callable[[], Awaitable[object]], every_s: float, event: str) -> None:
        """Call `read` in intervals while the breaker is closed, until canceled. Log an unexpected error as `event`."""
        while True:
            await self.wait_up()
            try:
                await read()
            except Exception as error:
                if self.failed(error):
                    log.warning(event, error=type(error).__name__, exc_info=True)
            await asyncio.sleep(every_s)

    async def wait_answered(self) -> None:
        """Wait until Redis has answered a command that is sent after this call."""
        while True:
            await self.wait_up()
            checks = await self._check()
            self._report(checks)
            if _answers(checks):
                return
            await asyncio.sleep(self._check_interval_s)

    async def require(self, *, embedded: bool = True) -> None:
        """Check at startup that Redis is up, recent enough, and accepts writes.

        A cluster is used as far as it answers. Raises StartupError, which may suggest `embedded`.
        """
        checks = await self._check()
        infos = _answers(checks)
        if not infos:
            error = next(one for one in checks.values() if isinstance(one, Exception))
            advice = "Start it, or correct redis.url in config.yaml or GKT_REDIS_URL."
            if embedded:
                advice = "Start it, correct redis.url in config.yaml or GKT_REDIS_URL, or write 'url: embedded'."
            raise StartupError(f"{await self._servers.explain(error)} {advice}") from error
        for version in (str(info["redis_version"]) for info in infos):
            if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_VERSION:
                minimum = ".".join(map(str, MINIMUM_VERSION))
                raise StartupError(f"Redis {version} is too old: version {minimum} or later is required.")
        self._report(checks)
        self._follow_run_ids(checks)
        for problem in self.problems:
            log.error("redis_problem", problem=problem)
        self._metrics.redis_up.set(int(self.is_whole))

    async def watch(self) -> None:
        """Check Redis in intervals until canceled, so that an idle process detects an outage as well."""
        while True:
            loop = asyncio.get_running_loop()
            started_at = loop.time()
            checks = await self._check()
            failures = self._report(checks)
            if self._follow_run_ids(checks):
                log.warning("redis_restarted")
                self.on_restart()
            if not failures:
                self.unchanged_at = started_at
            for name in checks.keys() - failures:
                if loop.time() >= self._nodes[name].backoff.until:
                    self._set_up(name, up=True)
            await asyncio.sleep(self._check_interval_s)

    async def _check(self) -> Checks:
        """Ask each node for its state, and compare the clock of this host with theirs."""
        began = time.time()
        checks = await self._servers.check(self.commands)
        ended = time.time()
        times_us = sorted(int(info["server_time_usec"]) for info in _answers(checks) if "server_time_usec" in info)
        if times_us and abs(ended - began) < MIN_SKEW_S:
            skew_s = (began + ended) / 2 - times_us[len(times_us) // 2] / 1_000_000
            # A skew near the limit must not change the clock at each check.
            least_s = MIN_SKEW_S / 2 if self.clock_skew_s else MIN_SKEW_S
            self._set_skew(skew_s if abs(skew_s) >= least_s else 0.0)
        return checks

    def _set_skew(self, skew_s: float) -> None:
        if abs(skew_s - self.clock_skew_s) >= MIN_SKEW_S:
            self.clock_skew_s = skew_s
            log.warning("clock_skew", skew_s=round(skew_s, 3))
        self._metrics.usage.clock_skew.set(self.clock_skew_s)

    def _report(self, checks: Checks) -> set[str]:
        """Report failed checks. Return the names of their nodes."""
        if len(checks) > 1:
            self._nodes = {name: self._nodes.get(name) or _Node(self._check_interval_s) for name in checks}
            self._update()
        failures = {name: one for name, one in checks.items() if isinstance(one, Exception)}
        for name, error in failures.items():
            self._set_up(name, up=False, error=type(error).__name__)
        for name in checks.keys() - failures:
            node = self._nodes[name]
            if node.up and node.since == math.inf:
                node.since = asyncio.get_running_loop().time()
        return set(failures)

    def _follow_run_ids(self, checks: Checks) -> bool:
        """Store the run ids. Return whether a node is another one than before: it may lack writes."""
        # A check removes nodes that are no primaries now. So compare with the run ids before it.
        known, changed = self._run_ids, False
        for name, info in checks.items():
            if not isinstance(info, Exception) and (run_id := info.get("run_id")) is not None:
                changed = changed or (bool(known) and run_id not in known)
                self._nodes[name].run_id = run_id
        self._run_ids = {node.run_id for node in self._nodes.values() if node.run_id is not None} or known
        return changed

    def _set_up(self, name: str, *, up: bool, error: str | None = None) -> None:
        node = self._nodes.setdefault(name, _Node(self._check_interval_s))
        was_up, node.up = node.up, up
        if up != was_up:
            now = asyncio.get_running_loop().time()
            node.since = now if up else math.inf
            if not up:
                node.backoff.begin(now)
            log.warning("redis", up=up, error=error, **({"node": name} if name else {}))
        self._servers.set_up(name, up=up)  # also without a change: a check may have replaced the state of the node
        self._update()

    def _update(self) -> None:
        parts = [node.up for name, node in self._nodes.items() if name]
        self.up = self._nodes[""].up and (any(parts) or not parts)
        if self.up:
            self._is_up.set()
        else:
            self._is_up.clear()
        self._metrics.redis_up.set(int(self.is_whole))
        unserved = self._servers.unserved
        if unserved and unserved != self._unserved:
            log.error("redis_slots_unserved", count=slot_count(unserved), slots=ranges_text(unserved))
        elif self._unserved and not unserved:
            log.warning("redis_slots_served")
        self._unserved = unserved

    async def close(self) -> None:
        await self.commands.aclose()
        await self.queries.aclose()
        await self.listening.aclose()
        await self._servers.close()


def _answers(checks: Checks) -> list[Mapping[str, Any]]:
    return [info for info in checks.values() if info and not isinstance(info, Exception)]


def _is_local(error: BaseException | None) -> bool:
    """Return whether the error is local to this process. The library wraps the system's error."""
    while error is not None:
        if isinstance(error, MaxConnectionsError) or (isinstance(error, OSError) and error.errno in _LOCAL_ERRNOS):
            return True
        error = error.__cause__ or error.__context__
    return False
