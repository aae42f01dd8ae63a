"""Totals of examples."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec import structs

from gateway.evaluation.record import Example, read_run
from gateway.evaluation.summary import cache_hits, reference, roles_with_cache_reads, summaries, summarize
from tests.evaluation.run_folders import GUIDED, SETTINGS, STUDENT, TEACHER, run_folder, with_shots

if TYPE_CHECKING:
    from pathlib import Path


def one(question: str, **fields: Any) -> Example:
    facts: dict[str, Any] = {
        "setting": GUIDED.name,
        "question": question,
        "mode": "guided",
        "score": 1.0,
        "text": "",
        "cost_usd": "0.0003",
        "teacher_usd": "0.0001",
        "baseline_usd": "0.0009",
    }
    return msgspec.convert(facts | fields, Example)


def test_a_summary_adds_up_its_examples() -> None:
    found = summarize(
        GUIDED.as_dict(),
        [
            one("a", teacher_output_tokens=40, student_output_tokens=60, kept_tokens=39, teacher_s=2.0, finish="stop"),
            one("b", teacher_output_tokens=10, mode="teacher_complete", opening_score=1.0, teacher_s=1.0),
            one("c", score=0.0, finish="length", unguided="teacher_rested", mode="student", student_output_tokens=90),
            one("d", score=0.0, error="engine_timeout"),
        ],
    )
    assert (found.n, found.correct, found.accuracy) == (4, 2, 0.5)
    assert found.guidance_correct == 1
    assert (found.teacher_output_tokens, found.student_output_tokens, found.kept_tokens) == (50, 150, 39)
    assert found.teacher_token_share == 0.25
    assert (found.cost_usd, found.teacher_usd, found.baseline_usd) == (
        Decimal("0.0012"),
        Decimal("0.0004"),
        Decimal("0.0036"),
    )
    assert found.cost_per_answer == Decimal("0.0003")
    assert found.teacher_s == 0.75, "a question without a call counts as 0"
    assert found.student_s is None
    assert found.modes == {"guided": 2, "teacher_complete": 1, "student": 1}
    assert found.errors == {"engine_timeout": 1}
    assert found.unguided == {"teacher_rested": 1}
    assert found.cut == 1


def test_the_better_half_of_a_judges_scale_is_right() -> None:
    found = summarize(GUIDED.as_dict(), [one("a", score=0.5), one("b", score=0.4)])
    assert (found.correct, found.score) == (1, pytest.approx(0.45))


def test_only_guided_settings_have_guidance_to_score() -> None:
    found = summarize(TEACHER.as_dict(), [one("a", setting=TEACHER.name, mode="teacher")])
    assert found.guidance_correct is None


def test_settings_come_in_the_runs_order_and_those_without_examples_are_left_out(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, (TEACHER, GUIDED), n=3)
    run = read_run(folder)
    settings = [setting.as_dict() for setting in (GUIDED, STUDENT, TEACHER, GUIDED)]
    run = replace(run, manifest=structs.replace(run.manifest, settings=settings))
    assert [summary.name for summary in summaries(run)] == [GUIDED.name, TEACHER.name]


def test_a_reference_has_the_same_prompt_format(tmp_path: Path) -> None:
    settings = (*SETTINGS, *with_shots(SETTINGS, 8))
    folder = run_folder(tmp_path, settings, n=3)
    found = summaries(read_run(folder))
    guided = next(one for one in found if one.mode == "guided" and one.setting["shots"] == 8)
    for mode in ("teacher", "student"):
        other = reference(guided, mode, found)
        assert other is not None
        assert (other.mode, other.setting["shots"], other.setting["form"]) == (mode, 8, "completion")
    assert reference(guided, "teacher", [guided]) is None


def test_cache_reads_that_an_engine_never_reports_differ_from_0() -> None:
    """vLLM omits the number if it is 0, so the other answers of an engine that reports some count as 0."""
    silent = one("a", teacher_input_tokens=100, student_input_tokens=10)
    told = one("b", teacher_input_tokens=100, student_input_tokens=10, teacher_cached_tokens=60)
    none = one("c", student_input_tokens=10, student_cached_tokens=0)
    assert roles_with_cache_reads([silent]) == frozenset()
    assert cache_hits([silent, told], roles_with_cache_reads([silent, told])) == {"teacher": 0.3, "student": None}
    assert cache_hits([silent], roles_with_cache_reads([silent, told])) == {"teacher": 0.0, "student": None}
    assert cache_hits([none], roles_with_cache_reads([none])) == {"student": 0.0}
