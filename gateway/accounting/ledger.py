"""Step 8: close each draft once and let the receipt be seen: in the store, the log and the metrics.

Before that, at admission, the intent: so that a request whose process dies has its receipt too.
"""

from __future__ import annotations

import asyncio
import logging
from functools import cache
from typing import TYPE_CHECKING, Any

import structlog

from gateway.accounting.edge import student_of
from gateway.accounting.intent import intend
from gateway.accounting.max_output import unknown_max_output
from gateway.accounting.redis_ledger import AdmissionRequest, Variant
from gateway.accounting.savings import MEASURING, class_of, savings_of
from gateway.accounting.worst_case import budget_max_tokens, worst_case
from gateway.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from gateway.accounting.baseline import Encoding
    from gateway.accounting.draft import ReceiptBuilder
    from gateway.accounting.log_sample import LogSample
    from gateway.accounting.max_output import MaxOutputOf
    from gateway.accounting.receipt import EngineShare, Receipt
    from gateway.accounting.scopes import Scope
    from gateway.accounting.spans import ReceiptSpans
    from gateway.accounting.store import Admitted, ReceiptStore
    from gateway.config.limits import OnRedisFailure
    from gateway.policy.resolve import Plan
    from gateway.pricing import Price
    from gateway.protocol.body import CallerRequest
    from gateway.runtime.tasks import BackgroundTasks
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

MAX_ESTIMATES = 64
"""Requests whose unknown usage is counted at a time. Beyond, bytes bound it, and no queue of bodies grows."""
MOST_RECOUNTS = 256
"""Baselines that are counted at a time: a process that cannot keep up states estimates, and holds no queue of texts."""


