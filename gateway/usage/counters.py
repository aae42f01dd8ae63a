"""Counters of a row of sums by their numbers in the database, and the counters of one receipt. Pure."""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from gateway.accounting.edge import EDGE, GUIDANCE
from gateway.accounting.receipt import class_of
from gateway.accounting.savings import CLIENT_GONE, GUIDED, MEASURING, is_counted, is_lost
from gateway.usage.histogram import MAX_BUCKET, bucket_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.accounting.receipt import EngineShare, Receipt, Timings

Sparse: TypeAlias = dict[int | str, int]
"""Nonzero values by counter. A counter with a name from outside is text: a prefix and the name."""

FIXED_STAGES = ("admission", "batch_wait", "teacher", "first_token", "total")
"""Stages whose times are in `SumRow.fixed`."""
STAGES = (*FIXED_STAGES, "handover")
"""The order of `SumRow.stages`."""

# Numbers of counters in the database. A number never changes its meaning. The first numbers index `SumRow.fixed`.
TEACHER, STUDENT, FAILED = ROLES = 9, 14, 19  # for each role: tokens by kind (TokenSums), then the cost
ROLE_COSTS = 13, 18, 23
STAGE_TIMES = 24  # for each stage: the sum of its times in microseconds
FIXED = STAGE_TIMES + len(FIXED_STAGES)
"""Number of counters in `SumRow.fixed`. It never changes: new counters go to `SumRow.sparse`."""
CLASS_AT: dict[str, int] = {  # for each savings class: five sums (ClassSum)
    "guided": 64,
    "student_by_policy": 72,
    "reported": 48,
    "teacher_unavailable": 80,
    "not_guidable": 88,
    "teacher": 96,
    "disconnected": 56,
    "failed": 104,
    "measuring": 112,
}
HANDOVER_TIME = 120  # the sum of times of the stage `handover` in microseconds
FAILED_SHADOWS = 121
HANDOVER_BUCKETS = 128  # buckets of its histogram
BUCKETS = 512  # buckets of the histograms of FIXED_STAGES
BUCKET_STEP = 512
BATCHES = 4_096  # plus the size of the batch
ERROR, UNGUIDED, ENGINE, OTHER_CLASS, VARIANT = "e:", "u:", "p:", "c:", "v:"
_PICOS = Decimal("1E12")


class TokenSums(NamedTuple):
    """Tokens of one role. `input` is without `cached`, read from the engine's prompt cache, and `cache_write`."""

    input: int = 0
    cached: int = 0
    output: int = 0
    cache_write: int = 0

    @property
    def read(self) -> int:
        return self.input + self.cached + self.cache_write


class ClassSum(NamedTuple):
    """Sums of one savings class (accounting/savings.py). The baseline is always the sum of cost and savings.

    Attributes:
        cost_pico: the cost of all engine calls.
        baseline_pico: the baselines that count. In the class `guided`, measured baselines replace their estimates.
        savings_pico: the savings that count.
        error_pico: error bound of `savings_pico`. A measured baseline subtracts the error of its estimate.
    """

    requests: int = 0
    cost_pico: int = 0
    baseline_pico: int = 0
    savings_pico: int = 0
    error_pico: int = 0


class VariantSum(NamedTuple):
    """Sums of one variant of a split route: requests, their cost, and how many were guided or failed."""

    requests: int = 0
    cost_pico: int = 0
    guided: int = 0
    errors: int = 0


def class_counts(name: str, sums: ClassSum) -> Sparse:
    """Return the nonzero counters of a savings class."""
    return {key: amount for key, amount in zip(_class_keys(name), sums, strict=True) if amount}


@lru_cache(1_000)
def _class_keys(name: str) -> list[int | str]:
    first, fields = CLASS_AT.get(name), range(len(ClassSum._fields))
    return [f"{OTHER_CLASS}{field}:{name}" if first is None else first + field for field in fields]


def pico(usd: Decimal | None) -> int:
    """Return USD in whole picodollars, rounded up like `picodollars`. Receipts have no finer amounts."""
    return ceil(usd * _PICOS) if usd else 0


_Call: TypeAlias = tuple[int, int, int, int, int]
"""Tokens by kind (TokenSums), then the cost."""

_engine_key = lru_cache(1_000)(ENGINE.__add__)
_GUIDED = frozenset({"guided", "teacher_complete"})
_NO_CALL = (0, 0, 0, 0, 0)
_NO_TIMES = (0,) * len(FIXED_STAGES)
# All receipts share these number objects: creating new ones for each receipt takes time and memory.
_BUCKETS_OF = [
    [BUCKETS + stage * BUCKET_STEP + bucket for bucket in range(MAX_BUCKET + 1)] for stage in range(len(FIXED_STAGES))
]


