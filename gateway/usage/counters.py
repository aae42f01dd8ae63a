"""The counters of a row of sums, by their numbers in the database, and the money of sums. Pure."""

from __future__ import annotations

from decimal import Decimal
from math import ceil
from typing import NamedTuple, TypeAlias

Counts: TypeAlias = dict[int | str, int]
"""Values other than 0 by counter. Counters with names from outside are text."""

STAGES = ("admission", "batch_wait", "teacher", "first_token", "total")
"""The order of `Row.stages`."""

# Numbers of counters, as the database has them: a number never gets another meaning.
REQUESTS, KEPT, COST, TEACHER_COST, STUDENT_COST, FAILED_COST, BASELINE, ESTIMATED = range(8)
ANSWERED, BY_TEACHER, OPENED, BASELINE_ERROR = range(8, 12)
TEACHER, STUDENT, FAILED = 16, 20, 24  # roles: the tokens of each kind (Tokens)
CLASS_AT: dict[str, int] = {  # savings classes: five sums each (ClassSum)
    "guided": 64,
    "student_by_policy": 72,
    "teacher_unavailable": 80,
    "not_guidable": 88,
    "teacher": 96,
    "failed": 104,
    "measuring": 112,
}
STAGE_TIMES = 128  # stages: the sum of their times in microseconds
BUCKETS = 512  # and of the stages' histograms the buckets
BUCKET_STEP = 512
BATCHES = 4_096  # and the sizes of batches
ERROR, UNGUIDED, ENGINE, OTHER_CLASS = "e:", "u:", "p:", "c:"


class Tokens(NamedTuple):
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
    """Sums of one savings class (ledger/savings.py).

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


def class_counts(name: str, sums: ClassSum) -> Counts:
    """Return the counters of a savings class that are not 0."""
    at = CLASS_AT.get(name)
    if at is None:  # of a later version
        return {f"{OTHER_CLASS}{field}:{name}": amount for field, amount in enumerate(sums) if amount}
    return {at + field: amount for field, amount in enumerate(sums) if amount}


def pico(usd: Decimal | None) -> int:
    """Return USD in whole picodollars, rounded up as `picodollars` does. Receipts have no finer amounts."""
    return ceil(usd.scaleb(12)) if usd else 0


def usd(picos: int) -> Decimal:
    """The reverse."""
    return Decimal(picos).scaleb(-12)
