"""Comparisons added up: how many, how far they agree, and how sure the difference is. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

SCALE = 10_000
"""Agreement is counted in ten-thousandths, as whole numbers: sums of several processes come out the same."""
LENGTHS = (16, 32, 64, 128)
FEWEST = 10
"""With fewer comparisons there is no interval: it would say more than is known."""
_Z = 1.959964  # of the normal distribution, for 95 %


def length_of(tokens: int) -> str:
    """The bucket of a guidance of so many tokens: the least of LENGTHS that holds it, or `more`."""
    return next((str(most) for most in LENGTHS if tokens <= most), "more")


@dataclass(frozen=True, slots=True)
class QualityTally:
    """Sums over `samples` comparisons; agreements are in units of 1/SCALE.

    Attributes:
        guided: how far the guided answers agree with the teacher's.
        student: how far the student's alone do.
        difference, squares: of each comparison the first minus the second, and the square of that.
    """

    samples: int = 0
    guided: int = 0
    student: int = 0
    difference: int = 0
    squares: int = 0

    @classmethod
    def of(cls, guided: float, student: float) -> QualityTally:
        """One comparison, of agreements from 0 to 1."""
        ours, theirs = round(guided * SCALE), round(student * SCALE)
        return cls(1, ours, theirs, ours - theirs, (ours - theirs) ** 2)

    def __add__(self, other: QualityTally) -> QualityTally:
        return QualityTally(
            self.samples + other.samples,
            self.guided + other.guided,
            self.student + other.student,
            self.difference + other.difference,
            self.squares + other.squares,
        )

    def mean(self, total: int) -> float | None:
        """One of the sums as a mean agreement from 0 to 1; None without a comparison."""
        return total / SCALE / self.samples if self.samples else None

    def interval(self) -> tuple[float, float] | None:
        """Where the true mean difference lies, in 95 of 100 cases (paired t); None below FEWEST comparisons."""
        if self.samples < FEWEST:
            return None
        n = self.samples
        mean = self.difference / n
        variance = max(0.0, (self.squares - n * mean * mean) / (n - 1))
        half = _t(n - 1) * math.sqrt(variance / n)
        return max(-1.0, (mean - half) / SCALE), min(1.0, (mean + half) / SCALE)


def _t(freedom: int) -> float:
    """The 97.5th percentile of Student's t, by its expansion around the normal's; to 1 % from 9 degrees on."""
    first = (_Z**3 + _Z) / (4 * freedom)
    second = (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * freedom**2)
    return _Z + first + second
