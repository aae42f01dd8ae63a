"""Reports of devices about the answers that they complete: check each, store it once, and count it.

A device that gets no reply may send the same report again, to any process. The second report finds the receipt closed.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from gateway.accounting.edge import GUIDANCE, check_report, closing_id, closing_receipt, offline_receipt, state_of
from gateway.accounting.max_output import unknown_max_output
from gateway.accounting.receipt import REQUEST_ID, Receipt
from gateway.errors import (
    EdgeClosed,
    EdgeExpired,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    RateLimited,
    StoreUnavailable,
)
from gateway.policy.for_devices import route_without_guidance
from gateway.policy.routing import models_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.accounting.edge import State
    from gateway.accounting.edge_book import EdgeBook, Outcome
    from gateway.accounting.ledger import Ledger
    from gateway.accounting.max_output import MaxOutputOf
    from gateway.accounting.store import ReceiptStore
    from gateway.pipeline.admission import Admission
    from gateway.pipeline.slots import Slots
    from gateway.policy.book import Caller
    from gateway.policy.schema import Route, TenantPolicy
    from gateway.pricing import Price
    from gateway.protocol.edge import EdgeUsage, OfflineUsage
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


class EdgeReports:
    """Store the receipts of answers that devices complete or make alone.

    Args:
        reads: slots for Redis connections, shared with reads of receipts.
        prices: USD per token, by model.
        within_s: seconds after its end within which an offline answer may be reported.
        max_output: returns the largest output of an engine.
        clock: returns Unix seconds.
    """

    def __init__(
        self,
        redis: RedisClient,
        book: EdgeBook,
        store: ReceiptStore,
        ledger: Ledger,
        admission: Admission,
        reads: Slots,
        metrics: Metrics,
        tasks: BackgroundTasks,
        *,
        prices: Mapping[str, Price],
        within_s: float,
        max_output: MaxOutputOf = unknown_max_output,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis = redis
        self._book = book
        self._store = store
        self._ledger = ledger
        self._admission = admission
        self._read_slots = reads
        self._outcomes = metrics.edge_closings
        self._tasks = tasks
        self._prices = prices
        self._within_s = within_s
        self._max_output = max_output
        self._clock = clock

    async def close(self, caller: Caller, receipt_id: str, usage: EdgeUsage) -> Receipt:
        """Store the receipt of what a device generated after guidance of its tenant, and return it.

        Raises:
            NotFound: the tenant has no such guidance; another tenant may have it.
            EdgeClosed: the guidance was reported before, or there is nothing to report.
            EdgeExpired: the report is too late.
            InvalidRequest: the report contains more output tokens than the guidance allowed.
            Overloaded, StoreUnavailable: retry later. Also raised if the receipt of recent guidance may still arrive.
        """
        with self._admission.slot(caller):
            guidance = await self._guidance(caller.policy, receipt_id, usage.at)
            if guidance is None:
                self._outcomes.labels("unknown").inc()
                raise NotFound(
                    "There is no guidance with this id. Send the `receipt` of the guidance's reply.", param="receipt"
                )
            try:
                check_report(guidance, usage, self._max_output)
            except EdgeClosed:
                self._outcomes.labels("closed_twice").inc()
                raise
            except InvalidRequest:
                self._outcomes.labels("too_many_tokens").inc()
                raise
            assert guidance.close is not None, "check_report() requires it"
            receipt = closing_receipt(guidance, usage, self._prices.get(guidance.baseline_model))
            await self._write(caller.policy, receipt, guidance.close.by, "closed")
            return receipt

    async def add_offline(self, caller: Caller, report: OfflineUsage) -> Receipt:
        """Store the receipt of an answer that a device made alone, and return it.

        Raises:
            ModelNotFound, RouteWithoutGuidance: the key may not use the route, or the route has no guidance.
            EdgeClosed: an answer with this id was reported before.
            EdgeExpired: the answer ended too long ago.
            RateLimited: the tenant's devices report too many answers.
            InvalidRequest, Overloaded, StoreUnavailable.
        """
        with self._admission.slot(caller):
            route = _route(caller, report.model)
            policy, price = caller.policy, self._prices[route.baseline]
            try:
                now, within_s, max_output = self._clock(), self._within_s, self._max_output
                receipt = offline_receipt(policy.tenant, caller.key_id, route, report, price, now, within_s, max_output)
            except EdgeExpired:
                self._outcomes.labels("expired").inc()
                raise
            except InvalidRequest as wrong:
                if wrong.param == "output_tokens":
                    self._outcomes.labels("too_many_tokens").inc()
                raise
            await self._write(policy, receipt, None, "offline")
            return receipt

    async def state(self, guidance: Receipt) -> State:
        """Return the state of a guidance's account. Raises StoreUnavailable."""
        closed = (
            guidance.close is not None and await self._store.get(guidance.tenant, closing_id(guidance.id)) is not None
        )
        return state_of(guidance, closed=closed, now=self._clock())

    async def _guidance(self, policy: TenantPolicy, receipt_id: str, at: float | None) -> Receipt | None:
        """Return the receipt of a guidance, or None.

        Args:
            at: end of the device's answer, in Unix seconds, as the device reports it.

        Raises:
            Overloaded: the tenant holds too many connections to Redis.
            StoreUnavailable: Redis is unavailable, or the receipt may still arrive.
        """
        if not REQUEST_ID.fullmatch(receipt_id):  # any other text cannot be an id: do not query the stores
            return None
        for attempt in range(_READ_ATTEMPTS):
            if attempt:
                await asyncio.sleep(_READ_RETRY_S)
            with self._read_slots.hold(policy.tenant, policy.weight):
                raw = await self._store.get(policy.tenant, receipt_id)
            if raw is not None:
                receipt = Receipt.from_json(raw)
                return receipt if receipt.mode == GUIDANCE else None
        if at is not None and abs(self._clock() - at) < _RECEIPT_DELAY_S:
            raise StoreUnavailable("The receipt of this guidance is not stored yet. Retry the request.")
        return None

    async def _write(self, policy: TenantPolicy, receipt: Receipt, by: int | None, outcome: str) -> None:
        """Store a receipt once, and count it as `outcome`, even if the device disconnects meanwhile.

        The write holds its slot until it ends, even if the device disconnects.
        """
        result = None
        if self._redis.up:
            self._read_slots.acquire(policy.tenant, policy.weight)
            task = self._tasks.spawn(f"report:{receipt.id}", self._write_once(receipt, by, outcome))
            task.add_done_callback(lambda _: self._read_slots.release(policy.tenant))
            result = await asyncio.shield(task)
        if result is None:
            raise StoreUnavailable("Reports cannot be stored while Redis is unavailable. Retry the request.")
        if result == "closed":
            raise EdgeClosed("This answer was already reported. Do not send it again.", param="receipt")
        if result == "expired":
            raise EdgeExpired("The report is too late: `close.by` has passed.", param="receipt")
        if result == "full":
            raise RateLimited(
                "The devices of this tenant report too many offline answers. Retry later.",
                retry_after_s=_RETRY_AFTER_S,
            )

    async def _write_once(self, receipt: Receipt, by: int | None, outcome: str) -> Outcome | None:
        """Store a receipt, and return the outcome; None: Redis is unavailable."""
        try:
            result = await self._book.write(receipt, by)
        except (RedisError, OSError):
            # The client's state stays up: a slow report must not make other requests run without Redis.
            return None
        if result == "written":
            self._outcomes.labels(outcome).inc()
            self._ledger.record_edge_report(receipt)
            self._store.remember(receipt)
        elif result in _REJECTED_OUTCOMES:
            self._outcomes.labels(_REJECTED_OUTCOMES[result]).inc()
        return result


def _route(caller: Caller, model: str) -> Route:
    """Return the first guided route of that name. A route's `when` is ignored, because its input is unknown here."""
    if model not in models_of(caller):
        names = ", ".join(f"'{name}'" for name in models_of(caller))
        raise ModelNotFound(f"There is no model '{model}' for this key. It may use: {names}.", param="model")
    routes = [route for _, route in caller.policy.routes_of[model]]
    for route in routes:
        if route.mode == "guided":
            return route
    raise route_without_guidance(routes[0])
