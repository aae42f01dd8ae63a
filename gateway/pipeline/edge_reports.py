"""What devices report of the answers that they finish: checked, written once, counted.

A device that hears no reply may tell the same again, to whichever process: the second time it is closed already.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from gateway.accounting.edge import GUIDANCE, check_report, closing, closing_id, offline, state_of
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

# A receipt is told to Redis a moment after its reply has left, and a device may be as fast as that.
_READ_ATTEMPTS, _READ_RETRY_S = 3, 0.2
# While Redis is away it waits in the process that gave the guidance, which another one cannot know of.
_RECEIPT_DELAY_S = 120.0
_RETRY_AFTER_S = 3600.0
# What is not written, as the metric has it. Too many are refused, and counted as that.
_REJECTED_OUTCOMES: dict[Outcome, str] = {"closed": "closed_twice", "expired": "expired"}


class EdgeReports:
    """Args:
    reads: slots of the connections to Redis that this shares with reads.
    prices: USD per token by model.
    within_s: for how long after it ended an answer that was made offline may be reported.
    max_output: the largest answer of an engine.
    clock: Unix seconds.
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
        """Account for what a device did with a guidance of its tenant's: the receipt of that.

        Raises:
            NotFound: the tenant has no such guidance, whether or not another one has.
            EdgeClosed: it was reported before, or there is nothing to report.
            EdgeExpired: it comes too late.
            InvalidRequest: the device says to have written more than it was asked for.
            Overloaded, StoreUnavailable: not now; or the answer is so young that its guidance may yet become known.
        """
        with self._admission.slot(caller):
            guidance = await self._guidance(caller.policy, receipt_id, usage.at)
            if guidance is None:
                self._outcomes.labels("unknown").inc()
                raise NotFound(
                    "There is no such guidance. Its id is `receipt` in the reply that gave it.", param="receipt"
                )
            try:
                check_report(guidance, usage, self._max_output)
            except EdgeClosed:
                self._outcomes.labels("closed_twice").inc()
                raise
            except InvalidRequest:
                self._outcomes.labels("too_many_tokens").inc()
                raise
            assert guidance.close is not None, "which check_report has seen to"
            receipt = closing(guidance, usage, self._prices.get(guidance.baseline_model))
            await self._write(caller.policy, receipt, guidance.close.by, "closed")
            return receipt

    async def add_offline(self, caller: Caller, report: OfflineUsage) -> Receipt:
        """Account for an answer that a device made alone: its receipt.

        Raises:
            ModelNotFound, RouteWithoutGuidance: the key may use no such route, or none that guides.
            EdgeClosed: an answer of that id was reported before.
            EdgeExpired: it ended too long ago.
            RateLimited: the tenant's devices report too many.
            InvalidRequest, Overloaded, StoreUnavailable.
        """
        with self._admission.slot(caller):
            route = _route(caller, report.model)
            policy, price = caller.policy, self._prices[route.baseline]
            try:
                now, within_s, max_output = self._clock(), self._within_s, self._max_output
                receipt = offline(policy.tenant, caller.key_id, route, report, price, now, within_s, max_output)
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
        """How the account of a guidance stands. Raises StoreUnavailable."""
        closed = (
            guidance.close is not None and await self._store.get(guidance.tenant, closing_id(guidance.id)) is not None
        )
        return state_of(guidance, closed=closed, now=self._clock())

    async def _guidance(self, policy: TenantPolicy, receipt_id: str, at: float | None) -> Receipt | None:
        """Its receipt; None: there is none. Raises Overloaded; and StoreUnavailable, also where one may come yet.

        at: when its answer ended, in Unix seconds, as its device says.
        """
        if not REQUEST_ID.fullmatch(receipt_id):  # whatever else a device sends is none of the stores' business
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
            raise StoreUnavailable("The receipt of this guidance is not known yet. Try again.")
        return None

    async def _write(self, policy: TenantPolicy, receipt: Receipt, by: int | None, outcome: str) -> None:
        """Write a receipt once, and count it as `outcome`, whether or not its device still listens.

        The write holds its slot until it ends, also when the device disconnects.
        """
        result = None
        if self._redis.up:
            self._read_slots.acquire(policy.tenant, policy.weight)
            task = self._tasks.spawn(f"report:{receipt.id}", self._write_once(receipt, by, outcome))
            task.add_done_callback(lambda _: self._read_slots.release(policy.tenant))
            result = await asyncio.shield(task)
        if result is None:
            raise StoreUnavailable("What a device reports cannot be kept while Redis is away. Try again.")
        if result == "closed":
            raise EdgeClosed("This was reported before, and is accounted for.", param="receipt")
        if result == "expired":
            raise EdgeExpired("It is too late to report this: `close.by` has passed.", param="receipt")
        if result == "full":
            raise RateLimited(
                "The devices of this tenant report too many answers that they made alone. Try again later.",
                retry_after_s=_RETRY_AFTER_S,
            )

    async def _write_once(self, receipt: Receipt, by: int | None, outcome: str) -> Outcome | None:
        """What became of it; None: Redis cannot be asked."""
        try:
            result = await self._book.write(receipt, by)
        except (RedisError, OSError):
            # The client is not told of it: no request is to go without Redis because a report was slow.
            return None
        if result == "written":
            self._outcomes.labels(outcome).inc()
            self._ledger.booked(receipt)
            self._store.remember(receipt)
        elif result in _REJECTED_OUTCOMES:
            self._outcomes.labels(_REJECTED_OUTCOMES[result]).inc()
        return result


def _route(caller: Caller, model: str) -> Route:
    """The first route of that name that guides. What its `when` asks for is not known of an answer that was made."""
    if model not in models_of(caller):
        names = ", ".join(f"'{name}'" for name in models_of(caller))
        raise ModelNotFound(f"There is no model '{model}' for this key. It may use: {names}.", param="model")
    routes = [route for _, route in caller.policy.routes_of[model]]
    for route in routes:
        if route.mode == "guided":
            return route
    raise route_without_guidance(routes[0])
