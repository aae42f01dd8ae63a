"""Reports of devices about the answers that they complete: check each, store it once, and count it.

A device that gets no reply may send the same report again, to any process. The second report finds the receipt closed.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from gateway.accounting.edge import (
    GUIDANCE,
    check_report,
    closing_id,
    closing_receipt,
    offline_receipt,
    state_of,
    uncounted,
)
from gateway.accounting.edge_book import SavingsBound
from gateway.accounting.receipt import REQUEST_ID, Receipt
from gateway.accounting.redis_ledger import Settlement
from gateway.errors import (
    EdgeClosed,
    EdgeExpired,
    InvalidRequest,
    NotFound,
    RateLimited,
    StoreUnavailable,
)
from gateway.policy.resolve import route_without_guidance
from gateway.policy.routing import NO_HEADERS, not_found, routes_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.accounting.edge import State
    from gateway.accounting.edge_book import EdgeBook, Outcome
    from gateway.accounting.engine_set import EngineSet
    from gateway.accounting.labels import Labeler
    from gateway.accounting.ledger import Ledger
    from gateway.accounting.store import ReceiptStore
    from gateway.pipeline.admission import Admission, Slots
    from gateway.policy.book import Caller
    from gateway.policy.schema import Route, TenantPolicy
    from gateway.protocol.edge import OfflineBody, UsageBody
    from gateway.redis.client import RedisClient
    from gateway.runtime.tasks import BackgroundTasks
    from gateway.telemetry.metrics import Metrics

# A process stores a receipt shortly after it sends the reply, and a device may report before that.
_READ_ATTEMPTS, _READ_RETRY_S = 3, 0.2
# While Redis is unavailable, the receipt waits in the process that gave the guidance. Other processes cannot read it.
_RECEIPT_DELAY_S = 120.0
_RETRY_AFTER_S = 3600.0
# Label of each rejected report. Too many reports are rejected and counted as rate limited.
_REJECTED_OUTCOMES: dict[Outcome, str] = {"closed": "closed_twice", "expired": "expired"}
_STORED_OUTCOMES: frozenset[Outcome | None] = frozenset({"written", "uncounted"})


@dataclass(frozen=True, slots=True)
class EdgeReports:
    """Store the receipts of answers that devices complete or make alone.

    An offline answer may be reported within `within_s` seconds after its end. `reads` are slots for Redis connections,
    shared with reads of receipts. `clock` returns Unix seconds.
    """

    redis: RedisClient
    book: EdgeBook
    store: ReceiptStore
    ledger: Ledger
    admission: Admission
    reads: Slots
    metrics: Metrics
    tasks: BackgroundTasks
    within_s: float
    labeler: Labeler | None = None
    clock: Callable[[], float] = time.time

    async def close(self, caller: Caller, receipt_id: str, usage: UsageBody, engines: EngineSet) -> Receipt:
        """Store the receipt of what a device generated after guidance of its tenant, and return it.

        Raises:
            NotFound: the tenant has no such guidance; another tenant may have it.
            EdgeClosed, EdgeExpired: the guidance was reported before, there is nothing to report, or it is too late.
            InvalidRequest: the report contains more output tokens than the guidance allowed.
            Overloaded, StoreUnavailable: retry later. Also raised if the receipt of recent guidance may still arrive.
        """
        with self.admission.slot(caller):
            guidance = await self._guidance(caller.policy, receipt_id, usage.at)
            if guidance is None:
                self.metrics.edge_closings.labels("unknown").inc()
                raise NotFound(
                    "There is no guidance with this id. Send the `receipt` of the guidance's reply.", param="receipt"
                )
            try:
                check_report(guidance, usage, engines.max_output)
            except EdgeClosed:
                self.metrics.edge_closings.labels("closed_twice").inc()
                raise
            except InvalidRequest:
                self.metrics.edge_closings.labels("too_many_tokens").inc()
                raise
            assert guidance.close is not None, "check_report() requires it"
            receipt = closing_receipt(guidance, usage, engines.prices.get(guidance.baseline_model))
            return await self._write(caller, receipt, guidance.close.by, "closed")

    async def add_offline(
        self, caller: Caller, report: OfflineBody, engines: EngineSet, headers: Mapping[str, str] = NO_HEADERS
    ) -> Receipt:
        """Store the receipt of an answer that a device made alone, and return it.

        Raises:
            ModelNotFound, RouteWithoutGuidance: the key may not use the route, or the route has no guidance.
            EdgeClosed, EdgeExpired: an answer with this id was reported before, or ended too long ago.
            RateLimited: the tenant's devices report too many answers.
            InvalidRequest, Overloaded, StoreUnavailable.
        """
        with self.admission.slot(caller):
            policy, route, now = caller.policy, _route(caller, report.model), self.clock()
            price, limits = engines.prices[route.baseline], (self.within_s, engines.max_output)
            labels = {} if self.labeler is None else self.labeler.of_report(caller, headers, report.metadata)
            try:
                receipt = offline_receipt(policy.tenant, caller.key.id, route, report, price, now, *limits, labels)
            except EdgeExpired:
                self.metrics.edge_closings.labels("expired").inc()
                raise
            except InvalidRequest as wrong:
                if wrong.param == "output_tokens":
                    self.metrics.edge_closings.labels("too_many_tokens").inc()
                raise
            return await self._write(caller, receipt, None, "offline")

    async def state(self, guidance: Receipt) -> State:
        """Return the state of a guidance's account. Raises StoreUnavailable."""
        closing = None
        if guidance.close is not None:
            closing = await self.store.get(guidance.tenant, closing_id(guidance.id))
        return state_of(guidance, closed=closing is not None, now=self.clock())

    async def _guidance(self, policy: TenantPolicy, receipt_id: str, at: float | None) -> Receipt | None:
        """Return the receipt of a guidance, or None. Raises StoreUnavailable if the receipt may still arrive.

        `at` is the end of the device's answer, in Unix seconds, as the device reports it.
        """
        if not REQUEST_ID.fullmatch(receipt_id):  # any other text cannot be an id: do not query the stores
            return None
        for attempt in range(_READ_ATTEMPTS):
            if attempt:
                await asyncio.sleep(_READ_RETRY_S)
            with self.reads.hold(policy.tenant, policy.weight):
                raw = await self.store.get(policy.tenant, receipt_id)
            if raw is not None:
                receipt = Receipt.from_json(raw)
                return receipt if receipt.mode == GUIDANCE else None
        if at is not None and abs(self.clock() - at) < _RECEIPT_DELAY_S:
            raise StoreUnavailable("The receipt of this guidance is not stored yet. Retry the request.")
        return None

    async def _write(self, caller: Caller, receipt: Receipt, by: int | None, outcome: str) -> Receipt:
        """Store a receipt once, count it as `outcome`, and return it as stored. The write goes on with its slot if the
        device leaves."""
        policy, result = caller.policy, None
        if self.redis.up:
            self.reads.acquire(policy.tenant, policy.weight)
            task = self.tasks.spawn(
                f"report:{receipt.id}", self._write_once(receipt, by, outcome, _savings_bound(caller))
            )
            task.add_done_callback(lambda _: self.reads.release(policy.tenant))
            result = await asyncio.shield(task)
        if result is None:
            raise StoreUnavailable("Reports cannot be stored while Redis is unavailable. Retry the request.")
        if result == "closed":
            raise EdgeClosed("This answer was already reported. Do not send it again.", param="receipt")
        if result == "expired":
            raise EdgeExpired("The report is too late: `close.by` has passed.", param="receipt")
        if result == "full":
            text = "The devices of this tenant report too many offline answers. Retry later."
            raise RateLimited(text, retry_after_s=_RETRY_AFTER_S)
        return uncounted(receipt) if result == "uncounted" else receipt

    async def _write_once(
        self, receipt: Receipt, by: int | None, outcome: str, bound: SavingsBound | None
    ) -> Outcome | None:
        try:
            result = await self.book.write(receipt, by, bound)
        except (RedisError, OSError):
            # The client's state stays up: a slow report must not make other requests run without Redis.
            return None
        if result in _STORED_OUTCOMES:
            receipt = uncounted(receipt) if result == "uncounted" else receipt
            self.metrics.edge_closings.labels(outcome).inc()
            self.ledger.record_edge_report(receipt)
            self.store.remember([Settlement(receipt, None)])
        elif result in _REJECTED_OUTCOMES:
            self.metrics.edge_closings.labels(_REJECTED_OUTCOMES[result]).inc()
        return result


def _savings_bound(caller: Caller) -> SavingsBound | None:
    """Return the bound on savings that the caller's reports count; None: the key is not marked as a device."""
    device = caller.key.device or caller.policy.key_device
    return None if device is None else SavingsBound(caller.key.id, device.max_daily_savings)


def _route(caller: Caller, model: str) -> Route:
    """Return the first guided route of that name. A route's `when` is ignored, because its input is unknown here."""
    routes = [route for _, route in routes_for(caller, model)]
    if not routes:
        raise not_found(caller, model)
    for route in routes:
        if route.mode == "guided":
            return route
    raise route_without_guidance(routes[0])
