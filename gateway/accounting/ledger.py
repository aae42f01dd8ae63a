"""Close each request once and publish its receipt to the store, the log and the metrics.

At admission the ledger stores an intent. It settles a request whose process dies.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import structlog

from gateway.accounting.intent import intend
from gateway.accounting.receipt_counters import ReceiptCounters
from gateway.accounting.redis_ledger import AdmissionRequest, Variant
from gateway.accounting.slice_admission import SliceAdmission
from gateway.accounting.worst_case import budget_max_tokens, worst_case
from gateway.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from gateway.accounting.answer_length_book import AnswerLengths
    from gateway.accounting.content import LoggedContent
    from gateway.accounting.receipt import Receipt
    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.accounting.request_log import LogSample
    from gateway.accounting.scopes import Scope
    from gateway.accounting.slice_events import SliceEvents
    from gateway.accounting.spans import ReceiptSpans
    from gateway.accounting.store import Admitted, ReceiptStore
    from gateway.accounting.worst_case import MaxCost
    from gateway.config.limits import OnRedisFailure
    from gateway.policy.plan import Plan
    from gateway.protocol.requests import AnyRequest
    from gateway.runtime.tasks import BackgroundTasks
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()


class Ledger:
    """Admit requests, build their receipts and publish them.

    Args:
        sample: the requests to log. It may be replaced.
        spans: adds receipts to traces; None where tracing is off.
        lengths: measures the lengths of answers; None: baselines have the answers' own lengths.
        slice_events: sends events of budgets with slices; None: no events.
        max_estimates: requests whose missing usage is counted at the same time. Further requests are bounded by their
            size in bytes.
        max_recounts: baselines that are counted at the same time. Further receipts keep their estimate.
    """

    def __init__(
        self,
        store: ReceiptStore,
        *,
        process_id: str,
        metrics: Metrics,
        tasks: BackgroundTasks,
        sample: LogSample,
        spans: ReceiptSpans | None = None,
        lengths: AnswerLengths | None = None,
        slice_events: SliceEvents | None = None,
        max_estimates: int = 64,
        max_recounts: int = 256,
    ) -> None:
        self.sample, self._store, self._spans = sample, store, spans
        self._slices = SliceAdmission(store, slice_events)
        self._process_id, self._metrics, self._tasks = process_id, metrics, tasks
        self._max_estimates, self._max_recounts = max_estimates, max_recounts
        self._recounting = self._estimating = 0
        self._lengths = lengths
        self._counters = ReceiptCounters(metrics)

    async def admit(
        self,
        builder: ReceiptBuilder,
        request: AnyRequest,
        plans: Mapping[int, Plan],
        scopes: tuple[Scope, ...],
        *,
        on_failure: OnRedisFailure,
        slices: int = 1,
    ) -> Admitted:
        """Reserve what the request may spend, and set it in `builder`. `ReceiptStore.admit` has the other facts.
        `plans`: the possible plans by kind, the most expensive first. `slices`: of the tenant (slices.py)."""
        engines = builder.engine_set
        if self._lengths is not None:
            builder.lengths = self._lengths.of_route(builder.tenant, builder.route, builder.plan.baseline)
        max_costs: dict[int, MaxCost] = {}
        variants = []
        for kind, plan in plans.items():
            max_costs[kind] = max_cost = worst_case(plan, request, engines.prices, engines.max_output)
            variants.append(Variant(kind, intend(builder, plan, max_cost, self._process_id, scopes)))
        # The reservation bounds the charge of each call, so it must not change after admission.
        builder.request, builder.reserved = request, max_costs[variants[0].kind]
        try:
            candidate = AdmissionRequest(scopes, tuple(variants))
            if slices == 1:
                admitted = await self._store.admit(candidate, on_failure=on_failure)
            else:
                admitted = await self._slices.admit(candidate, slices, on_failure=on_failure)
        except StoreUnavailable:
            builder.refused = not self._store.holds(builder.id)
            raise
        if admitted is not None and admitted[0].variant in max_costs:
            builder.reserved = max_costs[admitted[0].variant]
        return admitted

    def max_usd(self, builder: ReceiptBuilder, request: AnyRequest) -> Decimal:
        """Return the most that a request may cost under its plan, in USD."""
        return worst_case(builder.plan, request, builder.engine_set.prices, builder.engine_set.max_output).usd

    def budget_max_tokens(self, builder: ReceiptBuilder) -> int:
        """Return the `max_tokens` that the gateway sends under a budget where neither caller nor route sets one."""
        return budget_max_tokens(builder.plan, builder.engine_set.max_output)

    async def close(self, builder: ReceiptBuilder, status: str = "ok", *, shown: bool = True) -> Receipt:
        """Return the receipt for a reply. Count tokens in a thread, not on the event loop. If the baseline is not
        `shown`, the ledger counts it at settlement, and the returned receipt is preliminary."""
        if builder.receipt is not None:
            return builder.receipt
        if builder.caller_left:
            status = "client_gone"
        prices, encodings = builder.engine_set.prices, builder.engine_set.encodings
        if builder.needs_estimate:
            if self._estimating >= self._max_estimates:
                receipt = builder.build_receipt(status, prices, None)
            else:
                self._estimating += 1
                try:
                    receipt = await asyncio.to_thread(builder.build_counted, status, prices, encodings)
                finally:
                    self._estimating -= 1
        else:
            receipt = self._preliminary_or_built(builder, status)
            if self._should_recount(builder, receipt):
                if not shown:
                    builder.preliminary = receipt
                    return receipt
                self._recounting += 1
                try:
                    receipt = await asyncio.to_thread(builder.recount, receipt, prices, encodings)
                finally:
                    self._recounting -= 1
        # The thread continues when the caller disconnects. `settle` may have fixed a receipt in the meantime.
        if builder.receipt is None:
            builder.receipt = receipt
        return builder.receipt

    def _should_recount(self, builder: ReceiptBuilder, receipt: Receipt) -> bool:
        """Return whether to count the baseline now. It stays an estimate while too many baselines are being counted."""
        return self._recounting < self._max_recounts and builder.needs_recount(receipt, builder.engine_set.encodings)

    def _preliminary_or_built(self, builder: ReceiptBuilder, status: str) -> Receipt:
        """Return the preliminary receipt if its status still holds. Otherwise build a receipt, from exact usage."""
        if builder.preliminary is not None and builder.preliminary.status == status:
            return builder.preliminary
        engines = builder.engine_set
        return builder.build_receipt(status, engines.prices, engines.encodings, exact=True)

    def settle(self, builder: ReceiptBuilder, status: str) -> None:
        """Settle in the background. Each request calls this exactly once, however it ended."""
        if self._spans is not None:
            self._spans.expect(builder)
        if builder.receipt is None:
            if builder.needs_estimate:
                self._tasks.spawn(f"settle:{builder.id}", self._settle_later(builder, status))
                return
            builder.preliminary = self._preliminary_or_built(builder, status)
            if self._should_recount(builder, builder.preliminary):
                self._tasks.spawn(f"settle:{builder.id}", self._settle_later(builder, status))
                return
            builder.receipt = builder.preliminary
        # Publishing costs as much as reading the request. It runs after the reply was written.
        asyncio.get_running_loop().call_soon(self._publish, builder.receipt, builder)

    async def _settle_later(self, builder: ReceiptBuilder, status: str) -> None:
        self._publish(await self.close(builder, status), builder)

    def record_abandoned(self, receipt: Receipt) -> None:
        """Count and log a stored receipt that settles a request of a dead process."""
        self._metrics.intents_abandoned.labels(self._metrics.series.tenant(receipt.tenant)).inc()
        self._counters.count(receipt)
        log.warning("request", **receipt.as_dict())

    def record_edge_report(self, receipt: Receipt) -> None:
        """Count and log the stored receipt of a device's report. Its times are not counted by stage."""
        self._counters.count(receipt)
        self._log(receipt, None)

    def _publish(self, receipt: Receipt, builder: ReceiptBuilder) -> None:
        self._store.put(receipt)
        self._counters.count(receipt)
        self._counters.count_stages(receipt.timings, receipt.mode)
        if self._spans is not None:
            self._spans.put(receipt, builder)
        if self._lengths is not None and builder.measures is not None:
            self._lengths.add(builder)
        self._log(receipt, builder.content)

    def _log(self, receipt: Receipt, content: LoggedContent | None) -> None:
        if not log.is_enabled_for(logging.INFO):
            return
        if not self.sample.includes(receipt):
            self._metrics.lines_left_out.inc()
        else:
            logged = {} if content is None else {"content": content.as_dict()}
            log.info("request", **receipt.as_dict(), **logged)
