"""Limit the total length of all outboxes while usage workers do not keep up.

Only the trimmer deletes receipts that no worker has read, so the count of lost receipts is exact. Every gateway process
has a trimmer. A lease lets one of them work at a time, only to avoid repeated work.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog
from redis.exceptions import OutOfMemoryError

from gateway.quality.comparison import OUTBOX
from gateway.redis.keys import OUTCOMES
from gateway.redis.script import RedisScript, each_group
from gateway.redis.slots import is_cluster
from gateway.usage.entries import NOTHING, added_ms, batched
from gateway.usage.feed import GROUP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

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
_DELETED_PER_CALL = 500
QUIET_S = 32 * 86_400.0
"""Time without a receipt after which a tenant is removed."""
STEP_S = 2 * 3600.0
"""Twice the time between two registrations of a tenant by one process."""
_REMOVED_PER_ROUND = 100
_INACTIVE_PER_CALL = 500


class OutboxTrimmer:
    """Trim the outboxes of all tenants to about `limit` receipts together, and delete outboxes of inactive tenants.

    `state` returns the last known state of the usage workers (WorkerStateReader).
    """

    def __init__(
        self,
        client: RedisClient,
        keys: RedisKeys,
        process_id: str,
        *,
        limit: int,
        state: Callable[[], WorkerState],
        metrics: Metrics,
    ) -> None:
        self._client = client
        self._redis = redis = client.commands
        self._all_keys = keys
        self._keys = keys.ledger()
        self._process_id = process_id
        self._limit = limit
        self._state = state
        self._metrics = metrics
        self._lengths = RedisScript(redis, "gateway.usage", "lengths.lua")
        self._cut = RedisScript(redis, "gateway.usage", "cut.lua")
        self._collect = RedisScript(redis, "gateway.usage", "collect.lua")
        self._inactive = InactiveTenants(redis, keys)
        self._inactive_at = 0.0
        self._trimming = False  # the last round exceeded the limit, too
        self._counted = 0  # lost receipts by Redis' count that some metric contains

    async def run(self) -> None:
        """Check every five seconds, until canceled."""
        while True:
            await self._client.wait_up()
            try:
                if await self.acquire_lease():
                    await self.trim()
                    await self._forget_inactive()
                else:
                    self._metrics.usage.buffered.set(self._state().waiting)
            except Exception as error:
                log.warning("trim_failed", error=type(error).__name__, exc_info=self._client.failed(error))
            await asyncio.sleep(_EVERY_S)

    async def trim(self) -> int:
        """Trim all outboxes together to the limit. Return the number of lost receipts.

        Do nothing while a worker reports at most half as many waiting receipts. Raises RedisError and OSError.
        """
        lost = await self._count_lost()
        state = self._state()
        if state.up and state.waiting <= self._limit // 2:
            self._metrics.usage.buffered.set(state.waiting)
            self._trimming = False
            return lost
        lengths = await self._measure()
        if is_cluster(self._redis):
            await self._collect_lost(lengths)  # the reply of an earlier deletion may have been lost
            lost += await self._count_lost()
        self._metrics.usage.buffered.set(sum(lengths.values()))
        if sum(lengths.values()) <= self._limit:
            self._trimming = False
            return lost
        max_length = level(list(lengths.values()), self._limit)
        deleted = 0
        for tenant in [tenant for tenant, length in lengths.items() if length > max_length]:
            count = _DELETED_PER_CALL
            while count == _DELETED_PER_CALL:
                count = await self._delete_oldest(tenant, max_length)
                deleted += count
        if is_cluster(self._redis):
            await self._collect_lost(lengths)
        lost += await self._count_lost()
        if not self._trimming:
            log.error("receipts_lost", count=lost, deleted=deleted, limit=self._limit, worker=state.error)
        self._trimming = True
        return lost

    async def _count_lost(self) -> int:
        """Add lost receipts that no process has counted yet to the metric. Return their number.

        The script that deletes receipts also counts them in Redis: its reply may be lost, and a process may end early.
        """
        counters: Any = self._redis.hmget(self._keys.written, ["lost", "lost_counted"])
        lost, counted = [int(value or 0) for value in await counters]
        if lost < self._counted:  # Redis lost its data
            self._counted = 0
        new = max(0, lost - max(counted, self._counted))
        if new:
            self._metrics.receipts_lost.inc(new)
            self._counted = lost
        if counted < self._counted:
            update: Any = self._redis.hset(self._keys.written, "lost_counted", str(self._counted))
            with suppress(OutOfMemoryError):  # a later round writes it
                await update
        return new

    async def _delete_oldest(self, tenant: str, max_length: int) -> int:
        values = (GROUP, max_length, _DELETED_PER_CALL)
        # In a cluster, the hash of all counts may be on another node than the outbox.
        counts = self._all_keys.lost(tenant) if is_cluster(self._redis) else self._keys.written
        (deleted,) = await self._cut.run([([self._all_keys.outbox(tenant), counts], values)])
        return int(deleted)

    async def _collect_lost(self, tenants: Iterable[str]) -> None:
        """Add the counts of tenants to those of all. Each receipt counts once, also after a lost reply."""
        tenants = list(tenants)
        async with self._redis.pipeline(transaction=False) as pipe:
            for tenant in tenants:
                pipe.hget(self._all_keys.lost(tenant), "lost")
            found = await pipe.execute(raise_on_error=False)
        counts = [
            value
            for tenant, lost in zip(tenants, found, strict=True)
            if isinstance(lost, bytes)
            for value in (tenant, lost)
        ]
        if counts:
            await self._collect.run([([self._keys.written, self._keys.lost_of], counts)])

    async def _measure(self) -> Mapping[str, int]:
        tenants = [OUTBOX, OUTCOMES, *await self._tenants()]
        lengths: dict[str, int] = {}
        for batch in batched(tenants, _TENANTS_PER_CALL):
            for group, reply in await each_group(self._redis, self._lengths, batch, self._all_keys.outbox):
                lengths |= {group[index - 1]: length for index, length in reply}
        return lengths

    async def _forget_inactive(self) -> None:
        if time.monotonic() < self._inactive_at:
            return
        now, _ = await self._redis.time()
        if inactive := await self._inactive.begin(await self._tenants(), now):
            log.info("tenants_inactive", count=len(inactive))
        await self._inactive.end(now)
        self._inactive_at = time.monotonic() + _INACTIVE_EVERY_S

    async def _tenants(self) -> list[str]:
        members: Any = await self._redis.smembers(self._keys.tenants)
        return sorted(raw.decode() for raw in members)

    async def acquire_lease(self) -> bool:
        """Acquire or renew the lease. Return whether this process has it."""
        try:
            holder: Any = await self._redis.set(self._keys.trimmer, self._process_id, nx=True, get=True, px=_LEASE_MS)
            if holder is None:
                return True
            if holder.decode() != self._process_id:
                return False
            return bool(await self._redis.set(self._keys.trimmer, self._process_id, xx=True, px=_LEASE_MS))
        except OutOfMemoryError:
            return True  # Redis cannot store a lease, and needs the memory of the outboxes


def level(lengths: Sequence[int], limit: int) -> int:
    """Return the largest maximal length for which all lengths together are at most `limit`."""
    remaining, ordered = limit, sorted(lengths)
    for index, length in enumerate(ordered):
        share = remaining // (len(ordered) - index)
        if length > share:
            return share
        remaining -= length
    return max(ordered, default=0)


class InactiveTenants:
    """Delete the outboxes of tenants without a receipt for 32 days. Methods raise RedisError and OSError.

    A process that has registered a tenant registers it again only after an hour (RedisLedger). So a tenant is removed
    in two steps. First, workers stop reading its outbox. Two hours later, the outbox is deleted, or, if a receipt came,
    the tenant is restored. `now` is Unix seconds by Redis' clock.
    """

    def __init__(self, redis: Redis, keys: RedisKeys) -> None:
        self._redis = redis
        self._all_keys = keys
        self._keys = keys.ledger()
        self._idle = RedisScript(redis, "gateway.usage", "idle.lua")
        self._delete = RedisScript(redis, "gateway.usage", "outbox_delete.lua")
        self._forget = RedisScript(redis, "gateway.usage", "forget.lua")

    async def begin(self, tenants: Sequence[str], now: float) -> list[str]:
        """Stop reading the outboxes of inactive tenants. Return these tenants."""
        inactive: list[str] = []
        for batch in batched(tenants, _INACTIVE_PER_CALL):
            for group, outboxes in await each_group(self._redis, self._idle, batch, self._all_keys.outbox):
                for index, raw in outboxes:
                    last_id = raw.decode()
                    # NOTHING: the outbox never had an entry, because its tenant was just registered.
                    if last_id != NOTHING and added_ms(last_id) / 1000 < now - QUIET_S:
                        inactive.append(group[index - 1])
        del inactive[_REMOVED_PER_ROUND:]
        if inactive:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.zadd(self._keys.leaving, dict.fromkeys(inactive, now))
                pipe.srem(self._keys.tenants, *inactive)
                await pipe.execute()
        return inactive

    async def end(self, now: float) -> list[str]:
        """Delete the empty outboxes of tenants whose first step was two hours ago. Return these tenants."""
        keys, deleted = self._keys, []
        leaving: Any = await self._redis.zrangebyscore(
            keys.leaving, "-inf", now - STEP_S, start=0, num=_REMOVED_PER_ROUND
        )
        for tenant in (raw.decode() for raw in leaving):
            (empty,) = await self._delete.run([([self._all_keys.outbox(tenant)], [])])
            if not empty:
                await self._redis.sadd(keys.tenants, tenant)
            (forgotten,) = await self._forget.run([([keys.tenants, keys.leaving], [tenant])])
            if forgotten:
                deleted.append(tenant)
        return deleted