def counts_of(receipt: Receipt) -> tuple[list[int], Sparse]:
    """Return what one receipt adds to `SumRow.fixed` and `SumRow.sparse`. It runs for every receipt: keep it fast."""
    sparse: Sparse = {}
    requests = 1 if receipt.edge_of is None else 0  # the receipt of the guidance has counted the request
    cost, served = pico(receipt.cost_usd), receipt.shadow_of is None
    saved, error, estimated = _count_savings(sparse, receipt, requests, cost)
    by_teacher, by_student = _answer_tokens(receipt)
    guidance, extra = receipt.guidance, receipt.warmup
    fixed = [
        requests,
        guidance.kept_tokens if guidance is not None else 0,
        cost,
        cost + saved,
        error,
        requests if estimated and receipt.baseline_estimated else 0,
        by_teacher + by_student,
        by_teacher,
        1 if receipt.mode in _GUIDED or (receipt.mode == GUIDANCE and guidance is not None) else 0,
        *_call(sparse, receipt.teacher),
        *(_call(sparse, receipt.student) if extra is None else _calls(sparse, (receipt.student, extra))),
        *(_calls(sparse, [attempt.share for attempt in receipt.attempts]) if receipt.attempts else _NO_CALL),
        *(_times(sparse, receipt.timings) if receipt.mode != EDGE else _NO_TIMES),  # devices have no stages
    ]
    if receipt.status != "ok":
        sparse[ERROR + receipt.status if served else FAILED_SHADOWS] = 1
    if receipt.unguided is not None and requests and served:
        sparse[UNGUIDED + receipt.unguided] = 1
    if receipt.batch is not None:
        sparse[BATCHES + receipt.batch.size] = 1
    if (split := receipt.split) is not None:
        counts = VariantSum(requests, cost, fixed[8], int(served and receipt.status not in {"ok", CLIENT_GONE}))
        sparse |= {f"{VARIANT}{field}:{split.variant}": amount for field, amount in enumerate(counts) if amount}
    return fixed, sparse


def _count_savings(sparse: Sparse, receipt: Receipt, requests: int, cost: int) -> tuple[int, int, bool]:
    """Count a receipt's savings in whole picodollars, by the rules of accounting/savings.py.

    The dashboard shows these sums; `savings_usd` of a receipt is not added. Return the savings, their error, and
    whether the baseline of the receipt counts.
    """
    savings_class = class_of(receipt)
    if savings_class == MEASURING:
        _add_class(sparse, MEASURING, ClassSum(requests, cost, 0, -cost))
        if (measured := receipt.measured) is None:
            return -cost, 0, False
        difference = pico(measured.baseline_usd) - pico(measured.estimated_usd)
        error = -pico(measured.estimated_error_usd)
        _add_class(sparse, GUIDED, ClassSum(0, 0, difference, difference, error))
        return difference - cost, error, False
    saved, error = pico(receipt.baseline_usd) - cost, pico(receipt.baseline_error_usd)
    if not (counts := is_counted(savings_class, saved)):
        saved, error = -cost if is_lost(savings_class) else 0, 0
    _add_class(sparse, savings_class, ClassSum(requests, cost, cost + saved, saved, error))
    return saved, error, counts


def _add_class(sparse: Sparse, name: str, sums: ClassSum) -> None:
    """Set the counters of a class, which the receipt has not counted yet."""
    sparse |= class_counts(name, sums)


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
    if timings.handover_ms is not None:
        handover_us = round(timings.handover_ms * 1000)
        sparse[HANDOVER_BUCKETS + bucket_of(handover_us)] = 1
        if handover_us:
            sparse[HANDOVER_TIME] = handover_us
    total = round(timings.total_ms * 1000)
    sparse[total_buckets[bucket_of(total)]] = 1
    return admission, batch_wait, teacher, first_token, total


def _answer_tokens(receipt: Receipt) -> tuple[int, int]:
    """Return the answer's tokens by teacher and student, without hints; 0 if no caller received an answer."""
    if receipt.shadow_of is not None or receipt.status != "ok":
        return 0, 0
    teacher, student, guidance = receipt.teacher, receipt.student, receipt.guidance
    by_teacher = 0
    if guidance is not None:
        is_whole_answer = student is None and (receipt.mode != GUIDANCE or guidance.complete)
        by_teacher = guidance.kept_tokens if guidance.placement == "prefix" or is_whole_answer else 0
    elif teacher is not None and receipt.mode == "teacher":
        return teacher.output_tokens + receipt.continued_tokens, 0
    return by_teacher, student.output_tokens + receipt.continued_tokens if student is not None else 0
