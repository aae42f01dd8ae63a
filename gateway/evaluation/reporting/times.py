"""How long the stages took: as a question waited, and as its engine was kept (paper, Fig. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.evaluation.record import StageRecord
    from gateway.evaluation.summary import SettingSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionTimes:
    """Seconds of one question, the mean over those that have them; None where nothing is known.

    Attributes:
        teacher_wait_s, student_wait_s: how long it waited for either, beside others.
        teacher_at, student_at: how many were asked beside each other in that stage.
        total_s: as a caller saw it, in a live run.
    """

    teacher_wait_s: float | None
    student_wait_s: float | None
    teacher_at: int | None
    student_at: int | None
    total_s: float | None

    @property
    def teacher_s(self) -> float | None:
        """For how long it kept the teacher: what it waited, over how many waited at once."""
        return _over(self.teacher_wait_s, self.teacher_at)

    @property
    def student_s(self) -> float | None:
        """Likewise the student."""
        return _over(self.student_wait_s, self.student_at)

    @property
    def kept_s(self) -> float | None:
        """Both stages: the paper's time over the whole set, for one question."""
        parts = [one for one in (self.teacher_s, self.student_s) if one is not None]
        waited = [one for one in (self.teacher_wait_s, self.student_wait_s) if one is not None]
        return sum(parts) if parts and len(parts) == len(waited) else None

    @property
    def parts(self) -> tuple[float, float] | None:
        """The teacher's and the student's seconds of one answer: waited for in a live run, else kept."""
        taught, told = self.teacher_s, self.student_s
        if self.total_s is not None:
            taught, told = self.teacher_wait_s, self.student_wait_s
        elif self.kept_s is None:
            return None
        return None if taught is None and told is None else (taught or 0.0, told or 0.0)

    def speed_up(self, over: QuestionTimes) -> float | None:
        """How many times as fast as `over`: in a live run as callers saw it, else by the time the engines were kept."""
        own, other = (self.total_s, over.total_s) if self.total_s is not None else (self.kept_s, over.kept_s)
        return other / own if own and other else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """All sittings of one stage under one setting at one concurrency."""

    stage: str
    setting: str
    concurrency: int
    sittings: int
    calls: int
    seconds: float

    @property
    def seconds_per_call(self) -> float | None:
        return self.seconds / self.calls if self.calls else None


def times(summary: SettingSummary, stages: Sequence[StageRecord]) -> QuestionTimes:
    """Of one setting."""
    teacher = None if summary.mode == "student" else _concurrency("teacher", summary.name, stages)
    student = None if summary.mode == "teacher" else _concurrency("student", summary.name, stages)
    n = summary.n
    # The mean is over those that asked at all; a question that the teacher answered kept no student.
    return QuestionTimes(
        teacher_wait_s=_per_question(summary.teacher_s, summary.teacher_timed, n),
        student_wait_s=_per_question(summary.student_s, summary.student_timed, n),
        teacher_at=teacher,
        student_at=student,
        total_s=summary.total_s,
    )


def stage_times(stages: Sequence[StageRecord]) -> list[StageTime]:
    """In the order in which they first came."""
    found: dict[tuple[str, str, int], list[StageRecord]] = {}
    for stage in stages:
        found.setdefault((stage.stage, stage.setting, stage.concurrency), []).append(stage)
    return [
        StageTime(
            stage=name,
            setting=setting,
            concurrency=concurrency,
            sittings=len(some),
            calls=sum(one.calls for one in some),
            seconds=sum(one.seconds for one in some),
        )
        for (name, setting, concurrency), some in found.items()
    ]


def _concurrency(stage: str, setting: str, stages: Sequence[StageRecord]) -> int | None:
    """That of most calls of the stage: this setting's, or where it made none, any setting's.

    Guidance of a shorter length is cut from a longer one's, and made no call of its own.
    """
    of_stage = [one for one in stages if one.stage == stage and one.calls and one.concurrency]
    own = [one for one in of_stage if one.setting == setting] or of_stage
    calls: dict[int, int] = {}
    for one in own:
        calls[one.concurrency] = calls.get(one.concurrency, 0) + one.calls
    return max(calls, key=lambda concurrency: (calls[concurrency], -concurrency)) if calls else None


def _per_question(mean_s: float | None, timed: int, n: int) -> float | None:
    return None if mean_s is None else mean_s * timed / n


def _over(waited_s: float | None, at: int | None) -> float | None:
    return None if waited_s is None or not at else waited_s / at