class Ledger:
    """Args:
    prices: USD per token by model.
    encodings: what counts tokens, by model.
    owner: this process's id; no other process has it.
    sample: which requests have a line in the log.
    spans: where traces are on, what tells them of receipts.
    max_output: the largest answer of an engine.
    """

    def __init__(
        self,
        store: ReceiptStore,
        *,
        prices: Mapping[str, Price],
        encodings: Mapping[str, Encoding],
        owner: str,
        metrics: Metrics,
        tasks: BackgroundTasks,
        sample: LogSample,
        spans: ReceiptSpans | None = None,
        max_output: MaxOutputOf = unknown_max_output,
    ) -> None:
        self._store = store
        self._prices = prices
        self._encodings = encodings
        self._owner = owner
        self._metrics = metrics
        self._tasks = tasks
        self._sample = sample
        self._spans = spans
        self._max_output = max_output
        self._recounting = 0
        self._estimating = 0
        # Looking a metric's labels up costs more than counting. They are bounded, and so is what is remembered.
        self._child = cache(_child)

    async def admit(
        self,
        draft: ReceiptBuilder,
        asked: CallerRequest,
        plans: Mapping[int, Plan],
        scopes: tuple[Scope, ...],
        *,
        on_failure: OnRedisFailure,
    ) -> Admitted:
        """Write down what the request may spend, before it does, and ask whether it may. See `ReceiptStore.admit`.

        Args:
            plans: how it may be answered, by kind, from the dearest down.
            on_failure: what to do when Redis cannot be asked.
        """
        mosts = {kind: worst_case(plan, asked, self._prices, self._max_output) for kind, plan in plans.items()}
        variants = tuple(
            [Variant(kind, intend(draft, plan, mosts[kind], self._owner, scopes)) for kind, plan in plans.items()]
        )
        # No call of the request is charged more than its reservation, which must not change from now on.
        draft.request, draft.reserved = asked, mosts[variants[0].kind]
        try:
            admitted = await self._store.admit(AdmissionRequest(scopes, variants), on_failure=on_failure)
        except StoreUnavailable:
            draft.refused = not self._store.holds(draft.id)
            raise
        if admitted is not None and admitted[0].variant in mosts:
            draft.reserved = mosts[admitted[0].variant]
        return admitted

    def most_usd(self, plan: Plan, asked: CallerRequest) -> Decimal:
        """What a request that follows `plan` may cost at most."""
        return worst_case(plan, asked, self._prices, self._max_output).usd

    def budget_max_tokens(self, plan: Plan) -> int:
        """Return the limit that an engine is sent under a budget where nobody sets one."""
        return budget_max_tokens(plan, self._max_output)

    async def close(self, draft: ReceiptBuilder, status: str = "ok", *, shown: bool = True) -> Receipt:
        """The receipt for a reply that shows it. The event loop is not held by counting.

        Args:
            shown: whether the reply shows its baseline. If not, that is counted when the request settles, and until
                then the receipt is not fixed.
        """
        if draft.receipt is not None:
            return draft.receipt
        if draft.caller_left:
            status = "client_gone"
        if draft.needs_estimate:
            if self._estimating >= MAX_ESTIMATES:
                receipt = draft.sum_up(status, self._prices, None)
            else:
                self._estimating += 1
                try:
                    receipt = await asyncio.to_thread(self._counted, draft, status)
                finally:
                    self._estimating -= 1
        else:
            receipt = self._told(draft, status)
            if self._recounts(draft, receipt):
                if not shown:
                    draft.told = receipt
                    return receipt
                self._recounting += 1
                try:
                    receipt = await asyncio.to_thread(draft.recounted, receipt, self._prices, self._encodings)
                finally:
                    self._recounting -= 1
        # Fixed here and not in the thread, which runs on when the caller hangs up: the receipt then says so.
        if draft.receipt is None:
            draft.receipt = receipt
        return draft.receipt

    def _counted(self, draft: ReceiptBuilder, status: str) -> Receipt:
        told = draft.sum_up(status, self._prices, self._encodings)
        return draft.recounted(told, self._prices, self._encodings)

    def _recounts(self, draft: ReceiptBuilder, told: Receipt) -> bool:
        """Whether the baseline is to be counted anew; it stays an estimate where too many are being counted."""
        return self._recounting < MOST_RECOUNTS and draft.wants_recount(told, self._encodings)

    def _told(self, draft: ReceiptBuilder, status: str) -> Receipt:
        """What a reply was told holds, unless something went wrong behind it."""
        if draft.told is not None and draft.told.status == status:
            return draft.told
        return draft.sum_up(status, self._prices, self._encodings)

    def settle(self, draft: ReceiptBuilder, status: str) -> None:
        """Settle off the caller's path. Called exactly once for each draft, when its request ended in any way."""
        if self._spans is not None:
            self._spans.due(draft)
        if draft.receipt is None:
            if draft.needs_estimate:
                self._tasks.spawn(f"settle:{draft.id}", self._settle_later(draft, status))
                return
            draft.told = self._told(draft, status)
            if self._recounts(draft, draft.told):
                self._tasks.spawn(f"settle:{draft.id}", self._settle_later(draft, status))
                return
            draft.receipt = draft.told
        # Not before the reply has left: what follows costs as much as reading the request did.
        asyncio.get_running_loop().call_soon(self._show, draft.receipt, draft)

    async def _settle_later(self, draft: ReceiptBuilder, status: str) -> None:
        self._show(await self.close(draft, status), draft)

    def abandoned(self, receipt: Receipt) -> None:
        """Let a receipt be seen that was settled, and is stored, for a process that died."""
        self._metrics.intents_abandoned.labels(self._metrics.series.tenant(receipt.tenant)).inc()
        self._count(receipt)
        log.warning("request", **receipt.as_dict())

    def booked(self, receipt: Receipt) -> None:
        """Let a receipt be seen of what a device reports; it is stored. Its times are the device's, and no stage's."""
        self._count(receipt)
        if log.is_enabled_for(logging.INFO):
            if self._sample.takes(receipt):
                log.info("request", **receipt.as_dict())
            else:
                self._metrics.lines_left_out.inc()

    def _show(self, receipt: Receipt, draft: ReceiptBuilder) -> None:
        self._store.put(receipt)
        self._count(receipt)
        self._count_times(receipt)
        if self._spans is not None:
            self._spans.put(receipt, draft)
        if not log.is_enabled_for(logging.INFO):
            return
        if not self._sample.takes(receipt):
            self._metrics.lines_left_out.inc()
        else:
            content = {} if draft.content is None else {"content": draft.content.as_dict()}
            log.info("request", **receipt.as_dict(), **content)

    def _count(self, receipt: Receipt) -> None:
        metrics, child = self._metrics, self._child
        tenant = metrics.series.tenant(receipt.tenant)
        route = metrics.series.route(receipt.tenant, receipt.route)
        if receipt.edge_of is None:  # else the request was the guidance's, and has been counted
            child(metrics.requests, tenant, route, receipt.mode, receipt.status).inc()
            # A shadow answers nobody, and has a mode of its own: those that fail would be all that wanted guidance.
            if receipt.unguided is not None and receipt.shadow_of is None:
                child(metrics.unguided, metrics.series.route_alone(receipt.route), receipt.unguided).inc()
        self._count_savings(receipt, tenant, route)
        for role, share in (("teacher", receipt.teacher), ("student", student_of(receipt))):
            if share is not None and not share.shared:
                self._count_share(tenant, role, share)
        if receipt.probe is not None:
            self._count_share(tenant, "student", receipt.probe)
        for attempt in receipt.attempts:
            if attempt.share is not None:
                self._count_share(tenant, "failed", attempt.share)
        if receipt.guidance is not None and receipt.teacher is not None:
            child(metrics.guidance, receipt.teacher.model, receipt.teacher.shared or "teacher").inc()

    def _count_savings(self, receipt: Receipt, tenant: str, route: str) -> None:
        metrics, child, cost = self._metrics, self._child, float(receipt.cost_usd)
        child(metrics.cost_usd, tenant, route).inc(cost)
        if receipt.shadow_of is None:  # a shadow spares nothing: its request was answered, and paid for, as well
            child(metrics.baseline_usd, tenant, route).inc(float(receipt.baseline_usd))
        saved, of_class = savings_of(receipt), class_of(receipt)
        if saved.measuring_usd:
            child(metrics.class_cost_usd, tenant, route, MEASURING).inc(float(saved.measuring_usd))
            cost = float(receipt.cost_usd - saved.measuring_usd)
        if of_class != MEASURING:
            child(metrics.class_cost_usd, tenant, route, of_class).inc(cost)
        # Counters only grow, so each amount that may be negative has two.
        for more, less, usd in (
            (metrics.savings_usd, metrics.losses_usd, saved.usd),
            (metrics.savings_error_usd, metrics.savings_error_removed_usd, saved.error_usd),
        ):
            grown, shrunk = child(more, tenant, route), child(less, tenant, route)
            if usd:
                (grown if usd > 0 else shrunk).inc(abs(float(usd)))

    def _count_times(self, receipt: Receipt) -> None:
        timings = receipt.timings
        for stage, spent_ms in (
            ("admission", timings.admission_ms),
            ("batch_wait", timings.batch_wait_ms),
            ("teacher", timings.teacher_ms),
            ("first_token", timings.first_token_ms),
            ("total", timings.total_ms),
        ):
            if spent_ms is not None:
                self._child(self._metrics.stage_seconds, stage, receipt.mode).observe(spent_ms / 1000)

    def _count_share(self, tenant: str, role: str, share: EngineShare) -> None:
        self._child(self._metrics.engine_cost_usd, share.model, role).inc(float(share.cost_usd))
        if share.usage_error:
            self._child(self._metrics.engine_usage_errors, share.model, share.usage_error).inc()
        for direction, tokens in (
            ("input", share.fresh_input_tokens),
            ("cached", share.cached_input_tokens),
            ("cache_write", share.cache_write_input_tokens),
            ("output", share.output_tokens),
        ):
            counter = self._child(self._metrics.tokens, tenant, role, share.model, direction)
            if tokens:
                counter.inc(tokens)


def _child(metric: Any, *labels: str) -> Any:
    return metric.labels(*labels)
