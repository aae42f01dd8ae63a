"""Capacity plans: both fleets, their total cost, assumptions and warnings."""

from __future__ import annotations

from decimal import Decimal

import pytest

from gateway.errors import StartupError
from gateway.planning.plan import RequestLoad, plan
from tests.planning.curves import curve

LOAD = RequestLoad(Decimal(40), prompt_tokens=500, answer_tokens=300, guidance_tokens=40)
BIG = curve()
SMALL = curve(
    model="s",
    gpus_per_replica=1,
    decode=[{"batch": 1, "seconds_per_step": 0.002}, {"batch": 64, "seconds_per_step": 0.004}],
    prefill={"tokens_per_s": 80_000},
    price={"gpu_usd_per_hour": 2},
)


def test_the_teacher_opens_the_student_reads_that_and_finishes_and_alone_the_teacher_does_all() -> None:
    found = plan(LOAD, BIG, SMALL)
    assert found.student is not None
    assert (found.teacher.work.read, found.teacher.work.written) == (500, 40)
    assert (found.student.work.read, found.student.work.written) == (540, 260)
    assert (found.alone.work.read, found.alone.work.written) == (500, 300)
    assert found.met


def test_savings_are_the_teachers_cost_minus_the_cost_of_both() -> None:
    found = plan(LOAD, BIG, SMALL)
    assert found.student is not None
    assert found.usd_per_hour == found.teacher.usd_per_hour + found.student.usd_per_hour
    assert found.savings_usd_per_hour == found.alone.usd_per_hour - found.usd_per_hour > 0
    assert found.savings_usd_per_1000 == pytest.approx(found.alone.usd_per_1000 - found.usd_per_1000)
    assert found.savings_share == pytest.approx(float(found.savings_usd_per_hour / found.alone.usd_per_hour))


def test_the_extra_prompt_of_the_teacher_is_read_only_by_the_teacher() -> None:
    shown = plan(LOAD._replace(shown_tokens=700), BIG, SMALL)
    assert shown.teacher.work.read == 1200
    assert shown.alone.work.read == 500
    cached = plan(LOAD._replace(shown_tokens=700, shown_cached=True), BIG, SMALL)
    assert (cached.teacher.work.read, cached.teacher.work.cached) == (500, 700)
    assert cached.teacher.usd_per_hour < shown.teacher.usd_per_hour


def test_without_a_student_the_plan_states_external_students() -> None:
    found = plan(LOAD, BIG, None)
    assert found.student is None
    assert found.usd_per_hour == found.teacher.usd_per_hour
    assert any("callers' devices" in line for line in found.assumptions)


def test_guidance_that_is_the_whole_answer_is_refused() -> None:
    with pytest.raises(StartupError, match="--tokens 300 leaves no tokens for the student"):
        plan(LOAD._replace(guidance_tokens=300), BIG, SMALL)


def test_headroom_and_lengths_are_named() -> None:
    text = " ".join(plan(LOAD, BIG, SMALL, 0.25).assumptions)
    for word in ("equal share", "75%", "500", "300", "not modeled"):
        assert word in text


def warnings(**changes: object) -> str:
    arguments: dict[str, object] = {"load": LOAD, "teacher": BIG, "student": SMALL} | changes
    return "\n".join(plan(**arguments).warnings)  # type: ignore[arg-type]


def test_a_plan_on_measured_ground_warns_of_nothing() -> None:
    many = plan(LOAD._replace(rps=Decimal(4000)), BIG, SMALL)
    assert many.warnings == ()


def test_batches_above_the_measured_ones_are_marked_as_extrapolated() -> None:
    text = warnings(teacher=curve(max_batch=64))
    assert "teacher: extrapolated: up to 64 answers may be decoded together, and the curve is measured up to 10" in text
    assert text.count("up to 64 answers") == 1  # not repeated for the teacher alone


def test_longer_contexts_than_measured_are_marked_as_extrapolated() -> None:
    held = curve(origin={"kind": "measured", "source": "a test", "context_tokens": 200})
    assert "teacher: extrapolated: answers hold 520 tokens on average" in warnings(teacher=held)


def test_unmeasured_numbers_are_marked_as_assumed() -> None:
    guessed = curve(origin={"kind": "assumed", "source": "hardware"})
    assert "teacher: the numbers of its curve are assumed, not measured (hardware)" in warnings(teacher=guessed)


def test_overloaded_replicas_are_named() -> None:
    found = plan(LOAD, BIG, SMALL, teacher_replicas=2)
    assert not found.met
    assert any(line.startswith("teacher: overloaded: 2 replicas serve at most") for line in found.warnings)
    tight = plan(LOAD, BIG, SMALL, teacher_replicas=6)
    assert not tight.met
    assert any(line.startswith("teacher: the headroom is not kept") for line in tight.warnings)


def test_guidance_that_costs_more_than_it_saves_is_reported() -> None:
    found = plan(LOAD, BIG, BIG)
    assert found.savings_usd_per_hour < 0
    assert any(line.startswith("guidance costs more") for line in found.warnings)


def test_teachers_with_token_prices_and_students_with_hourly_prices_combine() -> None:
    sold = curve(price={"input_per_1m": 3, "output_per_1m": 15})
    found = plan(LOAD, sold, SMALL)
    assert found.teacher.gpus is None
    assert found.teacher.usd_per_1000 == Decimal("1.5") + Decimal("0.6")
    assert found.alone.usd_per_1000 == Decimal("1.5") + Decimal("4.5")
    assert any("paid by the token" in line for line in found.assumptions)
