"""The paper's times (Table 2 to 5), by the arithmetic of the planner.

The paper ran single models one question at a time, and guidance in batches (Table 8). Of its teachers one step is
known, that of a batch of one. How a batch of b scales is not, but it lies between two bounds: perfectly, when a step of
b takes as long as a step of one, and not at all, when it takes b times as long. So a pair's time lies between

    guidance / b + student     and     guidance + student

with guidance = teacher x m / n. The student writes all n tokens beside the guidance: in Figure 3 it takes 10,364.28 s,
and 10,304.18 s alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gateway.planning.curve import DecodeStep, step_s

Verdict = Literal["within", "below", "above"]


@dataclass(frozen=True, slots=True)
class PaperRow:
    """A pair of the paper. Seconds are over all questions of the set: of each model alone, and as printed for both.

    `m`: tokens of guidance. `n`: tokens of the answer. `batch`: questions that the teacher answers together; None: the
    paper does not say, so that with perfect batches guidance might take no time.
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
        """Both, when batches scale perfectly."""
        if self.batch is None:
            return self.student_s
        return self._both_s((self._one, DecodeStep(batch=self.batch, step_s=self._one.step_s)), self.batch)

    @property
    def none_s(self) -> float:
        """Both, when a batch gains nothing."""
        return self._both_s((self._one,), self.batch or 1)

    @property
    def verdict(self) -> Verdict:
        """Where the printed time lies."""
        return "below" if self.printed_s < self.perfect_s else "above" if self.printed_s > self.none_s else "within"

    @property
    def speed_up(self) -> float:
        """The teacher's time over the printed one; what the paper prints for it is `printed_speed_up`."""
        return self.teacher_s / self.printed_s

    @property
    def why(self) -> str:
        """Why the printed time cannot come of the single models' rows; empty where it can."""
        if self.verdict == "above":
            return f"{self.printed_s / self.none_s - 1:.1%} slower than without any gain from batches"
        if self.verdict == "within":
            return ""
        if self.printed_s < self.student_s:
            fits = "" if self._if_counted() else ", nor with the guidance counted among them"
            return (
                f"{1 - self.printed_s / self.student_s:.1%} quicker than its student alone, which cannot be where that "
                f"writes {self.n} tokens{fits}"
            )
        return f"{1 - self.printed_s / self.perfect_s:.2%} quicker than with perfect batches"

    @property
    def misprinted(self) -> bool:
        """Whether the printed speed-up is not the one that the printed times come to."""
        return abs(self.printed_speed_up - self.speed_up) > 0.006

    @property
    def _one(self) -> DecodeStep:
        """A step of one question, over all questions."""
        return DecodeStep(batch=1, step_s=self.teacher_s / self.n)

    def _both_s(self, steps: tuple[DecodeStep, ...], batch: int) -> float:
        return self.m * step_s(steps, batch) / batch + self.student_s

    def _if_counted(self) -> bool:
        """Whether it could be if the n tokens were guidance and answer together."""
        return self.printed_s >= self.perfect_s - self.student_s * self.m / self.n
