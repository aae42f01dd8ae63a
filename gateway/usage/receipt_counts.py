"""Count one receipt for sums. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.ledger.edge import EDGE, GUIDANCE
from gateway.ledger.savings import MEASURING, class_of, savings_of
from gateway.usage.counters import (
    ANSWERED,
    BASELINE,
    BASELINE_ERROR,
    BATCHES,
    BUCKET_STEP,
    BUCKETS,
    BY_TEACHER,
    CLASS_AT,
    COST,
    ENGINE,
    ERROR,
    ESTIMATED,
    FAILED,
    FAILED_COST,
    KEPT,
    OPENED,
    REQUESTS,
    STAGE_TIMES,
    STUDENT,
    STUDENT_COST,
    TEACHER,
    TEACHER_COST,
    UNGUIDED,
    ClassSum,
    class_counts,
    pico,
)
from gateway.usage.histogram import bucket_of

if TYPE_CHECKING:
    from gateway.ledger.receipt import EngineShare, Receipt, Timings
    from gateway.usage.counters import Counts

_GUIDED = frozenset({"guided", "teacher_complete"})


def counts_of(receipt: Receipt) -> Counts:
    """Return what one receipt adds to sums. Each microsecond here is one of each receipt."""
    reported = receipt.edge_of is not None  # of a guidance, which was counted as the request
    served = receipt.shadow_of is None
    cost = pico(receipt.cost_usd)
    baseline = pico(receipt.baseline_usd) if served else 0
    by_teacher, by_student = _answer_tokens(receipt)
    counts: Counts = {
        REQUESTS: 0 if reported else 1,
        COST: cost,
        BASELINE: baseline,
        ANSWERED: by_teacher + by_student,
        BY_TEACHER: by_teacher,
        OPENED: 1 if receipt.mode in _GUIDED or _is_given(receipt) else 0,
    }
    _count_outcome(counts, receipt, reported=reported)
    if served:
        counts[ESTIMATED] = 1 if receipt.baseline_estimated and not reported else 0
        if error := pico(receipt.baseline_error_usd):
            counts[BASELINE_ERROR] = error
    _count_savings(counts, receipt, cost, baseline)
    if receipt.teacher is not None:
        _count_call(counts, receipt.teacher, TEACHER, TEACHER_COST)
    if receipt.student is not None:
        _count_call(counts, receipt.student, STUDENT, STUDENT_COST)
    if receipt.probe is not None:
        _count_call(counts, receipt.probe, STUDENT, STUDENT_COST)
    for attempt in receipt.attempts:
        if attempt.share is not None:
            _count_call(counts, attempt.share, FAILED, FAILED_COST)
    if receipt.mode != EDGE:  # a device's times are no stage's
        _count_times(counts, receipt.timings)
    return {key: count for key, count in counts.items() if count} if 0 in counts.values() else counts


def _count_outcome(counts: Counts, receipt: Receipt, *, reported: bool) -> None:
    if receipt.status != "ok":
        counts[ERROR + receipt.status] = 1
    if receipt.unguided is not None and not reported:
        counts[UNGUIDED + receipt.unguided] = 1
    if receipt.batch is not None:
        counts[BATCHES + receipt.batch.size] = 1
    if receipt.guidance is not None:
        counts[KEPT] = receipt.guidance.kept_tokens


def _count_savings(counts: Counts, receipt: Receipt, cost: int, baseline: int) -> None:
    of_class = class_of(receipt)
    usd, error_usd, measuring_usd = savings_of(receipt)
    measuring = 0
    if measuring_usd and of_class != MEASURING:
        measuring = pico(measuring_usd)
        counts[CLASS_AT[MEASURING] + 1] = measuring
    requests = 1 if receipt.edge_of is None else 0
    savings, error = pico(usd), pico(error_usd)
    at = CLASS_AT.get(of_class)
    if at is None:
        counts |= class_counts(of_class, ClassSum(requests, cost - measuring, baseline, savings, error))
        return
    counts[at] = requests
    counts[at + 1] = cost - measuring
    counts[at + 2] = baseline
    if savings:
        counts[at + 3] = savings
    if error:
        counts[at + 4] = error


def _count_call(counts: Counts, share: EngineShare, role: int, paid_at: int) -> None:
    """Count the tokens and the cost of a call. The tokens of a shared call are another receipt's."""
    get = counts.get
    if not share.shared:
        cached, stored = share.cached_input_tokens, share.cache_write_input_tokens
        counts[role] = get(role, 0) + share.input_tokens - cached - stored
        if cached:
            counts[role + 1] = get(role + 1, 0) + cached
        if stored:
            counts[role + 3] = get(role + 3, 0) + stored
        counts[role + 2] = get(role + 2, 0) + share.output_tokens
    if paid := pico(share.cost_usd):
        counts[paid_at] = get(paid_at, 0) + paid
        engine = ENGINE + share.model
        counts[engine] = get(engine, 0) + paid


def _count_times(counts: Counts, timings: Timings) -> None:
    spent = (
        timings.admission_ms,
        timings.batch_wait_ms,
        timings.teacher_ms,
        timings.first_token_ms,
        timings.total_ms,
    )
    bucket = BUCKETS
    for stage, spent_ms in enumerate(spent, STAGE_TIMES):
        if spent_ms is not None:
            counts[stage] = spent_us = round(spent_ms * 1000)
            counts[bucket + bucket_of(spent_us)] = 1
        bucket += BUCKET_STEP


def _is_given(receipt: Receipt) -> bool:
    """Return whether a device got guidance."""
    return receipt.mode == GUIDANCE and receipt.guidance is not None


def _answer_tokens(receipt: Receipt) -> tuple[int, int]:
    """Return the tokens of the answer that its teacher wrote, and those of its student.

    Both are 0 where no answer came, or no caller got it. An opening that only the student read, as its context, is no
    part of the answer.
    """
    if receipt.shadow_of is not None or receipt.status != "ok":
        return 0, 0
    teacher, student, guidance = receipt.teacher, receipt.student, receipt.guidance
    opened = 0
    if guidance is not None:
        whole = student is None and (receipt.mode != GUIDANCE or guidance.complete)
        opened = guidance.kept_tokens if guidance.placement == "prefix" or whole else 0
    elif teacher is not None and receipt.mode == "teacher":
        opened = teacher.output_tokens
    return opened, student.output_tokens if student is not None else 0
