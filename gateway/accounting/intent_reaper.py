"""Send the heartbeat of this process, and settle the intents of dead processes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.accounting.intent import Intent, abandoned
from gateway.accounting.redis_ledger import Settlement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gateway.accounting.ledger import Ledger
    from gateway.accounting.redis_ledger import RedisLedger
    from gateway.redis.client import RedisClient

log = structlog.get_logger()

# Two heartbeats may be lost before the lease expires.
_BEATS_PER_LEASE = 4


class Heartbeat:
    """Renew this process's heartbeat key.

    Args:
        lease_s: seconds after the last heartbeat until the process counts as dead.
        on_lapse: called when the key had expired or Redis lost it. Redis may have lost other writes as well.
    """

    def __init__(
        self, redis: RedisClient, key: str, *, lease_s: float, on_beat: Callable[[], None], on_lapse: Callable[[], None]
    ) -> None:
        self._redis, self._key, self._lease_s = redis, key, lease_s
        self._on_beat, self._on_lapse = on_beat, on_lapse

    async def run(self) -> None:
        """Renew the key until canceled, and at once when Redis is up again."""
        first = True
        while True:
            await self._redis.wait_up()
            try:
                before = await self._redis.commands.set(self._key, b"", px=round(self._lease_s * 1000), get=True)
            except Exception as error:
                # The loop survives every error. Without it, other processes would take this one for dead.
                log.warning("heartbeat_missed", error=type(error).__name__, exc_info=self._redis.failed(error))
                if self._redis.up:  # the tenants' keys may be on other nodes
                    self._on_beat()
            else:
                if before is None and not first:
                    log.warning("heartbeat_lapsed")
                    self._on_lapse()
                first = False
                self._on_beat()
            if self._redis.up:
                await asyncio.sleep(self._lease_s / _BEATS_PER_LEASE)


class IntentReaper:
    """Settle intents of processes without a heartbeat. Every process runs one; the script settles each intent once.

    No process can renew its heartbeat while Redis, or a node of a cluster, is down. So the reaper relies on a node's
    heartbeats only after it has reached the node for one lease.

    Args:
        tenants: returns the tenants to check, in each round.
        holds: returns whether this process works on a request or has not stored its receipt yet.
        lease_s: seconds without a heartbeat after which a process counts as dead.
        round_tenants, round_intents: limits on the cost of one round for Redis. The next round continues.
    """

    def __init__(
        self,
        redis: RedisClient,
        in_redis: RedisLedger,
        ledger: Ledger,
        *,
        tenants: Callable[[], Iterable[str]],
        holds: Callable[[str], bool],
        lease_s: float,
        round_tenants: int = 500,
        round_intents: int = 500,
    ) -> None:
        self._round_tenants, self._round_intents = round_tenants, round_intents
        self._redis, self._in_redis, self._ledger = redis, in_redis, ledger
        self._tenants, self._holds, self._lease_s = tenants, holds, lease_s
        self._next = 0

    async def run(self) -> None:
        """Sweep twice per lease until canceled."""
        while True:
            await asyncio.sleep(self._lease_s / 2)
            await self._redis.wait_up()
            try:
                await self.sweep()
            except Exception as error:
                log.warning("sweep_failed", error=type(error).__name__, exc_info=self._redis.failed(error))

    async def sweep(self) -> int:
        """Run one round. Return the number of settled requests. Raises RedisError and OSError."""
        tenants = self._tenants_of_round()
        read, settled = 0, await self._sweep_own(tenants)
        reliable = [one for one in tenants if self._is_reliable(self._in_redis.key_of(one))]
        expired = await self._in_redis.expired_processes(reliable, self._lease_s, self._is_reliable)
        for tenant, process_id in expired:
            intents = await self._in_redis.intents(tenant, process_id, self._round_intents - read)
            read, settled = read + len(intents), settled + await self._abandon(tenant, process_id, intents)
            if read >= self._round_intents:
                break
        return settled

    async def _sweep_own(self, tenants: Sequence[str]) -> int:
        """Settle intents that Redis holds for this process, but whose requests have ended. A replica that took over may
        lack the receipt, or the receipt was dropped. The intent would reserve a part of a budget forever."""
        settled = 0
        for tenant, ids in (await self._in_redis.own_intents(tenants, self._round_intents)).items():
            # Redis was read first. A request that is not held now was settled before, or its receipt is lost.
            orphaned = [one for one in ids if not self._holds(one)]
            if orphaned:
                intents = await self._in_redis.own_intents_by_id(tenant, orphaned)
                settled += await self._abandon(tenant, self._in_redis.process_id, intents)
        return settled

    async def _abandon(self, tenant: str, process_id: str, intents: Mapping[str, bytes]) -> int:
        settlements = _settlements(intents, self._redis.now())
        settled_ids = await self._in_redis.abandon(tenant, process_id, settlements)
        for request_id, settlement in settlements.items():
            if request_id in settled_ids:
                self._ledger.record_abandoned(settlement.receipt)
        return len(settled_ids)

    def _is_reliable(self, key: str) -> bool:
        """Return whether this process has reached a key's node for one lease."""
        return asyncio.get_running_loop().time() - self._redis.up_since(key) >= self._lease_s

    def _tenants_of_round(self) -> Sequence[str]:
        """Return all tenants, or the next ones in turn."""
        tenants = sorted(one for one in self._tenants() if self._redis.is_up(self._in_redis.key_of(one)))
        if len(tenants) <= self._round_tenants:
            return tenants
        start = self._next % len(tenants)
        self._next = start + self._round_tenants
        return [*tenants, *tenants][start : start + self._round_tenants]


def _settlements(intents: Mapping[str, bytes], now: float) -> dict[str, Settlement]:
    settlements = {}
    for request_id, raw in intents.items():
        try:
            intent = Intent.from_json(raw)
            settlements[request_id] = Settlement(abandoned(intent, now), intent)
        except msgspec.MsgspecError:
            # Keep the intent: a newer version of the gateway may be able to read it.
            log.error("intent_unreadable", id=request_id)
    return settlements
