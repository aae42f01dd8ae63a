"""Counters of a row of sums by their numbers in the database, and money in picodollars. Pure."""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache
from math import ceil
from typing import NamedTuple, TypeAlias

Sparse: TypeAlias = dict[int | str, int]
"""Nonzero values by counter. A counter with a name from outside is text: a prefix and the name."""

STAGES = ("admission", "batch_wait", "teacher", "first_token", "total")
"""The order of `SumRow.stages`."""

# Numbers of counters in the database. A number never changes its meaning. The first numbers index `SumRow.fixed`.
REQUESTS, KEPT, COST, BASELINE, BASELINE_ERROR, ESTIMATED, ANSWERED, BY_TEACHER, OPENED = range(9)
TEACHER, STUDENT, FAILED = 9, 14, 19  # for each role: tokens by kind (TokenSums), then the cost
TEACHER_COST, STUDENT_COST, FAILED_COST = 13, 18, 23
STAGE_TIMES = 24  # for each stage: the sum of its times in microseconds
FIXED = STAGE_TIMES + len(STAGES)
"""Number of counters in `SumRow.fixed`. It never changes: new counters go to `SumRow.sparse`."""
CLASS_AT: dict[str, int] = {  # for each savings class: five sums (ClassSum)
    "guided": 64,
    "student_by_policy": 72,
    "teacher_unavailable": 80,
    "not_guidable": 88,
    "teacher": 96,
    "failed": 104,
    "measuring": 112,
}
BUCKETS = 512  # buckets of the histograms of stages
BUCKET_STEP = 512
BATCHES = 4_096  # plus the size of the batch
ERROR, UNGUIDED, ENGINE, OTHER_CLASS = "e:", "u:", "p:", "c:"


class TokenSums(NamedTuple):
    """Tokens of one role.

    Attributes:
        input: input tokens without `cached` and `cache_write`.
        cached: input tokens from the engine's prompt cache.
        cache_write: input tokens that were written to that cache.
    """

    input: int = 0
    cached: int = 0
    output: int = 0
    cache_write: int = 0

    @property
    def read(self) -> int:
        return self.input + self.cached + self.cache_write


class ClassSum(NamedTuple):
    """Sums of one savings class (accounting/savings.py).

    Attributes:
        cost_pico: cost without confidence probes, whose cost is in the class `measuring`.
        baseline_pico: see `SumRow.baseline_pico`.
        savings_pico: counted savings. In the class `measuring`: measured baselines minus their estimates.
        error_pico: error bound of `savings_pico`. A measured baseline subtracts the error of its estimate.
    """

    requests: int = 0
    cost_pico: int = 0
    baseline_pico: int = 0
    savings_pico: int = 0
    error_pico: int = 0


def class_counts(name: str, sums: ClassSum) -> Sparse:
    """Return the nonzero counters of a savings class."""
    counts: Sparse = {}
    for key, amount in zip(_class_keys(name), sums, strict=True):
        if amount:
            counts[key] = amount
    return counts


@lru_cache(1_000)
def _class_keys(name: str) -> list[int | str]:
    first = CLASS_AT.get(name)
    fields = range(len(ClassSum._fields))
    if first is None:
        return [f"{OTHER_CLASS}{field}:{name}" for field in fields]
    return [first + field for field in fields]


_PICOS = Decimal("1E12")


def pico(usd: Decimal | None) -> int:
    """Return USD in whole picodollars, rounded up like `picodollars`. Receipts have no finer amounts."""
    return ceil(usd * _PICOS) if usd else 0


def usd(picos: int) -> Decimal:
    """Return picodollars in USD."""
    return Decimal(picos).scaleb(-12)
