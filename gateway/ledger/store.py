"""Where receipts are kept: in Redis for a while, each written once, so that any process can show it.

While Redis is away they wait in memory, bounded, and go out when it is back; a process that is told to stop first gives
them one more try. (A durable archive is the ledger's next step.)
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from gateway.errors import StoreUnavailable

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from gateway.ledger.receipt import Receipt
    from gateway.metrics import Metrics
    from gateway.redis_keys import RedisKeys

log = structlog.get_logger()

_MAX_WAITING = 10_000
_RETRY_S = 1.0
_BATCH = 200


class ReceiptStore:
    """Args:
    ttl_s: how long a receipt can be asked for.
    """

    def __init__(self, redis: Redis, keys: RedisKeys, *, ttl_s: float, metrics: Metrics) -> None:
        self._redis = redis
        self._keys = keys
        self._ttl_s = max(1, round(ttl_s))
        self._metrics = metrics
        self._waiting: OrderedDict[str, Receipt] = OrderedDict()
        self._news = asyncio.Event()

    def put(self, receipt: Receipt) -> None:
        """Hand a receipt over; it is written soon, together with others that came meanwhile."""
        self._waiting[receipt.id] = receipt
        if len(self._waiting) > _MAX_WAITING:
            oldest, lost = self._waiting.popitem(last=False)
            self._metrics.receipts_lost.inc()
            # Not silently: the log line is now the only place where this receipt stands.
            log.error("receipt_lost", id=oldest, receipt=lost.as_dict())
        self._news.set()

    async def get(self, tenant: str, receipt_id: str) -> bytes | None:
        """A tenant's receipt as JSON, or None. Raises StoreUnavailable."""
        waiting = self._waiting.get(receipt_id)
        if waiting is not None:
            return waiting.to_json() if waiting.tenant == tenant else None
        try:
            found = await self._redis.get(self._keys.receipt(tenant, receipt_id))
        except (RedisError, OSError):
            raise StoreUnavailable("Receipts cannot be read while Redis is away. Try again.") from None
        return found.encode() if isinstance(found, str) else found

    async def run(self) -> None:
        """Write what waits, for ever. Whatever fails, the loop lives on: every later receipt needs it."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                written = await self.flush()
            except Exception:
                log.exception("receipts_broke", count=len(self._waiting), retry_in_s=_RETRY_S)
                written = False
            if not written:
                await asyncio.sleep(_RETRY_S)
                self._news.set()

    async def flush(self) -> bool:
        """Write everything that waits; False when Redis did not take it."""
        while self._waiting:
            batch = [self._waiting[key] for key in list(self._waiting)[:_BATCH]]
            try:
                async with self._redis.pipeline(transaction=False) as pipe:
                    for receipt in batch:
                        # NX: a write whose reply was lost is not done twice.
                        pipe.set(
                            self._keys.receipt(receipt.tenant, receipt.id), receipt.to_json(), ex=self._ttl_s, nx=True
                        )
                    await pipe.execute()
            except (RedisError, OSError) as error:
                log.warning("receipts_waiting", count=len(self._waiting), error=type(error).__name__)
                self._metrics.receipts_waiting.set(len(self._waiting))
                return False
            for receipt in batch:
                self._waiting.pop(receipt.id, None)
            self._metrics.receipts_waiting.set(len(self._waiting))
        return True
