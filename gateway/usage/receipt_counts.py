"""Return the counters of one receipt. Pure."""

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
"""Tokens by kind (TokenSums), then the cost."""

_engine_key = lru_cache(1_000)(ENGINE.__add__)
_GUIDED = frozenset({"guided", "teacher_complete"})
_NO_CALL = (0, 0, 0, 0, 0)
_NO_TIMES = (0,) * len(STAGES)
# All receipts share these number objects: creating new ones for each receipt takes time and memory.
_BUCKETS_OF = [
    [BUCKETS + stage * BUCKET_STEP + bucket for bucket in range(MAX_BUCKET + 1)] for stage in range(len(STAGES))
]


def counts_of(receipt: Receipt) -> tuple[list[int], Sparse]:
    """Return what one receipt adds to `SumRow.fixed` and `SumRow.sparse`. It runs for every receipt: keep it fast."""
    sparse: Sparse = {}
    requests = 1 if receipt.edge_of is None else 0  # the receipt of the guidance has counted the request
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
        *(_calls(sparse, [attempt.share for attempt in receipt.attempts]) if receipt.attempts else _NO_CALL),
        *(_times(sparse, receipt.timings) if receipt.mode != EDGE else _NO_TIMES),  # devices have no stages
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
    """Count the result of `savings_of` in whole picodollars.

    Args:
        money: cost, baseline and baseline error.
    """
    cost, baseline, error = money
    savings_class = class_of(receipt)
    if savings_class == MEASURING:
        savings = savings_of(receipt)
        saved, error = pico(savings.usd), pico(savings.error_usd)
    else:
        if receipt.probe is not None:
            probe_cost = pico(receipt.probe.cost_usd)
            cost -= probe_cost
            sparse |= class_counts(MEASURING, ClassSum(cost_pico=probe_cost))
        saved = baseline - cost
        if not is_counted(savings_class, saved):
            saved = error = 0
    if receipt.shadow_of is not None:
        baseline = 0
    sparse |= class_counts(savings_class, ClassSum(requests, cost, baseline, saved, error))


def _call(sparse: Sparse, share: EngineShare | None) -> _Call:
    """Add the cost of a call to its engine, and return its counters. The tokens of a shared call count only once."""
    if share is None:
        return _NO_CALL
    if cost := pico(share.cost_usd):
        engine = _engine_key(share.model)
        sparse[engine] = sparse.get(engine, 0) + cost
    if share.shared:
        return (0, 0, 0, 0, cost)
    cached, cache_write = share.cached_input_tokens, share.cache_write_input_tokens
    return (share.input_tokens - cached - cache_write, cached, share.output_tokens, cache_write, cost)


def _calls(sparse: Sparse, shares: Iterable[EngineShare | None]) -> Iterable[int]:
    """Return the sums of the counters of calls."""
    return map(sum, zip(*(_call(sparse, share) for share in shares), strict=True))


def _times(sparse: Sparse, timings: Timings) -> tuple[int, int, int, int, int]:
    """Count times in their histograms, and return them in microseconds. A loop over stages would take twice as long."""
    admission = batch_wait = teacher = first_token = 0
    admission_buckets, batch_wait_buckets, teacher_buckets, first_token_buckets, total_buckets = _BUCKETS_OF
    if timings.admission_ms is not None:
        admission = round(timings.admission_ms * 1000)
        sparse[admission_buckets[bucket_of(admission)]] = 1
    if timings.batch_wait_ms is not None:
        batch_wait = round(timings.batch_wait_ms * 1000)
        sparse[batch_wait_buckets[bucket_of(batch_wait)]] = 1
    if timings.teacher_ms is not None:
        teacher = round(timings.teacher_ms * 1000)
        sparse[teacher_buckets[bucket_of(teacher)]] = 1
    if timings.first_token_ms is not None:
        first_token = round(timings.first_token_ms * 1000)
        sparse[first_token_buckets[bucket_of(first_token)]] = 1
    total = round(timings.total_ms * 1000)
    sparse[total_buckets[bucket_of(total)]] = 1
    return admission, batch_wait, teacher, first_token, total


def _answer_tokens(receipt: Receipt) -> tuple[int, int]:
    """Return the tokens of the answer by the teacher and by the student.

    Both are 0 if no caller received an answer. Guidance that only served as context of the student is not part of the
    answer.
    """
    if receipt.shadow_of is not None or receipt.status != "ok":
        return 0, 0
    teacher, student, guidance = receipt.teacher, receipt.student, receipt.guidance
    by_teacher = 0
    if guidance is not None:
        is_whole_answer = student is None and (receipt.mode != GUIDANCE or guidance.complete)
        by_teacher = guidance.kept_tokens if guidance.placement == "prefix" or is_whole_answer else 0
    elif teacher is not None and receipt.mode == "teacher":
        by_teacher = teacher.output_tokens
    return by_teacher, student.output_tokens if student is not None else 0
