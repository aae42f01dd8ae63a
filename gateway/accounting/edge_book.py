"""What devices report, in Redis: each report once, in the same breath in which it is posted to its tenant's outbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from gateway.redis.script import RedisScript

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from gateway.accounting.receipt import Receipt
    from gateway.redis.keys import RedisKeys

MOST_OFFLINE = 10_000
"""Answers without guidance of ours that the devices of one tenant may report in an hour: no limit counts them."""

Outcome = Literal["written", "closed", "expired", "full"]


class EdgeBook:
    """Args:
    ttl_s: how long Redis keeps a receipt.
    """

    def __init__(self, redis: Redis, keys: RedisKeys, ttl_s: float, most_offline: int = MOST_OFFLINE) -> None:
        self._keys = keys
        self._ttl_s = max(1, round(ttl_s))
        self._most_offline = most_offline
        self._redis = redis
        self._script = RedisScript(redis, "gateway.accounting", "closing.lua")

    async def write(self, receipt: Receipt, by: int | None) -> Outcome:
        """Write the receipt of a report, if it is the first, and in time. Raises RedisError and OSError.

        Args:
            by: until when it may come, in Unix seconds of Redis' clock; None where it was looked at already.
        """
        tenant = receipt.tenant
        # Usage workers read the outboxes of named tenants.
        named: Any = self._redis.sadd(self._keys.ledger().tenants, tenant)
        await named
        keys = [
            self._keys.receipt(tenant, receipt.id),
            self._keys.outbox(tenant),
            self._keys.offline(tenant),
        ]
        values = (
            receipt.to_json(),
            str(self._ttl_s).encode(),
            b"" if by is None else str(by).encode(),
            b"" if receipt.edge_of is not None else str(self._most_offline).encode(),
        )
        (raw,) = await self._script.run([(keys, values)])
        outcome: Outcome = raw.decode()
        return outcome
