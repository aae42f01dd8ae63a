"""Bound the outboxes of all tenants together, for the time in which no usage worker keeps up.

Nothing else deletes receipts that no worker has read, so the count of lost receipts is exact. The outboxes may pass the
bound by what comes in the seconds between two rounds.

Every gateway process has a trimmer, and one of them works at a time. The lease only saves the others the work: two at
once cut to the same length.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog
from redis.exceptions import OutOfMemoryError, RedisError

from gateway.quality.comparison import OUTBOX
from gateway.redis.script import RedisScript
from gateway.usage.feed import GROUP
from gateway.usage.inactive import InactiveTenants

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from redis.asyncio import Redis

    from gateway.redis.client import RedisClient
    from gateway.redis.keys import RedisKeys
    from gateway.telemetry.metrics import Metrics
    from gateway.usage.state import WorkerState

log = structlog.get_logger()

_EVERY_S = 5.0
_LEASE_MS = 15_000
_INACTIVE_EVERY_S = 3600.0
_TENANTS_PER_CALL = 1_000
_CUT_AT_ONCE = 500


class OutboxTrimmer:
    """Args:
    owner: the id of this process.
    most: about how many receipts all outboxes together may hold.
    state: the state of the usage workers as this process last read it (WorkerStateReader).
    """

    def __init__(
        self,
        client: RedisClient,
        redis: Redis,
        keys: RedisKeys,
        owner: str,
        *,
        most: int,
        state: Callable[[], WorkerState],
        metrics: Metrics,
    ) -> None:
        self._client = client
        self._redis = redis
        self._all_keys = keys
        self._keys = keys.ledger()
        self._owner = owner
        self._most = most
        self._state = state
        self._metrics = metrics
        self._lengths = RedisScript(redis, "gateway.usage", "lengths.lua")
        self._cut = RedisScript(redis, "gateway.usage", "cut.lua")
        self._inactive = InactiveTenants(redis, keys)
        self._inactive_at = 0.0
        self._cutting = False  # the last round passed the bound, too
        self._counted = 0  # of the receipts that Redis counts as lost, those that are in a metric

    async def run(self) -> None:
        """Check every five seconds, until cancelled."""
        while True:
            await self._client.wait_up()
            try:
                if await self._leads():
                    await self.trim()
                    await self._forget_inactive()
                else:
                    self._metrics.receipts_buffered.set(self._state().waiting)  # no stale figure of an earlier lead
            except Exception as error:
                self._client.failed(error)
                unexpected = not isinstance(error, RedisError | OSError)
                log.warning("trim_failed", error=type(error).__name__, exc_info=unexpected)
            await asyncio.sleep(_EVERY_S)

    async def trim(self) -> int:
        """Bring all outboxes together under the bound. Return how many receipts are lost.

        Raises RedisError and OSError. Nothing happens while a worker says that at most half as many wait, and while a
        process of an earlier version adds receipts up: that one bounds the outboxes itself.
        """
        lost = await self._count_lost()
        state = self._state()
        if (state.up and state.waiting <= self._most // 2) or await self._redis.exists(self._keys.lease):
            self._metrics.receipts_buffered.set(state.waiting)
            self._cutting = False
            return lost
        lengths = await self._measure()
        self._metrics.receipts_buffered.set(sum(lengths.values()))
        if sum(lengths.values()) <= self._most:
            self._cutting = False
            return lost
        longest = level(list(lengths.values()), self._most)
        deleted = 0
        for tenant in [one for one, length in lengths.items() if length > longest]:
            cut = _CUT_AT_ONCE
            while cut == _CUT_AT_ONCE:
                cut = await self._cut_some(tenant, longest)
                deleted += cut
        lost += await self._count_lost()
        if not self._cutting:
            log.error("receipts_lost", count=lost, deleted=deleted, most=self._most, worker=state.error)
        self._cutting = True
        return lost

    async def _count_lost(self) -> int:
        """Add to the metric the receipts that are lost and in the metric of no process. Return their number.

        Redis counts them where it deletes them: its reply may be lost, and a process may end before it counts.
        """
        found: Any = self._redis.hmget(self._keys.written, ["lost", "lost_counted"])
        lost, counted = [int(one or 0) for one in await found]
        if lost < self._counted:  # Redis forgot
            self._counted = 0
        new = max(0, lost - max(counted, self._counted))
        if new:
            self._metrics.receipts_lost.inc(new)
            self._counted = lost
        if counted < self._counted:
            told: Any = self._redis.hset(self._keys.written, "lost_counted", str(self._counted))
            with suppress(OutOfMemoryError):  # a later round says so
                await told
        return new

    async def _cut_some(self, tenant: str, most: int) -> int:
        values = [GROUP.encode(), str(most).encode(), str(_CUT_AT_ONCE).encode()]
        names = [self._all_keys.outbox(tenant), self._keys.written]
        (deleted,) = await self._cut.run([(names, values)])
        return int(deleted)

    async def _measure(self) -> Mapping[str, int]:
        tenants = [OUTBOX, *await self._tenants()]
        lengths: dict[str, int] = {}
        for start in range(0, len(tenants), _TENANTS_PER_CALL):
            some = tenants[start : start + _TENANTS_PER_CALL]
            (found,) = await self._lengths.run([([self._all_keys.outbox(one) for one in some], [])])
            lengths |= {some[place - 1]: length for place, length in found}
        return lengths

    async def _forget_inactive(self) -> None:
        if time.monotonic() < self._inactive_at:
            return
        now, _ = await self._redis.time()
        if quiet := await self._inactive.begin(await self._tenants(), now):
            log.info("tenants_inactive", count=len(quiet))
        await self._inactive.end(now)
        self._inactive_at = time.monotonic() + _INACTIVE_EVERY_S

    async def _tenants(self) -> list[str]:
        named: Any = await self._redis.smembers(self._keys.tenants)
        return sorted(raw.decode() for raw in named)

    async def _leads(self) -> bool:
        try:
            if await self._redis.set(self._keys.trimmer, self._owner, nx=True, px=_LEASE_MS):
                return True
            held: Any = await self._redis.get(self._keys.trimmer)
            if held is None or held.decode() != self._owner:
                return False
            return bool(await self._redis.set(self._keys.trimmer, self._owner, xx=True, px=_LEASE_MS))
        except OutOfMemoryError:
            return True  # Redis takes no lease, and needs the space of the outboxes


def level(lengths: Sequence[int], most: int) -> int:
    """Return the length to cut the longest to, so that all together are at most `most`: the largest such length."""
    left, ordered = most, sorted(lengths)
    for place, length in enumerate(ordered):
        share = left // (len(ordered) - place)
        if length > share:
            return share
        left -= length
    return max(ordered, default=0)
