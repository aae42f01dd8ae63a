"""Step 8: close each draft once and let the receipt be seen: in the store, the log and the metrics."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.ledger.draft import Draft
    from gateway.ledger.receipt import EngineShare, Receipt
    from gateway.ledger.store import ReceiptStore
    from gateway.metrics import Metrics
    from gateway.pricing import Price
    from gateway.tasks import Tasks

log = structlog.get_logger()


class Ledger:
    """Args:
    prices: USD per token by model.
    encodings: the tiktoken encoding by model, for estimates.
    """

    def __init__(
        self,
        store: ReceiptStore,
        *,
        prices: Mapping[str, Price],
        encodings: Mapping[str, str],
        metrics: Metrics,
        tasks: Tasks,
    ) -> None:
        self._store = store
        self._prices = prices
        self._encodings = encodings
        self._metrics = metrics
        self._tasks = tasks

    async def close(self, draft: Draft, status: str = "ok") -> Receipt:
        """Fix the receipt, for a reply that shows it. The event loop is not held by estimates."""
        if draft.receipt is None and draft.needs_estimate:
            receipt = await asyncio.to_thread(draft.sum_up, status, self._prices, self._encodings)
            # Fixed here and not in the thread, which runs on when the caller hangs up: the receipt then says so.
            if draft.receipt is None:
                draft.receipt = receipt
        return draft.close(status, self._prices, self._encodings)

    def settle(self, draft: Draft, status: str) -> None:
        """Settle off the caller's path. Called exactly once for each draft, when its request ended in any way."""
        if draft.receipt is None and draft.needs_estimate:
            self._tasks.spawn(f"settle:{draft.id}", self._settle_later(draft, status))
        else:
            receipt = draft.close(status, self._prices, self._encodings)
            # Not before the reply has left: what follows costs as much as reading the request did.
            asyncio.get_running_loop().call_soon(self._show, receipt)

    async def _settle_later(self, draft: Draft, status: str) -> None:
        self._show(await self.close(draft, status))

    def _show(self, receipt: Receipt) -> None:
        self._store.put(receipt)
        self._count(receipt)
        log.info("request", **receipt.as_dict())

    def _count(self, receipt: Receipt) -> None:
        metrics = self._metrics
        metrics.requests.labels(receipt.tenant, receipt.route, receipt.mode, receipt.status).inc()
        if receipt.unguided is not None:
            metrics.unguided.labels(receipt.route, receipt.unguided).inc()
        metrics.cost_usd.labels(receipt.tenant, receipt.route).inc(float(receipt.cost_usd))
        metrics.baseline_usd.labels(receipt.tenant, receipt.route).inc(float(receipt.baseline_usd))
        for role, share in (("teacher", receipt.teacher), ("student", receipt.student)):
            if share is not None and not share.shared:
                self._count_tokens(receipt.tenant, role, share)
        if receipt.guidance is not None and receipt.teacher is not None:
            metrics.guidance.labels(receipt.teacher.model, receipt.teacher.shared or "teacher").inc()
        timings = receipt.timings
        for stage in ("admission", "batch_wait", "teacher", "first_token", "total"):
            spent_ms: float | None = getattr(timings, f"{stage}_ms")
            if spent_ms is not None:
                metrics.stage_seconds.labels(stage, receipt.mode).observe(spent_ms / 1000)

    def _count_tokens(self, tenant: str, role: str, share: EngineShare) -> None:
        tokens = self._metrics.tokens
        tokens.labels(tenant, role, share.model, "input").inc(share.input_tokens - share.cached_input_tokens)
        tokens.labels(tenant, role, share.model, "cached").inc(share.cached_input_tokens)
        tokens.labels(tenant, role, share.model, "output").inc(share.output_tokens)
