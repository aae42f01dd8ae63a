"""Trace attributes and stages from a receipt. Imported only where tracing is on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gateway.telemetry import semconv as names
from gateway.telemetry.tracing import attributes_of, current

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

    from gateway.accounting.receipt import BatchFacts, Receipt
    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.telemetry.tracing import RequestTrace


class ReceiptSpans:
    """Add stages and receipt attributes to the current request's trace."""

    @staticmethod
    def expect(builder: ReceiptBuilder) -> None:
        """Keep the trace open until `put`, and add its stages. The request has ended."""
        trace = current()
        if trace is None:
            return
        trace.expect_receipt()
        if trace.recorded:
            _stages(trace, builder)

    @staticmethod
    def put(receipt: Receipt, builder: ReceiptBuilder) -> None:
        trace = current()
        if trace is not None:
            failed = receipt.status if receipt.status != "ok" else None
            trace.set_receipt(_facts(receipt, builder) if trace.recorded else {}, failed)


def _stages(trace: RequestTrace, builder: ReceiptBuilder) -> None:
    """Add the stages between engine calls. Calls have their own spans."""
    if builder.admitted is not None:
        trace.child("admission", builder.started, builder.admitted)
    if builder.guidance_requested is None:
        return
    teacher = builder.teacher
    shared = teacher.shared if teacher is not None else ""
    # The wait ended when the guidance arrived or the request ended, at the latest.
    ended = builder.granted or builder.guided or time.perf_counter()
    attributes = attributes_of([(names.SHARED, shared or None), *_batch(builder.batch)])
    failed = None if builder.granted is not None or shared else builder.unguided
    link = teacher.span if shared and teacher else None
    trace.child("batch_wait", builder.guidance_requested, ended, attributes, failed=failed, link=link)


def _batch(batch: BatchFacts | None) -> list[tuple[str, AttributeValue | None]]:
    return [] if batch is None else [(names.BATCH_ID, batch.id), (names.BATCH_SIZE, batch.size)]


def _facts(receipt: Receipt, builder: ReceiptBuilder) -> dict[str, AttributeValue]:
    guidance = receipt.guidance
    return attributes_of(
        [
            (names.REQUEST_MODEL, receipt.route),
            (names.REQUEST_STREAM, receipt.stream),
            (names.RESPONSE_FINISH_REASONS, names.finishes([receipt.finish_reason]) or None),
            (names.REQUEST_ID, receipt.id),
            (names.SHADOW_OF, receipt.shadow_of),
            (names.TENANT, receipt.tenant),
            (names.KEY, receipt.key),
            (names.MODE, receipt.mode),
            (names.UNGUIDED, receipt.unguided),
            (names.SHARED, (builder.teacher.shared or None) if builder.teacher is not None else None),
            (names.GUIDANCE_TOKENS, guidance.kept_tokens if guidance is not None else None),
            *_batch(receipt.batch),
            (names.FAILED_ATTEMPTS, len(receipt.attempts) or None),
            (names.COST_USD, f"{receipt.cost_usd:f}"),
            (names.BASELINE_USD, f"{receipt.baseline_usd:f}"),
            (names.SAVINGS_USD, f"{receipt.savings_usd:f}"),
            (names.SAVINGS_CLASS, receipt.savings_class),
        ]
    )
