"""Stage times computed from the waits of answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from gateway.evaluation.record import Example, StageRecord
from gateway.evaluation.reporting.report import QuestionTimes, stage_times, times
from gateway.evaluation.summary import summarize
from tests.evaluation.run_folders import GUIDED, TEACHER

if TYPE_CHECKING:
    from gateway.evaluation.setting import Setting


def waits(setting: Setting, stages: list[StageRecord], *waited: dict[str, Any]) -> QuestionTimes:
    costs = dict.fromkeys(("cost_usd", "teacher_usd", "baseline_usd"), "0")
    examples = [
        msgspec.convert(
            {"setting": setting.name, "question": str(number), "mode": setting.mode, "score": 1.0, "text": ""}
            | costs
            | one,
            Example,
        )
        for number, one in enumerate(waited)
    ]
    return times(summarize(setting.as_dict(), examples), stages)


def stage(name: str, setting: Setting, *, calls: int = 10, at: int = 4, seconds: float = 20.0) -> StageRecord:
    return msgspec.convert(
        {"stage": name, "setting": setting.name, "calls": calls, "seconds": seconds, "concurrency": at, "at": 0},
        StageRecord,
    )


def test_a_stage_is_the_wait_over_how_many_waited_at_once() -> None:
    stages = [stage("teacher", GUIDED, at=8), stage("student", GUIDED, at=2)]
    found = waits(GUIDED, stages, {"teacher_s": 16.0, "student_s": 3.0}, {"teacher_s": 8.0, "student_s": 5.0})
    assert (found.teacher_wait_s, found.student_wait_s) == (12.0, 4.0)
    assert (found.teacher_s, found.student_s, found.busy_s) == (1.5, 2.0, 3.5)


def test_a_question_that_the_teacher_ended_kept_no_student() -> None:
    stages = [stage("teacher", GUIDED, at=1), stage("student", GUIDED, at=1)]
    found = waits(GUIDED, stages, {"teacher_s": 2.0}, {"teacher_s": 2.0, "student_s": 6.0})
    assert (found.student_s, found.busy_s) == (3.0, 5.0)


def test_guidance_that_was_cut_from_a_longer_one_has_the_longer_ones_concurrency() -> None:
    stages = [stage("teacher", TEACHER, at=8), stage("student", GUIDED, at=2)]
    assert waits(GUIDED, stages, {"teacher_s": 16.0, "student_s": 4.0}).teacher_s == 2.0


def test_without_a_known_concurrency_no_stages_are_reported() -> None:
    found = waits(GUIDED, [stage("student", GUIDED), stage("teacher", GUIDED, at=0)], {"teacher_s": 1.0})
    assert found.teacher_wait_s == 1.0
    assert found.busy_s is None
    assert found.parts is None


def test_speed_up_is_the_teachers_time_over_its_own() -> None:
    stages = [stage("teacher", TEACHER, at=4), stage("student", GUIDED, at=2)]
    teacher = waits(TEACHER, stages, {"teacher_s": 24.0})
    guided = waits(GUIDED, stages, {"teacher_s": 4.0, "student_s": 4.0})
    assert guided.speed_up(teacher) == pytest.approx(2.0)
    assert teacher.speed_up(waits(GUIDED, [], {"teacher_s": 1.0})) is None


def test_in_a_live_run_callers_times_count() -> None:
    teacher, guided = (
        waits(one, [stage("live", one)], {"teacher_s": 1.0, "total_s": total})
        for one, total in ((TEACHER, 9.0), (GUIDED, 3.0))
    )
    assert guided.speed_up(teacher) == pytest.approx(3.0)
    assert guided.parts == (1.0, 0.0)


def test_sessions_of_one_stage_are_added_up() -> None:
    found = stage_times([stage("teacher", GUIDED), stage("teacher", GUIDED, calls=30), stage("teacher", GUIDED, at=1)])
    assert [(one.concurrency, one.sessions, one.calls, one.seconds_per_call) for one in found] == [
        (4, 2, 40, 1.0),
        (1, 1, 10, 2.0),
    ]
