"""What Redis keeps of each request: its intent from admission on, then its receipt in the intent's place.

One exchange is under way at a time, and what comes meanwhile goes out together with the next, so that under load one
round trip serves many requests. Receipts wait for such company a moment; who asks for admission does not.

While Redis is away receipts wait in memory, bounded, and go out when it is back; a process that is told to stop first
gives them one more try. Requests go on without an intent then, or are refused, as configured. (A durable archive is the
ledger's next step.)
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from gateway.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.ledger.intent import Intent
    from gateway.ledger.receipt import Receipt
    from gateway.ledger.redis_ledger import RedisLedger
    from gateway.metrics import Metrics
    from gateway.redis_client import RedisClient

log = structlog.get_logger()

_MAX_WAITING = 10_000
_RETRY_S = 1.0
_BATCH = 200
# A receipt is in no hurry: a request that is admitted meanwhile takes it along.
_LINGER_S = 0.02


class ReceiptStore:
    """Args:
    required: whether a request is refused when its intent cannot be kept.
    """

    def __init__(self, redis: RedisClient, ledger: RedisLedger, *, required: bool, metrics: Metrics) -> None:
        self._redis = redis
        self._ledger = ledger
        self._required = required
        self._metrics = metrics
        self._under_way: dict[str, Intent] = {}  # requests without a receipt yet
        self._untold: dict[str, Intent] = {}  # of these, those that go out with the next exchange
        self._admitting: dict[str, asyncio.Future[bool]] = {}
        self._waiting: OrderedDict[str, Receipt] = OrderedDict()
        self._unsure = False  # Redis may lack intents of requests that are under way
        self._refused = False  # the last exchange failed
        self._news = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._exchanging = asyncio.Lock()

    async def admit(self, intent: Intent) -> None:
        """Let Redis know of the request before it spends anything. Its receipt must follow, whatever happens.

        Raises:
            StoreUnavailable: Redis is away and the configuration says `reject`.
        """
        self._under_way[intent.id] = intent
        if not await self._told(intent):
            self._metrics.intents_missed.inc()
            if self._required:
                raise StoreUnavailable("Redis is away, and here requests need it. Try again.")

    async def _told(self, intent: Intent) -> bool:
        if not self._redis.up:
            self._unsure = True
            self._news.set()
            return False
        self._untold[intent.id] = intent
        admitted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._admitting[intent.id] = admitted
        self._news.set()
        try:
            return await admitted
        finally:
            del self._admitting[intent.id]

    def put(self, receipt: Receipt) -> None:
        """Hand a receipt over; it is written soon, together with others that came meanwhile."""
        self._waiting[receipt.id] = receipt
        self._under_way.pop(receipt.id, None)
        self._untold.pop(receipt.id, None)
        if len(self._waiting) > _MAX_WAITING:
            oldest, lost = self._waiting.popitem(last=False)
            self._metrics.receipts_lost.inc()
            # Not silently: the log line is now the only place where this receipt stands.
            log.error("receipt_lost", id=oldest, receipt=lost.as_dict())
        self._metrics.receipts_waiting.set(len(self._waiting))
        self._look_in(_LINGER_S)

    async def get(self, tenant: str, receipt_id: str) -> bytes | None:
        """A tenant's receipt as JSON, or None. Raises StoreUnavailable."""
        waiting = self._waiting.get(receipt_id)
        if waiting is not None:
            return waiting.to_json() if waiting.tenant == tenant else None
        if self._redis.up:
            try:
                return await self._ledger.receipt(tenant, receipt_id)
            except (RedisError, OSError) as error:
                self._redis.failed(error)
        raise StoreUnavailable("Receipts cannot be read while Redis is away. Try again.")

    def tell_again(self) -> None:
        """Redis may have forgotten: let it know anew of every request that is under way."""
        self._unsure = True
        self._news.set()

    async def run(self) -> None:
        """Exchange what there is, for ever. Whatever fails, the loop lives on: every later request needs it."""
        while True:
            await self._news.wait()
            if not self._redis.up:
                self._answer(list(self._admitting), told=False)
                await self._redis.wait_up()
            self._news.clear()
            if not await self._exchange():
                self._look_in(_RETRY_S)

    async def flush(self) -> bool:
        """Write every receipt that waits; False when Redis did not take it."""
        while self._waiting:
            if not await self._exchange():
                return False
        return True

    async def _exchange(self) -> bool:
        """Tell Redis what waits, as much as one round trip should carry; False when it did not take it."""
        async with self._exchanging:
            if self._unsure:
                self._untold, self._unsure = dict(self._under_way), False
            intents = [self._untold.pop(one) for one in list(islice(self._untold, _BATCH))]
            receipts = list(islice(self._waiting.values(), _BATCH))
            if not intents and not receipts:
                return True
            try:
                replaced = await self._ledger.exchange(intents, receipts)
            except Exception as error:
                self._redis.failed(error)
                self._unsure = True
                self._answer([intent.id for intent in intents], told=False)
                if not self._refused:
                    unexpected = not isinstance(error, RedisError | OSError)
                    log.warning(
                        "receipts_waiting", count=len(self._waiting), error=type(error).__name__, exc_info=unexpected
                    )
                self._refused = True
                return False
        self._refused = False
        self._answer([intent.id for intent in intents], told=True)
        for receipt in receipts:
            self._waiting.pop(receipt.id, None)
        self._metrics.receipts_waiting.set(len(self._waiting))
        if replaced:
            # This process was taken for dead. What others said of these requests holds no longer.
            log.warning("abandoned_replaced", ids=replaced)
        if self._untold or len(receipts) == _BATCH:
            self._news.set()
        return True

    def _answer(self, ids: Iterable[str], *, told: bool) -> None:
        """Let requests go on that wait for admission; one that was cancelled meanwhile no longer does."""
        for one in ids:
            admitted = self._admitting.get(one)
            if admitted is not None and not admitted.done():
                admitted.set_result(told)

    def _look_in(self, delay_s: float) -> None:
        if self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        self._alarm = None
        self._news.set()
