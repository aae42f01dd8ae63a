"""Count requests that were rejected before a receipt existed, by HTTP status, error label and tenant.

Rejections cost nothing, so they are in no receipt and not in the usage database. Each process adds its counts to hashes
in Redis, once a second and in the background. The clock of Redis selects the hour and the day. Neither the hashes nor
the memory of a process grow with the number of rejections.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from redis.exceptions import RedisError

from gateway.redis.background import run_on_work
from gateway.redis.script import RedisScript
from gateway.telemetry.series import OTHER

if TYPE_CHECKING:
    from gateway.redis.client import RedisClient
    from gateway.redis.keys import RedisKeys

HOUR_S, DAY_S = 3600, 86_400
KEPT_S = {HOUR_S: 2 * DAY_S, DAY_S: 32 * DAY_S}
"""For how long Redis keeps the counts of an hour and of a day, in seconds."""
MAX_ROWS = 200
"""Rows of an hour or a day, and of a process that waits for Redis. Further tenants share one row of each error."""
_LINGER_S, _RETRY_S = 1.0, 1.0


class Rejection(NamedTuple):
    """An error without a receipt: its HTTP status, its label, and the tenant of the caller if it was known."""

    status: int
    error: str
    tenant: str | None


class RejectionCounts(NamedTuple):
    """Rejections of whole hours or days: [since, until) in Unix seconds."""

    since: int
    until: int
    rows: Counter[Rejection]


class Rejections:
    """Count the rejections of this process, and add them to those of the fleet."""

    def __init__(self, redis: RedisClient, keys: RedisKeys) -> None:
        self._redis, self._keys = redis, keys.ledger()
        self._script = RedisScript(redis.commands, "gateway.usage", "rejections.lua")
        self._unsent: Counter[Rejection] = Counter()
        self._work = asyncio.Event()

    def count(self, status: int, error: str, tenant: str | None = None) -> None:
        """Count a rejection. Does not wait. `error` is the label of an error class."""
        self._add(Rejection(status, error, tenant), 1)
        self._work.set()

    async def run(self) -> None:
        """Add the counts to those in Redis until canceled."""
        await run_on_work(
            self._redis,
            self._work,
            self.flush,
            linger_s=_LINGER_S,
            retry_s=_RETRY_S,
            failure="rejections_not_written",
        )

    async def flush(self) -> None:
        """Add the counts to those in Redis. Keep them if this fails; a lost reply may count them twice.

        Raises RedisError and OSError.
        """
        unsent, self._unsent = self._unsent, Counter()
        if not unsent:
            return
        values: list[str | int] = [MAX_ROWS, OTHER, len(KEPT_S)]
        for period in KEPT_S.items():
            values += period
        for row, number in unsent.items():
            values += [row.status, row.error, row.tenant or "", number]
        try:
            await self._script.run([([self._keys.rejections()], values)])
        except BaseException:
            for row, number in unsent.items():
                self._add(row, number)
            raise

    def _add(self, row: Rejection, number: int) -> None:
        if row.tenant is not None and len(self._unsent) >= MAX_ROWS and row not in self._unsent:
            row = row._replace(tenant=OTHER)
        self._unsent[row] += number

    async def read(self, since: float, until: float, now: float) -> RejectionCounts:
        """Return the rejections of the fleet: whole hours, or whole days if hours as old as `since` are deleted.

        Times are Unix seconds. Raises RedisError and OSError.
        """
        seconds = HOUR_S if since >= now - KEPT_S[HOUR_S] else DAY_S
        first = int(max(since, now - KEPT_S[seconds]) // seconds) * seconds
        starts = range(first, max(first + 1, int(until)), seconds)
        async with self._redis.queries.pipeline(transaction=False) as pipe:
            for start in starts:
                pipe.hgetall(self._keys.rejections_of(seconds, start))
            found: list[dict[bytes, bytes]] = await pipe.execute()
        rows: Counter[Rejection] = Counter()
        for name, number in chain.from_iterable(counts.items() for counts in found):
            status, error, tenant = name.decode().split(" ", 2)
            rows[Rejection(int(status), error, tenant or None)] += int(number)
        return RejectionCounts(first, starts[-1] + seconds, rows)

    async def close(self) -> None:
        """Write the last counts, if Redis is up."""
        if self._redis.up:
            with suppress(RedisError, OSError):
                await self.flush()
