"""Store the receipts of device reports in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from gateway.accounting.edge import uncounted
from gateway.accounting.savings import REPORTED
from gateway.pricing import picodollars
from gateway.redis.script import RedisScript

if TYPE_CHECKING:
    from decimal import Decimal

    from redis.asyncio import Redis

    from gateway.accounting.receipt import Receipt
    from gateway.redis.keys import RedisKeys

MAX_OFFLINE_REPORTS = 10_000
"""Offline answers that a tenant's devices may report per hour. No other limit counts them."""

Outcome = Literal["written", "uncounted", "closed", "expired", "full"]


class SavingsBound(NamedTuple):
    """The most savings that the reports of a device's key count per day (UTC of Redis)."""

    key_id: str
    usd: Decimal


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

    async def write(self, receipt: Receipt, by: int | None, bound: SavingsBound | None = None) -> Outcome:
        """Store the receipt of a report if it is the first and in time. Raises RedisError and OSError.

        Return "uncounted" if it was stored as `uncounted`: it exceeds the bound of the key that sent it.

        Args:
            by: the deadline in Unix seconds of Redis TIME; None where the caller has checked it.
            bound: None: the key is not marked as a device, so its reports save nothing.
        """
        tenant = receipt.tenant
        # Usage workers read the outboxes of tenants in this set.
        added: Any = self._redis.sadd(self._keys.ledger().tenants, tenant)
        await added
        counts = bound is not None and receipt.savings_class == REPORTED
        key_id = bound.key_id if bound is not None else ""
        keys = [self._keys.receipt(tenant, receipt.id), self._keys.outbox(tenant), self._keys.offline(tenant)]
        keys.append(self._keys.device_savings(tenant, key_id))
        deadline = b"" if by is None else str(by).encode()
        most_offline = b"" if receipt.edge_of is not None else str(self._most_offline).encode()
        saved, most_saved = b"", b""
        if counts and bound is not None:
            saved, most_saved = (str(picodollars(usd)).encode() for usd in (receipt.baseline_usd, bound.usd))
        receipts = receipt.to_json(), uncounted(receipt).to_json()
        values = receipts[0], str(self._ttl_s).encode(), deadline, most_offline, saved, most_saved, receipts[1]
        (raw,) = await self._script.run([(keys, values)])
        outcome: Outcome = raw.decode()
        return outcome
