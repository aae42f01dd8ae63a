"""Sums of comparisons: their number, the mean agreement, and the confidence interval of the difference. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

SCALE = 10_000
"""Agreement is stored as an integer number of ten-thousandths, so that sums do not depend on their order."""
LENGTHS = (16, 32, 64, 128)
MIN_SAMPLES = 10
"""The smallest number of comparisons with a confidence interval."""
_Z = 1.959964  # quantile of the normal distribution for 95 %


def length_of(tokens: int) -> str:
    """Return the bucket of a guidance length: the smallest of LENGTHS that is not below it, or "more"."""
    return next((str(limit) for limit in LENGTHS if tokens <= limit), "more")


@dataclass(frozen=True, slots=True)
class QualityTally:
    """Sums over `samples` comparisons; agreements are in units of 1/SCALE.

    Attributes:
        guided: the agreement of the guided answers with the teacher's.
        student: the agreement of the student's answers with the teacher's.
        difference, squares: the sum of `guided - student` per comparison, and of its square.
    """

    samples: int = 0
    guided: int = 0
    student: int = 0
    difference: int = 0
    squares: int = 0

    @classmethod
    def of(cls, guided: float, student: float) -> QualityTally:
        """Return the tally of one comparison with agreements from 0 to 1."""
        guided_units, student_units = round(guided * SCALE), round(student * SCALE)
        return cls(1, guided_units, student_units, guided_units - student_units, (guided_units - student_units) ** 2)

    def __add__(self, other: QualityTally) -> QualityTally:
        return QualityTally(
            self.samples + other.samples,
            self.guided + other.guided,
            self.student + other.student,
            self.difference + other.difference,
            self.squares + other.squares,
        )

    def mean(self, total: int) -> float | None:
        """Return the mean agreement of one of the sums, from 0 to 1; None without comparisons."""
        return total / SCALE / self.samples if self.samples else None

    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % confidence interval of the mean difference (paired t); None below MIN_SAMPLES."""
        if self.samples < MIN_SAMPLES:
            return None
        n = self.samples
        mean = self.difference / n
        variance = max(0.0, (self.squares - n * mean * mean) / (n - 1))
        half_width = _t(n - 1) * math.sqrt(variance / n)
        return max(-1.0, (mean - half_width) / SCALE), min(1.0, (mean + half_width) / SCALE)


def _t(degrees: int) -> float:
    """Return the 97.5th percentile of Student's t, by expansion around the normal. The error is 1 % from 9 degrees."""
    first = (_Z**3 + _Z) / (4 * degrees)
    second = (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * degrees**2)
    return _Z + first + second
