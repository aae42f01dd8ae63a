"""Read from a replica of the usage database, and from the database itself while the replica fails."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolTimeout

from gateway.errors import StartupError
from gateway.usage.engine import UsageDatabaseError, UsageEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

log = structlog.get_logger()

_RETRY_S = 30.0
_MEASURE_EVERY_S = 15.0
# Without new transactions on the primary, a replica that has everything would seem to lag. Without a connection to the
# primary, a replica has everything that it received, and nothing newer.
_LAG = text(
    "SELECT CASE WHEN NOT pg_is_in_recovery() OR (pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() "
    "AND EXISTS (SELECT FROM pg_stat_wal_receiver)) THEN 0 "
    "ELSE EXTRACT(EPOCH FROM now() - pg_last_xact_replay_timestamp()) END"
)


class UsageEngines:
    """The usage database and its replica, if there is one. `clock` returns monotonic seconds."""

    def __init__(
        self, primary: UsageEngine, replica: UsageEngine | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._primary, self._replica, self._clock = primary, replica, clock
        self._retry_at: float | None = None  # after a failure of the replica

    def reading(self) -> Connection:
        """Begin a read transaction. After a failure of the replica, use the primary for 30 s. Raises UsageDatabaseError
        and StartupError."""
        if self._replica is None or (self._retry_at is not None and self._clock() < self._retry_at):
            return self._primary.reading()
        if self._retry_at is not None:
            self._retry_at = self._clock() + _RETRY_S  # one thread tries, because a hanging host delays it
        try:
            connection = self._replica.reading()
        except PoolTimeout:
            raise  # all connections are in use: the primary must not get the rest
        except (*UsageDatabaseError, StartupError) as error:
            self._retry_at = self._clock() + _RETRY_S
            name = type(getattr(error, "orig", None) or error).__name__
            why = error.message if isinstance(error, StartupError) else None
            log.warning("usage_replica_unavailable", replica=str(self._replica), error=name, why=why, retry_s=_RETRY_S)
            return self._primary.reading()
        if self._retry_at is not None:
            self._retry_at = None
            log.info("usage_replica_available", replica=str(self._replica))
        return connection

    @property
    def location(self) -> str:
        """Return the URL of the replica without its credentials."""
        return str(self._replica)

    def lag_s(self) -> float:
        """See `lag_of`."""
        return 0.0 if self._replica is None else lag_of(self._replica)

    def close(self) -> None:
        """Close all connections that are not in use."""
        for engine in (self._primary, self._replica):
            if engine is not None:
                engine.close()


class ReplicaLag:
    """Measure the lag of a replica for the metrics of the fleet. `clock` returns monotonic seconds."""

    def __init__(self, replica: UsageEngine, clock: Callable[[], float] = time.monotonic) -> None:
        self._replica, self._clock = replica, clock
        self._lag_s, self._measured_at = 0.0, clock()
        self._failing = False

    def lag_s(self) -> float:
        """Return the lag in seconds. While the replica is unavailable, the lag grows."""
        return self._lag_s + (self._clock() - self._measured_at if self._failing else 0.0)

    async def run(self, every_s: float = _MEASURE_EVERY_S) -> None:
        """Measure until canceled. A failure is logged once."""
        while True:
            await self.measure()
            await asyncio.sleep(every_s)

    async def measure(self) -> None:
        """Measure once."""
        try:
            lag_s = await asyncio.to_thread(lag_of, self._replica)
        except (*UsageDatabaseError, StartupError) as error:
            if not self._failing:
                name = type(getattr(error, "orig", None) or error).__name__
                log.warning("usage_replica_not_measured", replica=str(self._replica), error=name)
            self._failing = True
        else:
            self._lag_s, self._measured_at, self._failing = lag_s, self._clock(), False

    async def close(self) -> None:
        """Close the connection."""
        await asyncio.to_thread(self._replica.close)


def lag_of(replica: UsageEngine) -> float:
    """Return the age of the last transaction that the replica has applied, in seconds. 0: it has applied everything.

    A replica without a connection to the primary lags, too. Raises UsageDatabaseError and StartupError.
    """
    with replica.reading() as connection:
        return float(connection.execute(_LAG).scalar() or 0.0)


def engines_of(address: str, replica: str | None, connections: int) -> UsageEngines:
    """Return the database and its replica, each with at most `connections` connections."""
    read = None if replica is None else replica_engine(replica, connections)
    return UsageEngines(UsageEngine(address, connections=connections), read)


def replica_engine(address: str, connections: int, role: str = "gkt-gateway") -> UsageEngine:
    """Return the engine of a replica."""
    return UsageEngine(address, connections=connections, role=role, read_only=True)
