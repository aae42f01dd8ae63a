"""State of the usage workers in Redis: each worker publishes its state, and gateways read all states.

A worker's key contains its number in the fleet, the first free one. The number is part of its consumer name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from gateway.redis.client import RedisClient
    from gateway.redis.keys import LedgerKeys
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

PUBLISH_INTERVAL_S = 2.0
MAX_WORKERS = 64
NO_WORKER = "no usage worker runs"
RESULTS = ("inserted", "replaced", "known", "unreadable", "missed", "deleted")
_VALID_MS = 15_000


class WorkerState(msgspec.Struct, frozen=True):
    """State of one worker, or of the fleet."""

    up: bool | None = None
    """Whether the last write succeeded; None: unknown."""
    lag_s: float = 0.0
    """Age of the oldest unwritten receipt."""
    waiting: int = 0
    """Number of unwritten receipts."""
    error: str | None = None
    """Class of the error of the last write."""
    by: str | None = None
    """Id of the process; for the fleet, all ids."""
    replica_lag_s: float | None = None
    """Lag of the read replica; None: there is none."""


class WorkerLease:
    """The number of one worker, which expires unless the worker publishes. Methods raise RedisError and OSError."""

    def __init__(self, redis: Redis, keys: LedgerKeys, process_id: str) -> None:
        self._redis = redis
        self._keys = keys
        self.process_id = process_id
        self.number = 0  # 1 or more after `join`

    async def join(self, max_workers: int = MAX_WORKERS) -> None:
        """Acquire the first free number. Raises StartupError if no number is free."""
        state = msgspec.json.encode(WorkerState(by=self.process_id))
        for number in range(1, max_workers + 1):
            if await self._redis.set(self._keys.worker(number), state, nx=True, px=_VALID_MS):
                self.number = number
                return
        raise StartupError(f"{max_workers} usage workers already use this Redis, which is the limit. Stop one of them.")

    async def publish(self, state: WorkerState, counts: dict[str, int]) -> None:
        """Publish the state and renew the number. Add `counts` to the numbers of receipts by result."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(self._keys.worker(self.number), msgspec.json.encode(state), px=_VALID_MS)
            for result, count in counts.items():
                if count:
                    pipe.hincrby(self._keys.written, result, count)
            await pipe.execute()

    async def leave(self) -> None:
        """Release the number."""
        if self.number:
            await self._redis.delete(self._keys.worker(self.number))


class WorkerStateReader:
    """State of the fleet, for metrics and readiness. `database` is the address without its password."""

    def __init__(self, redis: Redis, keys: LedgerKeys, metrics: Metrics, database: str) -> None:
        self._redis = redis
        self._keys = keys
        self._metrics = metrics
        self.database = database
        self.state = WorkerState()  # read last
        self._missing = False

    async def read(self) -> WorkerState:
        """Read the states of all workers. Raises RedisError and OSError."""
        names = [self._keys.worker(number) for number in range(1, MAX_WORKERS + 1)]
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.mget(names)
            pipe.hgetall(self._keys.written)
            raw_states, written = await pipe.execute()
        states = [msgspec.json.decode(raw, type=WorkerState) for raw in raw_states if raw is not None]
        if states:
            self._set(_merged(states))
        elif self._missing:
            self._set(WorkerState(up=False, error=NO_WORKER))
        # The first time, a worker may be restarting.
        self._missing = not states
        for result in RESULTS:
            self._metrics.usage.receipts.labels(result).set(int(written.get(result.encode(), 0)))
        return self.state

    async def follow(self, client: RedisClient) -> None:
        """Read the state every two seconds, until canceled."""
        await client.keep_reading(self.read, PUBLISH_INTERVAL_S, "usage_state_not_read")

    def _set(self, state: WorkerState) -> None:
        self.state = state
        self._metrics.usage.up.set(int(state.up is True))
        self._metrics.usage.lag.set(state.lag_s)
        self._metrics.usage.waiting.set(state.waiting)
        self._metrics.usage.replica_lag.set(state.replica_lag_s or 0.0)


def _merged(states: Sequence[WorkerState]) -> WorkerState:
    """Return the state of the fleet, which is up while one worker is up."""
    ups = {state.up for state in states}
    return WorkerState(
        up=True if True in ups else False if False in ups else None,
        lag_s=max(state.lag_s for state in states),
        waiting=max(state.waiting for state in states),
        error=next((state.error for state in states if state.error is not None), None),
        by=", ".join(state.by for state in states if state.by is not None),
        replica_lag_s=max((state.replica_lag_s for state in states if state.replica_lag_s is not None), default=None),
    )
