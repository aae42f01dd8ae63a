"""The counters of a row of sums, by their numbers in the database, and the money of sums. Pure."""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache
from math import ceil
from typing import NamedTuple, TypeAlias

Sparse: TypeAlias = dict[int | str, int]
"""Values other than 0 by counter. Counters with names from outside are text."""

STAGES = ("admission", "batch_wait", "teacher", "first_token", "total")
"""The order of `Row.stages`."""

# Numbers of counters, as the database has them: a number never gets another meaning. The first ones are `Row.fixed`.
REQUESTS, KEPT, COST, BASELINE, BASELINE_ERROR, ESTIMATED, ANSWERED, BY_TEACHER, OPENED = range(9)
TEACHER, STUDENT, FAILED = 9, 14, 19  # roles: the tokens of each kind (Tokens), and the cost
TEACHER_COST, STUDENT_COST, FAILED_COST = 13, 18, 23
STAGE_TIMES = 24  # stages: the sum of their times in microseconds
FIXED = STAGE_TIMES + len(STAGES)
"""The number of counters in `Row.fixed`. It never changes: new counters go to `Row.sparse`."""
CLASS_AT: dict[str, int] = {  # savings classes: five sums each (ClassSum)
    "guided": 64,
    "student_by_policy": 72,
    "teacher_unavailable": 80,
    "not_guidable": 88,
    "teacher": 96,
    "failed": 104,
    "measuring": 112,
}
BUCKETS = 512  # the buckets of the stages' histograms
BUCKET_STEP = 512
BATCHES = 4_096  # the sizes of batches
ERROR, UNGUIDED, ENGINE, OTHER_CLASS = "e:", "u:", "p:", "c:"


class TokenSums(NamedTuple):
    """Tokens of one role, as in metrics.

    Attributes:
        input: read, and neither `cached` nor `cache_write`.
        cached: read from the engine's prompt cache.
        cache_write: read and written to that cache.
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
        cost_pico: without the probe, whose cost is in the class `measuring`.
        baseline_pico: as `Row.baseline_pico`.
        savings_pico: the savings that count. In the class `measuring`: measured baselines less their estimates.
        error_pico: how far `savings_pico` may be from the truth. Measured baselines take their estimates' errors out.
    """

    requests: int = 0
    cost_pico: int = 0
    baseline_pico: int = 0
    savings_pico: int = 0
    error_pico: int = 0


def class_counts(name: str, sums: ClassSum) -> Sparse:
    """Return the counters of a savings class that are not 0."""
    counts: Sparse = {}
    for key, amount in zip(_class_keys(name), sums, strict=True):
        if amount:
            counts[key] = amount
    return counts


@lru_cache(1_000)
def _class_keys(name: str) -> list[int | str]:
    at = CLASS_AT.get(name)
    fields = range(len(ClassSum._fields))
    return [f"{OTHER_CLASS}{field}:{name}" for field in fields] if at is None else [at + field for field in fields]


_PICOS = Decimal("1E12")


def pico(usd: Decimal | None) -> int:
    """Return USD in whole picodollars, rounded up as `picodollars` does. Receipts have no finer amounts."""
    return ceil(usd * _PICOS) if usd else 0


def usd(picos: int) -> Decimal:
    """The reverse."""
    return Decimal(picos).scaleb(-12)
