"""Store each request in Redis: its intent at admission, then its receipt in place of the intent.

The same exchange counts limits and budgets, so it may refuse the request. At most one exchange runs at a time. Requests
and receipts that arrive meanwhile share the next one. Receipts wait a moment for such a batch, and so do intents of
requests without limits and budgets, which continue at once.

While Redis is down, receipts wait in memory, up to a limit, and on disk (spooler.py). Requests then continue within a
local allowance (local_limits.py), continue uncounted, or are rejected, as configured. A restarted Redis may have lost
the last writes that it acknowledged, so the store keeps recent settlements for a moment and resends them.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import suppress
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeAlias

import structlog
from redis.exceptions import RedisError

from gateway.accounting.exchange_batch import next_settlements, still_rejected, with_unsure
from gateway.accounting.recent_settlements import RecentSettlements
from gateway.accounting.redis_ledger import Settlement
from gateway.accounting.verdict import refusal_error
from gateway.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

    from gateway.accounting.local_limits import LocalLimits
    from gateway.accounting.receipt import Receipt
    from gateway.accounting.redis_ledger import AdmissionRequest, ExchangeResult, RedisLedger, TenantEvent
    from gateway.accounting.scopes import Scope
    from gateway.accounting.verdict import AdmissionVerdict
    from gateway.config.limits import OnRedisFailure
    from gateway.redis.client import RedisClient
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

ArchiveLookup: TypeAlias = "Callable[[str, str], Awaitable[bytes | None]]"
"""Reads a receipt that Redis does not have, by tenant and id."""
Admitted: TypeAlias = "tuple[AdmissionVerdict, tuple[Scope, ...], int | None] | None"
"""The verdict on a request, its scopes, and Redis TIME in microseconds. The time is None where this process decided
without Redis. The whole value is None for a request that continues uncounted, or has neither limits nor budgets."""


class ReceiptStore:
    """Store intents and receipts in Redis, one exchange at a time.

    Args:
        local: decides and counts while Redis is down.
        archive: reads a tenant's receipt that Redis does not have; raises StoreUnavailable.
        max_waiting: limit of receipts that wait in memory for Redis.
        batch: limit of requests and of receipts of one exchange.
        retry_s: pause after a failed exchange.
        linger_s: a delay for receipts and for intents that nothing waits for, so that they share a later exchange.
    """

    def __init__(
        self,
        redis: RedisClient,
        ledger: RedisLedger,
        *,
        local: LocalLimits,
        on_event: Callable[[TenantEvent], None],
        archive: ArchiveLookup | None = None,
        metrics: Metrics,
        max_waiting: int = 10_000,
        batch: int = 200,
        retry_s: float = 1.0,
        linger_s: float = 0.02,
    ) -> None:
        self._redis, self._ledger, self._local = redis, ledger, local
        self._max_waiting, self._batch, self._retry_s, self._linger_s = max_waiting, batch, retry_s, linger_s
        self._on_event, self._archive, self._metrics = on_event, archive, metrics
        self._under_way: dict[str, AdmissionRequest] = {}  # requests without a receipt yet
        self._unsent: dict[str, AdmissionRequest] = {}  # requests under way that the next exchange sends
        self._admitting: dict[str, asyncio.Future[Admitted]] = {}
        self._waiting: OrderedDict[str, Settlement] = OrderedDict()
        metrics.follow(metrics.receipts_waiting, lambda: len(self._waiting))
        self._on_disk: set[str] = set()  # settlements that wait and are in the spool as well
        self._spool_only: dict[str, str] = {}  # settlements that are in the spool alone -> their namespaces
        self._recent = RecentSettlements(2 * max_waiting)
        self._resending: OrderedDict[str, Settlement] = OrderedDict()  # settlements that Redis may have lost
        self._in_doubt: set[str] = set()  # requests whose exchange failed: Redis may hold their intents
        self._unsure: set[str] = set()  # requests whose intents Redis may lack, if they are under way
        self._beats: set[str] = set()  # tenants for which the next exchange renews this process's lease
        self._failed = False  # the last exchange failed
        self._rejected: Collection[str] | None = ()  # the namespaces whose last call failed; None for all
        self._work, self._exchanging = asyncio.Event(), asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0  # the delay of the timer

    async def admit(self, candidate: AdmissionRequest, *, on_failure: OnRedisFailure) -> Admitted:
        """Return the verdict on a request before it spends anything; None where neither limits nor budgets apply.

        The caller must `put` a receipt for an admitted request. After an error it must do so where `holds` returns
        True: Redis may hold an intent. `on_failure` is the action while Redis is down. A request that continues is
        counted when Redis is up again. Otherwise StoreUnavailable or RateLimited is raised.
        """
        name = candidate.id
        self._under_way[name] = candidate
        waiting = len(self._waiting) + len(self._unsent)
        is_free = not candidate.scopes and on_failure != "reject"
        if is_free and not self.is_blocked and self.is_up(candidate.namespace) and waiting < self._batch:
            # Nothing can refuse the request, so it does not wait. A crash in the meantime loses its intent. It waits if
            # the next exchange is full: otherwise requests could end faster than Redis stores their receipts.
            self._unsent[name] = candidate
            self._wake_in(self._linger_s)
            return None
        try:
            # Other processes may still have to report spending of the request's budgets to Redis.
            alone = on_failure == "degrade" and any(scope.budget is not None for scope in candidate.scopes)
            alone = alone and self._local.is_settling(candidate.namespace, asyncio.get_running_loop().time())
            admitted = await self._verdict(name, candidate, alone=alone)
            if admitted is None:
                self._metrics.intents_missed.inc()
                if on_failure == "reject":
                    if name not in self._in_doubt:
                        del self._under_way[name]
                    raise StoreUnavailable("Redis is down, and requests of this gateway require it. Try again.")
                if on_failure == "degrade" and candidate.scopes:
                    return self._decide_alone(candidate), candidate.scopes, None
        finally:
            self._in_doubt.discard(name)
        return admitted

    def _decide_alone(self, candidate: AdmissionRequest) -> AdmissionVerdict:
        verdict = self._local.admit(candidate, self._under_way.values(), asyncio.get_running_loop().time())
        tenant = self._metrics.series.tenant(candidate.tenant)
        self._metrics.local_admissions.labels(tenant, verdict.refusal.limit if verdict.refusal else "admitted").inc()
        if verdict.refusal is not None and candidate.id in self._in_doubt:
            # Its receipt releases what Redis may have reserved.
            raise refusal_error(verdict.refusal, candidate.scopes, None)
        self._record_verdict(candidate.id, candidate, verdict)
        return verdict

    async def _verdict(self, name: str, candidate: AdmissionRequest, *, alone: bool) -> Admitted:
        if alone or not self.is_up(candidate.namespace):
            self._unsure.add(name)
            self._work.set()
            return None
        self._unsent[name] = candidate
        self._admitting[name] = asyncio.get_running_loop().create_future()
        self._work.set()
        try:
            return await self._admitting[name]
        finally:
            del self._admitting[name]

    def put(self, receipt: Receipt) -> None:
        """Queue a receipt. The next exchange stores it."""
        candidate = self._under_way.pop(receipt.id, None)
        self._unsent.pop(receipt.id, None)
        self._local.settle(receipt.id, receipt.cost_usd)
        self._waiting[receipt.id] = Settlement(receipt, candidate.variants[0].intent if candidate is not None else None)
        if len(self._waiting) > self._max_waiting:
            oldest, lost = self._waiting.popitem(last=False)
            if oldest in self._on_disk:
                self._on_disk.discard(oldest)
                self._spool_only[oldest] = lost.namespace
            else:
                self._lose(lost.receipt)
        self._wake_in(self._linger_s)

    async def get(self, tenant: str, receipt_id: str) -> bytes | None:
        """Return a tenant's receipt as JSON, or None. Raises StoreUnavailable: Redis is down and no archive has it."""
        found, was_read = None, False
        with suppress(StoreUnavailable):
            found, was_read = await self.recent(tenant, receipt_id), True
        if found is None and self._archive is not None:
            found = await self._archive(tenant, receipt_id)
        if found is None and not was_read:
            raise StoreUnavailable("Receipts cannot be read while Redis is down. Try again.")
        return found

    async def recent(self, tenant: str, receipt_id: str) -> bytes | None:
        """Return a tenant's receipt that is in Redis or will be, as JSON. Raises StoreUnavailable."""
        waiting = self._waiting.get(receipt_id) or self._resending.get(receipt_id)
        if waiting is not None:
            return waiting.receipt.to_json() if waiting.receipt.tenant == tenant else None
        if self._redis.up:
            # This failure does not count as an outage: a slow query must not stop requests from using Redis.
            with suppress(RedisError, OSError):
                return await self._ledger.receipt(tenant, receipt_id)
        raise StoreUnavailable("Receipts cannot be read while Redis is down. Try again.")

    def remember(self, settled: Iterable[Settlement]) -> None:
        """Resend settlements that another part of the gateway sent, if Redis loses them."""
        self._recent.add_of_others(settled, asyncio.get_running_loop().time(), self._redis.unchanged_at)

    def holds(self, request_id: str) -> bool:
        """Return whether a request is under way here, or its receipt is not stored yet."""
        return any(request_id in held for held in (self._under_way, self._waiting, self._spool_only, self._resending))

    @property
    def is_blocked(self) -> bool:
        """Return whether Redis does not accept receipts at present, as far as is known."""
        return not self._redis.up or self._failed

    def next_for_spool(self, limit: int, *, accepted: bool = False) -> list[Settlement]:
        """Return the oldest settlements that are not in the spool. `accepted`: also those that Redis accepts now."""
        found = (one for name, one in self._waiting.items() if name not in self._on_disk)
        if self._redis.up and not accepted and (rejected := self._rejected) is not None:
            found = (one for one in found if one.namespace in rejected or not self._can_send(one.namespace))
        return list(islice(found, limit))

    def mark_spooled(self, ids: Iterable[str]) -> None:
        """Record that these receipts are in the spool. Redis may have stored some of them in the meantime."""
        self._on_disk.update(one for one in ids if one in self._waiting)

    @property
    def has_spooled(self) -> bool:
        """Return whether the spool holds receipts that Redis does not have."""
        return bool(self._on_disk or self._spool_only)

    def sendable_spooled(self) -> set[str]:
        """Return the ids of receipts that are in the spool alone, not in memory, except those for failed nodes."""
        return {name for name, namespace in self._spool_only.items() if self.is_up(namespace)}

    def drop_unsaved(self) -> None:
        """Drop receipts that are neither in Redis nor in the spool, before the process ends."""
        for name in [name for name in self._waiting if name not in self._on_disk]:
            self._lose(self._waiting.pop(name).receipt)

    def _lose(self, receipt: Receipt) -> None:
        """Log a receipt that is dropped. The log line is its only record."""
        self._local.lost(receipt.id)
        self._metrics.receipts_lost.inc()
        log.error("receipt_lost", id=receipt.id, receipt=receipt.as_dict())

    def confirm_spooled(self, settled: Sequence[Settlement]) -> None:
        """Record that Redis stored these receipts from the spool."""
        for one in settled:
            self._spool_only.pop(one.receipt.id, None)
        self._mark_stored(settled)

    def beat(self) -> None:
        """Renew this process's lease for every tenant and slice that has requests under way here."""
        self._beats = {candidate.namespace for candidate in self._under_way.values()}
        if self._beats:
            self._work.set()

    def resend(self) -> None:
        """Resend all requests under way and the last receipts: Redis may have lost them."""
        self._unsure.update(self._under_way)
        # Redis may have expired older receipts. It would count those again.
        since = asyncio.get_running_loop().time() - self._ledger.ttl_s / 2
        self._resending.update((one.receipt.id, one) for one in self._recent.take(since))
        self._ledger.forget_tenants()
        self._work.set()

    async def run(self) -> None:
        """Run exchanges until canceled. The loop survives every error, since later requests depend on it."""
        while True:
            await self._work.wait()
            if not self._redis.up:
                self._answer(list(self._admitting), None)
                await self._redis.wait_up()
            await asyncio.sleep(0)  # other requests that are ready join this exchange
            self._work.clear()
            if not await self._exchange():
                self._wake_in(self._retry_s)

    async def flush(self) -> bool:
        """Store every waiting receipt. Return False when Redis does not accept them."""
        while self._waiting or self._resending:
            if not await self._exchange():
                return False
        return True

    async def _exchange(self) -> bool:
        """Send one batch to Redis. Return False when Redis does not accept it, or not all of it."""
        async with self._exchanging:
            self._resend_unsure()
            ids = list(islice((key for key, one in self._unsent.items() if self._can_send(one.namespace)), self._batch))
            candidates = [self._unsent.pop(one) for one in ids]
            waiting, before = chain(self._waiting.values(), self._resending.values()), set(self._rejected or ())
            settled = next_settlements(waiting, self._batch, before, self._can_send)
            beats, self._beats = self._beats, set()
            if not candidates and not settled and not beats:
                self._failed = bool(self._waiting)  # of tenants whose node failed, else nothing is left to reject
                return not (self._waiting or self._resending)
            try:
                result = await self._ledger.exchange(candidates, settled, beats)
            except Exception as error:  # noqa: BLE001  reported
                self._note_failure([error], ids, None)
                return False
        is_full, now = len(settled) == self._batch, asyncio.get_running_loop().time()
        if result.failed:
            missed = [one for one in ids if one not in result.verdicts]
            self._note_failure(result.failed.values(), missed, result.failed)
            settled = [one for one in settled if one.namespace not in result.failed]
        admitted = [one for one in candidates if one.id in result.verdicts]
        self._local.release(one.id for one in admitted)
        self._local.recover(now, lambda name: name not in result.failed and self._can_send(name))
        for one in admitted:
            self._record_verdict(one.id, one, result.verdicts[one.id][0])
        self._answer([one.id for one in admitted], result)
        self._mark_stored(settled)
        for namespace, scope, left in result.left:
            self._local.learn(namespace, scope, left, now)
        if result.replaced:
            # Another process settled these requests as abandoned. Their real receipts replace those.
            log.warning("abandoned_replaced", ids=result.replaced)
        for event in result.events:
            self._on_event(event)
        self._rejected = still_rejected(before, candidates, settled, beats, result.failed)
        has_more = bool(settled) and (is_full or bool(before - self._rejected))
        if has_more or any(self._can_send(one.namespace) for one in self._unsent.values()):
            self._work.set()
        self._failed = self._holds_unsendable(self._waiting)
        return not (self._failed or result.failed or self._holds_unsendable(self._resending))

    def _resend_unsure(self) -> None:
        """Send requests under way that Redis may lack, to be counted only. Do not let any wait for a failed node."""
        if self._unsure:
            under_way = {name: self._under_way[name] for name in self._unsure if name in self._under_way}
            sent = {name: one.forced() for name, one in under_way.items() if self._can_send(one.namespace)}
            self._unsent = with_unsure(self._unsent, sent, self._rejected or ())
            self._unsure = under_way.keys() - sent.keys()
        if self._redis.is_cluster and not self._redis.is_whole:
            self._answer([name for name, one in self._unsent.items() if not self._can_send(one.namespace)], None)

    def _note_failure(self, errors: Iterable[Exception], ids: Sequence[str], tenants: Collection[str] | None) -> None:
        """Report errors of an exchange, and let its requests continue without a verdict. `tenants`: None for all."""
        unexpected, kind = False, ""
        for error in errors:
            unexpected, kind = self._redis.failed(error) or unexpected, type(error).__name__
        self._local.fail(tenants)
        self._unsure.update(ids)
        self._in_doubt.update(one for one in ids if one in self._admitting)
        self._answer(ids, None)
        if not self._failed:
            log.warning("receipts_waiting", count=len(self._waiting), error=kind, exc_info=unexpected)
        self._failed, self._rejected = True, tenants

    def _holds_unsendable(self, settlements: Mapping[str, Settlement]) -> bool:
        """Return whether some settlements wait for nodes of a cluster that failed or reject them."""
        rejected = self._rejected or ()
        checked = () if self._redis.is_whole and not rejected else {one.namespace for one in settlements.values()}
        return any(one in rejected or not self._can_send(one) for one in checked)

    def _can_send(self, namespace: str) -> bool:
        return not self._redis.is_cluster or self._redis.is_up(self._ledger.key_of(namespace))

    def is_up(self, namespace: str) -> bool:
        """Return whether Redis is up for a tenant or a slice."""
        return self._redis.up and self._can_send(namespace)

    def _mark_stored(self, settled: Sequence[Settlement]) -> None:
        ids = [one.receipt.id for one in settled]
        self._local.release(ids)
        for name in ids:
            self._waiting.pop(name, None)
            self._on_disk.discard(name)
        self._metrics.receipts_resent.inc(sum(self._resending.pop(name, None) is not None for name in ids))
        # Until the watch has checked its run id, Redis may have restarted and lost writes.
        self._recent.add(settled, asyncio.get_running_loop().time(), self._redis.unchanged_at)

    def _record_verdict(self, name: str, candidate: AdmissionRequest, verdict: AdmissionVerdict) -> None:
        """Record a verdict at once. The waiting request may read it only after the next exchange has begun."""
        if name not in self._under_way:
            return  # its receipt arrived in the meantime
        if verdict.refusal is not None:
            del self._under_way[name]  # another slice may get the request
            self._unsure.discard(name)
        elif verdict.variant != candidate.variants[0].kind:
            self._under_way[name] = candidate.with_variant(verdict.variant)

    def _answer(self, ids: Iterable[str], result: ExchangeResult | None) -> None:
        """Pass verdicts to waiting requests. A request that was canceled meanwhile is skipped."""
        for one in ids:
            if result is None:
                # The request continues without a verdict or ends. From now on it is only to be counted.
                self._unsure.add(one)
                self._unsent.pop(one, None)
            if (admitted := self._admitting.get(one)) is not None and not admitted.done():
                admitted.set_result(result.verdicts[one] if result is not None else None)

    def _wake_in(self, delay_s: float) -> None:
        if self._timer is not None:
            if delay_s >= self._timer_s:
                return
            self._timer.cancel()
        self._timer, self._timer_s = asyncio.get_running_loop().call_later(delay_s, self._wake), delay_s

    def _wake(self) -> None:
        self._timer = None
        self._work.set()
