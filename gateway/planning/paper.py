"""The paper's times (Tables 2 to 5), computed with the planner's arithmetic.

The paper ran single models one question at a time, and guidance in batches (Table 8). For its teachers only the step of
a batch of one is known. With perfect scaling, a step of a batch of b takes as long as a step of one. Without scaling it
takes b times as long. So a pair's time lies between

    guidance / b + student     and     guidance + student

with guidance = teacher x m / n. The student writes all n tokens in addition to the guidance: in Figure 3 it takes
10,364.28 s, and 10,304.18 s alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gateway.planning.curve import DecodeStep, step_s

Verdict = Literal["within", "below", "above"]


@dataclass(frozen=True, slots=True)
class PaperRow:
    """A pair of the paper: m tokens of guidance and n of the answer. Seconds are totals over all questions of the data
    set.

    Attributes:
        teacher_s, student_s: Time of each model alone.
        batch: Questions that the teacher answers together; None if the paper does not give it. With perfect scaling,
            guidance then takes no time.
        printed_s, printed_speed_up: Time and speed-up of the pair as printed.
    """

    teacher_s: float
    student_s: float
    m: int
    n: int
    batch: int | None
    printed_s: float
    printed_speed_up: float

    @property
    def perfect_s(self) -> float:
        """Return the pair's time in seconds with perfect scaling of batches."""
        if self.batch is None:
            return self.student_s
        return self._both_s(
            (self._single_step, DecodeStep(batch=self.batch, step_s=self._single_step.step_s)), self.batch
        )

    @property
    def none_s(self) -> float:
        """Return the pair's time in seconds with no gain from batches."""
        return self._both_s((self._single_step,), self.batch or 1)

    @property
    def verdict(self) -> Verdict:
        return "below" if self.printed_s < self.perfect_s else "above" if self.printed_s > self.none_s else "within"

    @property
    def speed_up(self) -> float:
        return self.teacher_s / self.printed_s

    @property
    def reason(self) -> str:
        """Return why the printed time contradicts the single models' rows; empty if it does not."""
        if self.verdict == "above":
            return f"{self.printed_s / self.none_s - 1:.1%} slower than without any gain from batches"
        if self.verdict == "within":
            return ""
        if self.printed_s < self.student_s:
            fits = "" if self._fits_if_included() else ", even if the guidance is included in them"
            return (
                f"{1 - self.printed_s / self.student_s:.1%} faster than its student alone, which is impossible if the "
                f"student writes {self.n} tokens{fits}"
            )
        return f"{1 - self.printed_s / self.perfect_s:.2%} faster than with perfect batches"

    @property
    def misprinted(self) -> bool:
        """Return whether the printed speed-up differs from the ratio of the printed times."""
        return abs(self.printed_speed_up - self.speed_up) > 0.006

    @property
    def _single_step(self) -> DecodeStep:
        """Return the step of one question, summed over all questions."""
        return DecodeStep(batch=1, step_s=self.teacher_s / self.n)

    def _both_s(self, steps: tuple[DecodeStep, ...], batch: int) -> float:
        return self.m * step_s(steps, batch) / batch + self.student_s

    def _fits_if_included(self) -> bool:
        """Return whether the printed time fits if the n tokens are guidance and answer together."""
        return self.printed_s >= self.perfect_s - self.student_s * self.m / self.n
