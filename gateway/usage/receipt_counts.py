"""Count one receipt for sums. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from gateway.accounting.edge import EDGE, GUIDANCE
from gateway.accounting.savings import MEASURING, class_of, is_counted, savings_of
from gateway.usage.counters import (
    BATCHES,
    BUCKET_STEP,
    BUCKETS,
    ENGINE,
    ERROR,
    STAGES,
    UNGUIDED,
    ClassSum,
    class_counts,
    pico,
)
from gateway.usage.histogram import MAX_BUCKET, bucket_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.accounting.receipt import EngineShare, Receipt, Timings
    from gateway.usage.counters import Sparse

_Call: TypeAlias = tuple[int, int, int, int, int]
"""Tokens of each kind (Tokens) and the cost."""

_engine_key = lru_cache(1_000)(ENGINE.__add__)
_GUIDED = frozenset({"guided", "teacher_complete"})
_NO_CALL = (0, 0, 0, 0, 0)
_NO_TIMES = (0,) * len(STAGES)
# All receipts share these numbers: a new one for each takes time and memory.
_BUCKETS_OF = [
    [BUCKETS + stage * BUCKET_STEP + place for place in range(MAX_BUCKET + 1)] for stage in range(len(STAGES))
]


def counts_of(receipt: Receipt) -> tuple[list[int], Sparse]:
    """Return what one receipt adds to `Row.fixed` and `Row.sparse`. Each microsecond here is one of each receipt."""
    sparse: Sparse = {}
    requests = 1 if receipt.edge_of is None else 0  # a report of a guidance was counted as the request
    cost, baseline, error = pico(receipt.cost_usd), pico(receipt.baseline_usd), pico(receipt.baseline_error_usd)
    served = receipt.shadow_of is None
    by_teacher, by_student = _answer_tokens(receipt)
    guidance, probe = receipt.guidance, receipt.probe
    fixed = [
        requests,
        guidance.kept_tokens if guidance is not None else 0,
        cost,
        baseline if served else 0,
        error if served else 0,
        requests if served and receipt.baseline_estimated else 0,
        by_teacher + by_student,
        by_teacher,
        1 if receipt.mode in _GUIDED or (receipt.mode == GUIDANCE and guidance is not None) else 0,
        *_call(sparse, receipt.teacher),
        *(_call(sparse, receipt.student) if probe is None else _calls(sparse, (receipt.student, probe))),
        *(_calls(sparse, [one.share for one in receipt.attempts]) if receipt.attempts else _NO_CALL),
        *(_times(sparse, receipt.timings) if receipt.mode != EDGE else _NO_TIMES),  # a device's times are no stage's
    ]
    if receipt.status != "ok":
        sparse[ERROR + receipt.status] = 1
    if receipt.unguided is not None and requests:
        sparse[UNGUIDED + receipt.unguided] = 1
    if receipt.batch is not None:
        sparse[BATCHES + receipt.batch.size] = 1
    _count_savings(sparse, receipt, requests, (cost, baseline, error))
    return fixed, sparse


def _count_savings(sparse: Sparse, receipt: Receipt, requests: int, money: tuple[int, int, int]) -> None:
    """Count what `savings_of` returns, in whole picodollars.

    Args:
        money: cost, baseline and its error.
    """
    cost, baseline, error = money
    of_class = class_of(receipt)
    if of_class == MEASURING:
        found = savings_of(receipt)
        saved, error = pico(found.usd), pico(found.error_usd)
    else:
        if receipt.probe is not None:
            measuring = pico(receipt.probe.cost_usd)
            cost -= measuring
            sparse |= class_counts(MEASURING, ClassSum(cost_pico=measuring))
        saved = baseline - cost
        if not is_counted(of_class, saved):
            saved = error = 0
    if receipt.shadow_of is not None:
        baseline = 0
    sparse |= class_counts(of_class, ClassSum(requests, cost, baseline, saved, error))


def _call(sparse: Sparse, share: EngineShare | None) -> _Call:
    """Count the cost of a call by its engine, and return its counters. Another receipt has a shared call's tokens."""
    if share is None:
        return _NO_CALL
    if paid := pico(share.cost_usd):
        engine = _engine_key(share.model)
        sparse[engine] = sparse.get(engine, 0) + paid
    if share.shared:
        return (0, 0, 0, 0, paid)
    cached, stored = share.cached_input_tokens, share.cache_write_input_tokens
    return (share.input_tokens - cached - stored, cached, share.output_tokens, stored, paid)


def _calls(sparse: Sparse, shares: Iterable[EngineShare | None]) -> Iterable[int]:
    """Return the sums of the counters of calls."""
    return map(sum, zip(*(_call(sparse, share) for share in shares), strict=True))


def _times(sparse: Sparse, timings: Timings) -> tuple[int, int, int, int, int]:
    """Count times in their histograms, and return them in microseconds. A loop over the stages takes twice as long."""
    admission = batch_wait = teacher = first_token = 0
    of_admission, of_batch_wait, of_teacher, of_first_token, of_total = _BUCKETS_OF
    if timings.admission_ms is not None:
        admission = round(timings.admission_ms * 1000)
        sparse[of_admission[bucket_of(admission)]] = 1
    if timings.batch_wait_ms is not None:
        batch_wait = round(timings.batch_wait_ms * 1000)
        sparse[of_batch_wait[bucket_of(batch_wait)]] = 1
    if timings.teacher_ms is not None:
        teacher = round(timings.teacher_ms * 1000)
        sparse[of_teacher[bucket_of(teacher)]] = 1
    if timings.first_token_ms is not None:
        first_token = round(timings.first_token_ms * 1000)
        sparse[of_first_token[bucket_of(first_token)]] = 1
    total = round(timings.total_ms * 1000)
    sparse[of_total[bucket_of(total)]] = 1
    return admission, batch_wait, teacher, first_token, total


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
