"""Store the receipts of device reports in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from gateway.redis.script import RedisScript

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from gateway.accounting.receipt import Receipt
    from gateway.redis.keys import RedisKeys

MAX_OFFLINE_REPORTS = 10_000
"""Offline answers that a tenant's devices may report per hour. No other limit counts them."""

Outcome = Literal["written", "closed", "expired", "full"]


class EdgeBook:
    """Store reports.

    Args:
        ttl_s: seconds for which Redis keeps a receipt.
        max_offline_reports: offline answers per tenant and hour.
    """

    def __init__(
        self, redis: Redis, keys: RedisKeys, ttl_s: float, max_offline_reports: int = MAX_OFFLINE_REPORTS
    ) -> None:
        self._keys = keys
        self._ttl_s = max(1, round(ttl_s))
        self._most_offline = max_offline_reports
        self._redis = redis
        self._script = RedisScript(redis, "gateway.accounting", "closing.lua")

    async def write(self, receipt: Receipt, by: int | None) -> Outcome:
        """Store the receipt of a report if it is the first and in time. Raises RedisError and OSError. The deadline
        `by` is in Unix seconds of Redis TIME, and None where the caller has checked it."""
        tenant = receipt.tenant
        # Usage workers read the outboxes of tenants in this set.
        added: Any = self._redis.sadd(self._keys.ledger().tenants, tenant)
        await added
        keys = [self._keys.receipt(tenant, receipt.id), self._keys.outbox(tenant), self._keys.offline(tenant)]
        deadline = b"" if by is None else str(by).encode()
        most_offline = b"" if receipt.edge_of is not None else str(self._most_offline).encode()
        values = receipt.to_json(), str(self._ttl_s).encode(), deadline, most_offline
        (raw,) = await self._script.run([(keys, values)])
        outcome: Outcome = raw.decode()
        return outcome
