"""Measured guidance times, the deadline that follows them, and the warning about routes that miss their guidance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from structlog.testing import capture_logs

from gateway.pipeline.guidance_deadlines import (
    FILE_NAME,
    KEEP_S,
    MAX_CLASSES,
    MIN_TIMES,
    RECENT_ANSWERS,
    WINDOW,
    GuidanceDeadlines,
    GuidanceTimes,
    MeasuredTime,
    as_duration,
    read_times,
    recommended_s,
    write_times,
)
from gateway.policy.route_rules import AutoDeadline
from tests.accounting.receipt_builders import plan

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.policy.plan import GuidancePlan


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def guidance(deadline_s: float = 2.0, auto: AutoDeadline | None = None) -> GuidancePlan:
    found = plan().guidance
    assert found is not None
    return structs.replace(found, deadline_s=auto.max_s if auto is not None else deadline_s, auto_deadline=auto)


AUTO = AutoDeadline(min_s=0.5, max_s=10.0)


def test_auto_waits_for_the_maximum_until_the_teacher_is_measured() -> None:
    clock = Clock()
    deadlines = GuidanceDeadlines(GuidanceTimes(clock), clock)
    settings = guidance(auto=AUTO)
    assert deadlines.deadline_s(settings) == 10.0
    for _ in range(WINDOW):
        deadlines.arrived("chat", settings, 2.0, 2.0)
    assert deadlines.deadline_s(settings) == 2.5
    for _ in range(WINDOW):
        deadlines.arrived("chat", settings, 0.01, 0.01)
    assert deadlines.deadline_s(settings) == 0.5
    for _ in range(WINDOW):
        deadlines.arrived("chat", settings, 60.0, 60.0)
    assert deadlines.deadline_s(settings) == 10.0
    assert deadlines.deadline_s(guidance(3.0)) == 3.0


def test_auto_rises_until_a_slow_teacher_that_does_not_stream_is_in_time() -> None:
    """A teacher that takes 4 s and was fast before: the deadline doubles at each miss."""
    clock = Clock()
    deadlines = GuidanceDeadlines(GuidanceTimes(clock), clock)
    settings = guidance(auto=AUTO)
    for _ in range(WINDOW):
        deadlines.arrived("chat", settings, 0.4, 0.4)
    missed = 0
    for _ in range(WINDOW):
        deadline_s = deadlines.deadline_s(settings)
        if deadline_s >= 4.0:
            break
        deadlines.missed("chat", settings, deadline_s, deadline_s, 0, called_s=deadline_s)
        missed += 1
    assert deadlines.deadline_s(settings) >= 4.0
    assert missed < WINDOW / 4


def test_partial_streams_of_late_teachers_are_measurements() -> None:
    clock = Clock()
    deadlines = GuidanceDeadlines(GuidanceTimes(clock), clock)
    settings = guidance(2.0)
    hints = [
        deadlines.missed("chat", settings, 2.0, 2.0, settings.requested_tokens // 2, called_s=2.0) for _ in range(3)
    ]
    assert hints == [None, None, "guidance.deadline=5s"]


def test_a_route_with_frequent_late_guidance_is_logged_once_and_has_a_warning() -> None:
    clock = Clock()
    deadlines = GuidanceDeadlines(GuidanceTimes(clock), clock)
    settings = guidance(2.0)
    with capture_logs() as lines:
        for _ in range(6):
            deadlines.missed("chat", settings, 2.0, 2.0, 0, called_s=2.0)
        deadlines.arrived("other", settings, 1.0, 1.0)
    assert [line["event"] for line in lines] == ["guidance_often_late"]
    assert (lines[0]["tenant"], lines[0]["route"], lines[0]["set"]) == ("acme", "chat", "guidance.deadline=5s")
    (warning,) = deadlines.warnings("big")
    assert warning == (
        "route chat of tenant acme: 6 of its last 6 answers went without guidance because the teacher was late: "
        "set guidance.deadline=5s"
    )
    assert deadlines.warnings("another") == []
    with capture_logs() as lines:
        for _ in range(RECENT_ANSWERS):
            deadlines.arrived("chat", settings, 1.0, 1.0)
    assert [line["event"] for line in lines] == ["guidance_in_time_again"]
    assert deadlines.warnings("big") == []


def test_a_route_without_calls_has_no_warning() -> None:
    clock = Clock()
    deadlines = GuidanceDeadlines(GuidanceTimes(clock), clock)
    for _ in range(5):
        deadlines.missed("chat", guidance(2.0), 2.0, 2.0, 0, called_s=2.0)
    clock.now += 3600.0
    assert deadlines.warnings("big") == []


def test_with_auto_the_hint_names_the_bound() -> None:
    clock = Clock()
    deadlines = GuidanceDeadlines(GuidanceTimes(clock), clock)
    hints = [deadlines.missed("chat", guidance(auto=AUTO), 10.0, 10.0, 0, called_s=10.0) for _ in range(3)]
    assert hints[-1] == "guidance.auto_deadline.max=25s"


def test_with_auto_the_hint_names_the_lower_bound_where_the_upper_one_did_not_hold() -> None:
    clock = Clock()
    deadlines = GuidanceDeadlines(GuidanceTimes(clock), clock)
    settings = guidance(auto=AUTO)
    hints = [deadlines.missed("chat", settings, 1.0, 1.0, 0, called_s=1.0) for _ in range(3)]
    assert hints[-1] == "guidance.auto_deadline.min=2.5s"
    hint = deadlines.missed("chat", settings, 9.0, 9.0, 0, called_s=None)
    assert hint == "guidance.auto_deadline.max=12s", "95 % of the times need more than the upper bound"


def test_a_time_counts_for_half_an_hour_and_for_guidance_of_its_length() -> None:
    clock = Clock()
    times = GuidanceTimes(clock)
    for _ in range(MIN_TIMES):
        times.add("big", 40, 9.0)
    assert (times.p95_s("big", 60), times.p95_s("big", 20), times.p95_s("huge", 40)) == (9.0, None, None)
    clock.now += KEEP_S + 1
    times.add("big", 40, 1.0)
    assert times.p95_s("big", 40) == 1.0


@given(st.lists(st.floats(0.001, 100.0), min_size=1, max_size=2 * WINDOW))
def test_at_most_a_twentieth_of_the_window_took_longer_than_p95(seconds: list[float]) -> None:
    times = GuidanceTimes(lambda: 0.0)
    for one in seconds:
        times.add("big", 40, one)
    window = seconds[-WINDOW:]
    p95_s = times.p95_s("big", 40)
    assert p95_s in window
    assert sum(one > p95_s for one in window) <= len(window) * 0.05


@given(st.floats(0.001, 500.0))
def test_the_recommended_deadline_leaves_a_quarter_and_reads_short(p95_s: float) -> None:
    wanted_s = recommended_s(p95_s)
    assert 1.25 * p95_s - 1e-6 <= wanted_s <= 1.25 * p95_s * 1.1 + 1e-6
    assert len(as_duration(wanted_s).strip("ms").replace(".", "").strip("0")) <= 2


def test_a_new_process_starts_from_the_times_of_the_one_before(tmp_path: Path) -> None:
    before = GuidanceTimes(Clock())
    for _ in range(MIN_TIMES):
        before.add("big", 40, 3.0)
    before.add("big", 500, 9.0)  # once: not enough
    write_times(tmp_path / "data", before.measured())
    times = GuidanceTimes(Clock(), read_times(tmp_path / "data"))
    assert (times.p95_s("big", 40), times.p95_s("big", 500)) == (3.0, None)
    for _ in range(MIN_TIMES):
        times.add("big", 40, 1.0)
    assert times.p95_s("big", 40) == 1.0
    assert times.measured() == (MeasuredTime("big", 63, 1.0, MIN_TIMES),)


def test_one_tenants_times_do_not_set_another_tenants_deadline() -> None:
    clock = Clock()
    deadlines = GuidanceDeadlines(GuidanceTimes(clock), clock)
    acme = guidance(auto=AUTO)
    globex = structs.replace(acme, tenant="globex")
    for _ in range(MIN_TIMES):
        deadlines.arrived("chat", acme, 2.0, 2.0)
    for _ in range(2 * WINDOW):
        deadlines.arrived("chat", globex, 0.05, 0.05)
    assert (deadlines.deadline_s(acme), deadlines.deadline_s(globex)) == (2.5, 0.5)


def test_a_wait_in_the_queue_raises_the_deadline_of_its_own_tenant_alone() -> None:
    clock = Clock()
    deadlines = GuidanceDeadlines(GuidanceTimes(clock), clock)
    flood, new = guidance(auto=AUTO), structs.replace(guidance(auto=AUTO), tenant="new")
    for _ in range(WINDOW):
        deadlines.arrived("chat", flood, 7.0, 1.0)
        deadlines.missed("chat", flood, 8.0, 8.0, 0, called_s=None)
    assert (deadlines.deadline_s(flood), deadlines.deadline_s(new)) == (10.0, 1.3)


def test_a_new_tenant_starts_with_the_fleets_times_and_its_first_late_guidance_raises_them() -> None:
    clock = Clock()
    deadlines = GuidanceDeadlines(GuidanceTimes(clock), clock)
    new = structs.replace(guidance(auto=AUTO), tenant="new")
    for _ in range(WINDOW):
        deadlines.arrived("chat", guidance(auto=AUTO), 1.0, 1.0)
    deadlines.missed("chat", new, 1.3, 1.3, 0, called_s=1.3)
    assert deadlines.deadline_s(new) == 3.3


def test_guidance_that_a_stop_text_of_the_caller_ended_is_in_time_and_not_measured() -> None:
    clock = Clock()
    deadlines = GuidanceDeadlines(GuidanceTimes(clock), clock)
    for _ in range(WINDOW):
        deadlines.arrived("chat", guidance(auto=AUTO), 0.05, 0.05, stopped=True)
    assert deadlines.deadline_s(guidance(auto=AUTO)) == 10.0


def test_the_number_of_classes_is_bounded() -> None:
    times = GuidanceTimes(Clock())
    for number in range(MAX_CLASSES + 1):
        times.add("big", 40, 2.0, f"tenant-{number}")
    assert times.p95_s("big", 40, "tenant-0") is None
    assert times.p95_s("big", 40, f"tenant-{MAX_CLASSES}") == 2.0


@pytest.mark.parametrize("raw", [b"", b"{", b'{"measured": 3}', b"\xff"])
def test_a_file_that_cannot_be_read_is_no_measurement(tmp_path: Path, raw: bytes) -> None:
    assert read_times(tmp_path) == ()
    (tmp_path / FILE_NAME).write_bytes(raw)
    assert read_times(tmp_path) == ()
