"""Settles what processes that died have left behind."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec
import structlog
from redis.exceptions import RedisError

from gateway.accounting.intent import Intent, abandoned
from gateway.accounting.redis_ledger import Settlement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gateway.accounting.ledger import Ledger
    from gateway.accounting.redis_ledger import RedisLedger
    from gateway.redis.client import RedisClient

log = structlog.get_logger()

# What one round may cost Redis: the rest is for the next one.
_TENANTS_PER_ROUND = 500
_INTENTS_PER_ROUND = 500


class IntentReaper:
    """Every process has one. They need not agree: a script lets only one of them settle each intent.

    Args:
        tenants: those to look after, asked anew each round.
        holds: whether this process still works on a request, or still has its receipt to tell.
        lease_s: after this long without a heartbeat a process counts as gone.
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
    ) -> None:
        self._redis = redis
        self._in_redis = in_redis
        self._ledger = ledger
        self._tenants = tenants
        self._holds = holds
        self._lease_s = lease_s
        self._next = 0

    async def run(self) -> None:
        """Sweep twice a lease, for ever."""
        while True:
            await asyncio.sleep(self._lease_s / 2)
            if not self._redis.up or not await self._swept():
                await self._redis.wait_up()
                # Nobody could beat while Redis was away: those who live must have the time to.
                await asyncio.sleep(self._lease_s)

    async def _swept(self) -> bool:
        try:
            await self.sweep()
        except Exception as error:
            self._redis.failed(error)
            unexpected = not isinstance(error, RedisError | OSError)
            log.warning("sweep_failed", error=type(error).__name__, exc_info=unexpected)
            return False
        return True

    async def sweep(self) -> int:
        """One round: how many requests it settled. Raises RedisError and OSError."""
        tenants = self._some_tenants()
        looked_at, settled = 0, await self._sweep_own(tenants)
        for tenant, owner in await self._in_redis.gone_owners(tenants, self._lease_s):
            left = await self._in_redis.intents(tenant, owner, _INTENTS_PER_ROUND - looked_at)
            looked_at, settled = looked_at + len(left), settled + await self._abandon(tenant, owner, left)
            if looked_at >= _INTENTS_PER_ROUND:
                break
        return settled

    async def _sweep_own(self, tenants: Sequence[str]) -> int:
        """What Redis still holds for this process and this process has done with: a replica that took over may not know
        of the receipt, and a receipt may have been dropped. It would hold its part of a budget for ever.
        """
        settled = 0
        for tenant, ids in (await self._in_redis.own_intents(tenants, _INTENTS_PER_ROUND)).items():
            # Redis was read first: what it did not have then was told since, and what it had is still held here.
            forgotten = [one for one in ids if not self._holds(one)]
            if forgotten:
                left = await self._in_redis.own_intents_of(tenant, forgotten)
                settled += await self._abandon(tenant, self._in_redis.owner, left)
        return settled

    async def _abandon(self, tenant: str, owner: str, left: Mapping[str, bytes]) -> int:
        settlements = _settlements(left, time.time())
        won = await self._in_redis.abandon(tenant, owner, settlements)
        for request_id, settlement in settlements.items():
            if request_id in won:
                self._ledger.abandoned(settlement.receipt)
        return len(won)

    def _some_tenants(self) -> Sequence[str]:
        """All of them, or the next ones in turn."""
        tenants = sorted(self._tenants())
        if len(tenants) <= _TENANTS_PER_ROUND:
            return tenants
        start = self._next % len(tenants)
        self._next = start + _TENANTS_PER_ROUND
        return [*tenants, *tenants][start : start + _TENANTS_PER_ROUND]


def _settlements(left: Mapping[str, bytes], now: float) -> dict[str, Settlement]:
    settlements = {}
    for request_id, raw in left.items():
        try:
            intent = Intent.from_json(raw)
            settlements[request_id] = Settlement(abandoned(intent, now), intent)
        except msgspec.MsgspecError:
            # It stays: a newer version of the gateway may be able to read it.
            log.error("intent_unreadable", id=request_id)
    return settlements
