"""Times of the stages: the wait of a question, and the engine time that it takes (paper, Fig. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.evaluation.record import StageRecord
    from gateway.evaluation.summary import SettingSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionTimes:
    """Mean seconds of one question; None without records.

    Attributes:
        teacher_wait_s, student_wait_s: Wait for each engine, with concurrent requests.
        teacher_concurrency, student_concurrency: Number of concurrent requests in the stage.
        total_s: Time measured by the client of a live run.
    """

    teacher_wait_s: float | None
    student_wait_s: float | None
    teacher_concurrency: int | None
    student_concurrency: int | None
    total_s: float | None

    @property
    def teacher_s(self) -> float | None:
        """Return the engine time of the teacher: the wait divided by the number of concurrent requests."""
        return _divide(self.teacher_wait_s, self.teacher_concurrency)

    @property
    def student_s(self) -> float | None:
        """Return the engine time of the student."""
        return _divide(self.student_wait_s, self.student_concurrency)

    @property
    def busy_s(self) -> float | None:
        """Return the engine time of both stages: the paper's time of the whole set, for one question."""
        parts = [one for one in (self.teacher_s, self.student_s) if one is not None]
        waited = [one for one in (self.teacher_wait_s, self.student_wait_s) if one is not None]
        return sum(parts) if parts and len(parts) == len(waited) else None

    @property
    def parts(self) -> tuple[float, float] | None:
        """Return the teacher's and the student's seconds of an answer: waits in a live run, else engine times."""
        teacher_s, student_s = self.teacher_s, self.student_s
        if self.total_s is not None:
            teacher_s, student_s = self.teacher_wait_s, self.student_wait_s
        elif self.busy_s is None:
            return None
        return None if teacher_s is None and student_s is None else (teacher_s or 0.0, student_s or 0.0)

    def speed_up(self, over: QuestionTimes) -> float | None:
        """Return the speed-up over `over`, by the client's times in a live run, else by engine times."""
        own, other = (self.total_s, over.total_s) if self.total_s is not None else (self.busy_s, over.busy_s)
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
    """Return the times of one setting."""
    teacher = None if summary.mode == "student" else _concurrency("teacher", summary.name, stages)
    student = None if summary.mode == "teacher" else _concurrency("student", summary.name, stages)
    n = summary.n
    # The means are over questions with a call; a question that the teacher completed has no student time.
    return QuestionTimes(
        teacher_wait_s=_per_question(summary.teacher_s, summary.teacher_timed, n),
        student_wait_s=_per_question(summary.student_s, summary.student_timed, n),
        teacher_concurrency=teacher,
        student_concurrency=student,
        total_s=summary.total_s,
    )


def stage_times(stages: Sequence[StageRecord]) -> list[StageTime]:
    """Add up the records by stage, setting and concurrency, in order of appearance."""
    found: dict[tuple[str, str, int], list[StageRecord]] = {}
    for stage in stages:
        found.setdefault((stage.stage, stage.setting, stage.concurrency), []).append(stage)
    return [
        StageTime(
            stage=name,
            setting=setting,
            concurrency=concurrency,
            sittings=len(group),
            calls=sum(one.calls for one in group),
            seconds=sum(one.seconds for one in group),
        )
        for (name, setting, concurrency), group in found.items()
    ]


def _concurrency(stage: str, setting: str, stages: Sequence[StageRecord]) -> int | None:
    """Return the concurrency with the most calls of the stage, of this setting or else of any setting.

    Guidance of a shorter length is cut from that of a longer one, without its own calls.
    """
    of_stage = [one for one in stages if one.stage == stage and one.calls and one.concurrency]
    own = [one for one in of_stage if one.setting == setting] or of_stage
    calls: dict[int, int] = {}
    for one in own:
        calls[one.concurrency] = calls.get(one.concurrency, 0) + one.calls
    return max(calls, key=lambda concurrency: (calls[concurrency], -concurrency)) if calls else None


def _per_question(mean_s: float | None, timed: int, n: int) -> float | None:
    return None if mean_s is None else mean_s * timed / n


def _divide(waited_s: float | None, concurrency: int | None) -> float | None:
    return None if waited_s is None or not concurrency else waited_s / concurrency
