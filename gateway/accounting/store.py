"""What Redis keeps of each request: its intent from admission on, then its receipt in the intent's place.

What a tenant or a key may use is counted by the same exchange, which may refuse the request.

One exchange is under way at a time, and what comes meanwhile goes out together with the next, so that under load one
round trip serves many requests. Receipts wait for such company a moment; who asks for admission does not.

While Redis is away receipts wait in memory, bounded, and on disk (spooler.py), and go out when it is back; a process
that is told to stop first gives them one more try. Requests then go on without an intent within a local allowance
(local_limits.py), go on uncounted, or are refused, as configured.

A Redis that was started anew may have forgotten the last it was told, though it said that it knew: so that is kept for
a moment, and told again then. The script knows what it did not forget.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from contextlib import suppress
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeAlias

import structlog
from redis.exceptions import RedisError

from gateway.accounting.redis_ledger import Settlement
from gateway.accounting.refusals import refused
from gateway.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence, Set

    from gateway.accounting.local_limits import LocalLimits
    from gateway.accounting.receipt import Receipt
    from gateway.accounting.redis_ledger import AdmissionRequest, ExchangeResult, RedisLedger, TenantEvent
    from gateway.accounting.scopes import Scope
    from gateway.accounting.verdict import AdmissionVerdict
    from gateway.config.limits import OnRedisFailure
    from gateway.redis.client import RedisClient
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

_MAX_WAITING = 10_000
_RETRY_S = 1.0
_BATCH = 200
# With appendfsync everysec Redis may forget two seconds.
REMEMBERED_S = 3.0
# A receipt is in no hurry: a request that is admitted meanwhile takes it along.
_LINGER_S = 0.02


Older: TypeAlias = "Callable[[str, str], Awaitable[bytes | None]]"
"""Where receipts are looked for that Redis does not have: by tenant and id."""
Admitted: TypeAlias = "tuple[AdmissionVerdict, tuple[Scope, ...], int | None] | None"
"""The verdict on a request, with the scopes that it names and Redis TIME. Without a time this process decided alone.
None: the request goes on uncounted."""


class ReceiptStore:
    """Args:
    local: counts while Redis cannot.
    on_event: told what came of budgets.
    older: asked for a tenant's receipt that Redis does not have; raises StoreUnavailable.
    """

    def __init__(
        self,
        redis: RedisClient,
        ledger: RedisLedger,
        *,
        local: LocalLimits,
        on_event: Callable[[TenantEvent], None],
        older: Older | None = None,
        metrics: Metrics,
    ) -> None:
        self._older = older
        self._redis = redis
        self._ledger = ledger
        self._local = local
        self._on_event = on_event
        self._metrics = metrics
        self._under_way: dict[str, AdmissionRequest] = {}  # requests without a receipt yet
        self._untold: dict[str, AdmissionRequest] = {}  # of these, those that go out with the next exchange
        self._admitting: dict[str, asyncio.Future[Admitted]] = {}
        self._waiting: OrderedDict[str, Settlement] = OrderedDict()
        self._on_disk: set[str] = set()  # those that wait, and are in the spool as well
        self._shed: set[str] = set()  # those that are in the spool alone
        self._taken: deque[tuple[float, Settlement]] = deque(maxlen=_MAX_WAITING)  # what Redis took last, and when
        self._again: OrderedDict[str, Settlement] = OrderedDict()  # of that, what it may have forgotten
        self._in_doubt: set[str] = set()  # requests whose exchange failed: Redis may have an intent of them
        self._unsure = False  # Redis may lack intents of requests that are under way
        self._beats: set[str] = set()  # tenants for which this process is to be heard of
        self._refused = False  # the last exchange failed
        self._news = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._exchanging = asyncio.Lock()

    async def admit(self, candidate: AdmissionRequest, *, on_failure: OnRedisFailure) -> Admitted:
        """Ask whether a request may go on, before it spends anything.

        Its receipt must follow where it may, and where `holds` says so after an error: Redis may then have an intent.

        Args:
            on_failure: what to do when Redis cannot be asked. A request that goes on is counted as soon as Redis can.

        Raises:
            StoreUnavailable, RateLimited: Redis is away, and the request may not go on without it.
        """
        self._under_way[candidate.id] = candidate
        try:
            alone = on_failure == "degrade" and self._keeps_to_part(candidate)
            admitted = await self._told(candidate, alone=alone)
            if admitted is None:
                self._metrics.intents_missed.inc()
                if on_failure == "reject":
                    if candidate.id not in self._in_doubt:
                        del self._under_way[candidate.id]
                    raise StoreUnavailable("Redis is away, and here requests need it. Try again.")
                if on_failure == "degrade" and candidate.scopes:
                    return self._decide_alone(candidate), candidate.scopes, None
        finally:
            self._in_doubt.discard(candidate.id)
        return admitted

    def _decide_alone(self, candidate: AdmissionRequest) -> AdmissionVerdict:
        verdict = self._local.admit(candidate, self._under_way.values(), asyncio.get_running_loop().time())
        tenant = self._metrics.series.tenant(candidate.tenant)
        self._metrics.local_admissions.labels(tenant, verdict.no.limit if verdict.no else "admitted").inc()
        if verdict.no is not None and candidate.id in self._in_doubt:
            # Its receipt gives back what Redis may have reserved.
            raise refused(verdict.no, candidate.scopes, None)
        self._decided(candidate, verdict)
        return verdict

    def _keeps_to_part(self, candidate: AdmissionRequest) -> bool:
        """Return whether other processes may not have told Redis yet what they spent of a budget of the request."""
        if all(scope.budget is None for scope in candidate.scopes):
            return False
        return self._local.is_settling(asyncio.get_running_loop().time())

    async def _told(self, candidate: AdmissionRequest, *, alone: bool) -> Admitted:
        if alone or not self._redis.up:
            self._unsure = True
            self._news.set()
            return None
        self._untold[candidate.id] = candidate
        admitted: asyncio.Future[Admitted] = asyncio.get_running_loop().create_future()
        self._admitting[candidate.id] = admitted
        self._news.set()
        try:
            return await admitted
        finally:
            del self._admitting[candidate.id]

    def put(self, receipt: Receipt) -> None:
        """Hand a receipt over; it is written soon, together with others that came meanwhile."""
        candidate = self._under_way.pop(receipt.id, None)
        self._untold.pop(receipt.id, None)
        self._local.settle(receipt.id, receipt.cost_usd)
        self._waiting[receipt.id] = Settlement(receipt, candidate.variants[0].intent if candidate is not None else None)
        if len(self._waiting) > _MAX_WAITING:
            oldest, lost = self._waiting.popitem(last=False)
            if oldest in self._on_disk:
                self._on_disk.discard(oldest)
                self._shed.add(oldest)
            else:
                self._lose(lost.receipt)
        self._metrics.receipts_waiting.set(len(self._waiting))
        self._look_in(_LINGER_S)

    async def get(self, tenant: str, receipt_id: str) -> bytes | None:
        """A tenant's receipt as JSON, or None. Raises StoreUnavailable."""
        waiting = self._waiting.get(receipt_id) or self._again.get(receipt_id)
        if waiting is not None:
            return waiting.receipt.to_json() if waiting.receipt.tenant == tenant else None
        found, asked = None, False
        if self._redis.up:
            # The client is not told of a failure: no request is to go without Redis because a look was slow.
            with suppress(RedisError, OSError):
                found, asked = await self._ledger.receipt(tenant, receipt_id), True
        if found is None and self._older is not None:
            found = await self._older(tenant, receipt_id)
        if found is None and not asked:
            raise StoreUnavailable("Receipts cannot be read while Redis is away. Try again.")
        return found

    def remember(self, receipt: Receipt) -> None:
        """Redis took this one by another way: it is told again as all are, should Redis forget."""
        self._taken.append((asyncio.get_running_loop().time(), Settlement(receipt, None)))

    def holds(self, request_id: str) -> bool:
        """Whether a request is under way here, or its receipt is still to be told."""
        return any(request_id in held for held in (self._under_way, self._waiting, self._shed, self._again))

    @property
    def stuck(self) -> bool:
        """Whether Redis does not take receipts at present, as far as is known."""
        return not self._redis.up or self._refused

    def to_spool(self, most: int) -> list[Settlement]:
        """Some that wait, and are not in the spool, the oldest first."""
        return list(islice((one for name, one in self._waiting.items() if name not in self._on_disk), most))

    def spooled(self, ids: Iterable[str]) -> None:
        """These are in the spool. Redis may have taken them meanwhile."""
        self._on_disk.update(one for one in ids if one in self._waiting)

    @property
    def has_spooled(self) -> bool:
        """Whether anything is still to be told that is in the spool."""
        return bool(self._on_disk or self._shed)

    @property
    def shed(self) -> Set[str]:
        """What is to be told out of the spool: there was no room for it in memory."""
        return self._shed

    def give_up(self) -> int:
        """Before a process ends: what stands neither in Redis nor in the spool is lost. How many."""
        lost = [one.receipt for name, one in self._waiting.items() if name not in self._on_disk]
        for receipt in lost:
            del self._waiting[receipt.id]
            self._lose(receipt)
        return len(lost)

    def _lose(self, receipt: Receipt) -> None:
        """Not silently: the log line is now the only place where this receipt stands."""
        self._local.lost(receipt.id)
        self._metrics.receipts_lost.inc()
        log.error("receipt_lost", id=receipt.id, receipt=receipt.as_dict())

    def told_from_spool(self, ids: Iterable[str]) -> None:
        """Redis took these."""
        ids = list(ids)
        self._shed.difference_update(ids)
        self._local.told(ids)

    def beat(self) -> None:
        """Let Redis know that this process lives, for every tenant that has requests under way here."""
        self._beats = {candidate.tenant for candidate in self._under_way.values()}
        if self._beats:
            self._news.set()

    def tell_again(self) -> None:
        """Redis may have forgotten: let it know anew of every request that is under way, and of the last receipts."""
        self._unsure = True
        # Once it has forgotten a receipt in due time, it would take the same for a new one.
        since = asyncio.get_running_loop().time() - self._ledger.ttl_s / 2
        self._again.update((one.receipt.id, one) for at, one in self._taken if at > since)
        self._taken.clear()
        self._ledger.forget()
        self._news.set()

    async def run(self) -> None:
        """Exchange what there is, for ever. Whatever fails, the loop lives on: every later request needs it."""
        while True:
            await self._news.wait()
            if not self._redis.up:
                self._answer(list(self._admitting), None)
                await self._redis.wait_up()
            await asyncio.sleep(0)  # requests that are ready now come along
            self._news.clear()
            if not await self._exchange():
                self._look_in(_RETRY_S)

    async def flush(self) -> bool:
        """Write every receipt that waits; False when Redis did not take it."""
        while self._waiting or self._again:
            if not await self._exchange():
                return False
        return True

    async def _exchange(self) -> bool:
        """Tell Redis what waits, as much as one round trip should carry; False when it did not take it."""
        async with self._exchanging:
            if self._unsure:
                # What asks to be admitted still asks. What was let in is only to be counted.
                under_way = {name: one.let_in() for name, one in self._under_way.items()}
                self._untold, self._unsure = {**under_way, **self._untold}, False
            candidates = [self._untold.pop(one) for one in list(islice(self._untold, _BATCH))]
            settled = list(islice(chain(self._waiting.values(), self._again.values()), _BATCH))
            beats, self._beats = self._beats, set()
            if not candidates and not settled and not beats:
                self._refused = False  # what was refused is no more
                return True
            try:
                brought = await self._ledger.exchange(candidates, settled, beats)
            except Exception as error:
                self._redis.failed(error)
                self._local.fail()
                self._unsure = True
                self._in_doubt.update(one.id for one in candidates if one.id in self._admitting)
                self._answer([candidate.id for candidate in candidates], None)
                if not self._refused:
                    unexpected = not isinstance(error, RedisError | OSError)
                    log.warning(
                        "receipts_waiting", count=len(self._waiting), error=type(error).__name__, exc_info=unexpected
                    )
                self._refused = True
                return False
        self._refused = False
        now = asyncio.get_running_loop().time()
        self._local.told([candidate.id for candidate in candidates])
        self._local.recover(now)
        for candidate in candidates:
            self._decided(candidate, brought.verdicts[candidate.id][0])
        self._answer([candidate.id for candidate in candidates], brought)
        self._took(settled)
        for tenant, scope, left in brought.left:
            self._local.learn(tenant, scope, left, now)
        self._metrics.receipts_waiting.set(len(self._waiting))
        if brought.replaced:
            # This process was taken for dead. What others said of these requests holds no longer.
            log.warning("abandoned_replaced", ids=brought.replaced)
        for event in brought.events:
            self._on_event(event)
        if self._untold or len(settled) == _BATCH:
            self._news.set()
        return True

    def _took(self, settled: Sequence[Settlement]) -> None:
        self._local.told([one.receipt.id for one in settled])
        now, again = asyncio.get_running_loop().time(), 0
        for one in settled:
            self._waiting.pop(one.receipt.id, None)
            self._on_disk.discard(one.receipt.id)
            again += self._again.pop(one.receipt.id, None) is not None
            self._taken.append((now, one))
        if again:
            self._metrics.receipts_resent.inc(again)
        # By what the watch knows: until it has asked, Redis may be another one that forgot.
        while self._taken and self._taken[0][0] < self._redis.same_at - REMEMBERED_S:
            self._taken.popleft()

    def _decided(self, candidate: AdmissionRequest, verdict: AdmissionVerdict) -> None:
        """Note what became of a request at once: who asks may hear of it only after the next exchange has begun."""
        if candidate.id not in self._under_way:
            return  # its receipt came meanwhile
        if verdict.no is not None:
            del self._under_way[candidate.id]
        elif verdict.variant != candidate.variants[0].kind:
            self._under_way[candidate.id] = candidate.following(verdict.variant)

    def _answer(self, ids: Iterable[str], brought: ExchangeResult | None) -> None:
        """Let requests go on that wait for admission; one that was cancelled meanwhile no longer does."""
        for one in ids:
            if brought is None:
                # It goes on unasked, or not at all: from here on it is only to be counted.
                self._unsure = True
                self._untold.pop(one, None)
            admitted = self._admitting.get(one)
            if admitted is not None and not admitted.done():
                admitted.set_result(brought.verdicts[one] if brought is not None else None)

    def _look_in(self, delay_s: float) -> None:
        if self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        self._alarm = None
        self._news.set()
