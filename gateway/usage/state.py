"""The state of the usage workers in Redis: each worker publishes its own, and gateways read all of them.

A worker's key is also its number in the fleet: the first one that is free. The number names its consumer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from redis.exceptions import RedisError

from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis.asyncio import Redis

    from gateway.redis.client import RedisClient
    from gateway.redis.keys import LedgerKeys
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

PUBLISH_INTERVAL_S = 2.0
MAX_WORKERS = 64
NO_WORKER = "no usage worker runs"
RESULTS = ("inserted", "replaced", "known", "unreadable", "missed", "imported", "deleted")
_VALID_MS = 15_000


class WorkerState(msgspec.Struct, frozen=True):
    """State of one worker, or of the fleet.

    Attributes:
        up: whether the last write succeeded; None: unknown.
        lag_s: age of the oldest receipt that waits to be written, in seconds.
        waiting: receipts that wait.
        error: the class of the error that the last write failed with.
        by: the process; of the fleet all of them.
    """

    up: bool | None = None
    lag_s: float = 0.0
    waiting: int = 0
    error: str | None = None
    by: str | None = None


class WorkerLease:
    """The number of one worker, held while the worker renews it. Methods raise RedisError and OSError.

    Attributes:
        number: 1 and more; 0 before `join`.
    """

    def __init__(self, redis: Redis, keys: LedgerKeys, owner: str) -> None:
        self._redis = redis
        self._keys = keys
        self.owner = owner
        self.number = 0

    async def join(self) -> None:
        """Take the first free number. Raises StartupError where there is none."""
        state = msgspec.json.encode(WorkerState(by=self.owner))
        for number in range(1, MAX_WORKERS + 1):
            if await self._redis.set(self._keys.worker(number), state, nx=True, px=_VALID_MS):
                self.number = number
                return
        raise StartupError(f"{MAX_WORKERS} usage workers run already on this Redis: no more are possible.")

    async def publish(self, state: WorkerState, counts: dict[str, int]) -> None:
        """Publish the state, and add to the numbers of receipts by result."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(self._keys.worker(self.number), msgspec.json.encode(state), px=_VALID_MS)
            for result, count in counts.items():
                if count:
                    pipe.hincrby(self._keys.written, result, count)
            await pipe.execute()

    async def leave(self) -> None:
        """Free the number."""
        if self.number:
            await self._redis.delete(self._keys.worker(self.number))


class WorkerStateReader:
    """The fleet's state, for metrics and readiness.

    Args:
        database: the address, without its password.

    Attributes:
        state: what was read last.
    """

    def __init__(self, redis: Redis, keys: LedgerKeys, metrics: Metrics, database: str) -> None:
        self._redis = redis
        self._keys = keys
        self._metrics = metrics
        self.database = database
        self.state = WorkerState()
        self._missed = False

    async def read(self) -> WorkerState:
        """Read the states of all workers. Raises RedisError and OSError."""
        names = [self._keys.worker(number) for number in range(1, MAX_WORKERS + 1)]
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.mget(names)
            pipe.hgetall(self._keys.written)
            found, written = await pipe.execute()
        states = [msgspec.json.decode(raw, type=WorkerState) for raw in found if raw is not None]
        if states:
            self._show(_merged(states))
        elif self._missed:
            self._show(WorkerState(up=False, error=NO_WORKER))
        # The first time a worker may just be restarting.
        self._missed = not states
        for result in RESULTS:
            self._metrics.usage_receipts.labels(result).set(int(written.get(result.encode(), 0)))
        return self.state

    async def follow(self, client: RedisClient) -> None:
        """Read the state every two seconds, until cancelled."""
        while True:
            await client.wait_up()
            try:
                await self.read()
            except Exception as error:
                client.failed(error)
                if not isinstance(error, RedisError | OSError):
                    log.warning("usage_state_not_read", error=type(error).__name__, exc_info=True)
            await asyncio.sleep(PUBLISH_INTERVAL_S)

    def _show(self, state: WorkerState) -> None:
        self.state = state
        self._metrics.usage_up.set(int(state.up is True))
        self._metrics.usage_lag.set(state.lag_s)
        self._metrics.usage_waiting.set(state.waiting)


def _merged(states: Iterable[Any]) -> WorkerState:
    """Return the state of the fleet: receipts are written while one worker writes them."""
    known = list(states)
    ups = {state.up for state in known}
    return WorkerState(
        up=True if True in ups else False if False in ups else None,
        lag_s=max(state.lag_s for state in known),
        waiting=max(state.waiting for state in known),
        error=next((state.error for state in known if state.error is not None), None),
        by=", ".join(state.by for state in known if state.by is not None),
    )
