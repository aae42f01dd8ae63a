"""load_tests/first_token.py: the measurement itself. The tests check no figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.local.stack import LocalStack
from load_tests import first_token, markdown
from load_tests.chat_client import Timed
from load_tests.engine_process import fake_engine
from load_tests.first_token import (
    COLD,
    HANDOVER_HEAD,
    STREAMED,
    STUDENT,
    TEACHER,
    WARM,
    WHOLE,
    Engines,
    FirstTokenWorkload,
    HandoverWorkload,
)
from load_tests.prompts import prompts

BENCHMARKS = Path(__file__).parents[2] / "docs" / "design" / "benchmarks.md"


def timed(first_ms: float, mode: str = "guided", *, on_receipt_ms: float | None = None) -> Timed:
    receipt_ms = first_ms if on_receipt_ms is None else on_receipt_ms
    return Timed(first_ms / 1000, 1.0, 64, {"mode": mode, "first_token_ms": receipt_ms})


def seen() -> dict[str, list[Timed]]:
    return {
        STREAMED: [timed(200), timed(300, "teacher_complete"), timed(900, on_receipt_ms=880)],
        WHOLE: [timed(600), timed(600), timed(600, "student")],
        STUDENT: [timed(150, "student")] * 3,
        TEACHER: [timed(200, "teacher")] * 3,
    }


def test_there_are_fifty_different_prompts() -> None:
    assert len(set(prompts(1000))) == 50
    assert prompts(7) == prompts(1000)[:7]


def test_every_method_gets_every_question_in_rotating_order() -> None:
    order = first_token.in_turn(["a", "b", "c"], ["1", "2", "3", "4"])
    assert [way for way, _ in order] == [*"abc", *"bca", *"cab", *"abc"]
    assert [question for _, question in order] == [*"111", *"222", *"333", *"444"]


def test_figures_are_medians_of_each_method_and_their_ratios() -> None:
    ways = first_token.figures_of(seen(), 0.2)["ways"]
    streamed = ways[STREAMED]
    assert (streamed["first_p50_ms"], streamed["first_p90_ms"]) == (300, 900)
    assert (streamed["of_student"], streamed["of_whole"]) == (2.0, 0.5)
    assert streamed["apart_max_ms"] == pytest.approx(20)
    assert streamed["modes"] == {"guided": 2, "teacher_complete": 1}


def test_unguided_answers_are_counted_in_the_table() -> None:
    """An unguided answer would have the student's first token, and make guidance look fast."""
    figures = first_token.figures_of(seen(), 0.2) | {"machine": "One.", "teacher": "t", "student": "s", "m": 40}
    rows = {line.split("|")[1].strip(): line for line in first_token.shown(figures).splitlines() if line[:1] == "|"}
    assert rows[STREAMED].endswith("| 3 of 3 |")
    assert rows[WHOLE].endswith("| 2 of 3 |")
    assert "at most 20.0 ms apart" in first_token.shown(figures)


@pytest.mark.long
async def test_all_four_methods_are_measured_through_a_gateway(redis_url: str) -> None:
    """Each method has its own mode. Only streamed guidance arrives before it is complete."""
    methods: list[str] = []
    asking = FirstTokenWorkload(["Why?", "When?"], rounds=2, tokens=40, max_tokens=60)
    with (
        fake_engine("paced", dialect="tgi", for_s=120) as teacher,
        fake_engine("instant", dialect="openai", for_s=120) as student,
    ):
        answers, _ = await first_token.measure(Engines(teacher, student, redis_url), asking, methods.append)
    modes = {way: {one.facts["mode"] for one in timed} for way, timed in answers.items()}
    assert modes == {STREAMED: {"guided"}, WHOLE: {"guided"}, STUDENT: {"student"}, TEACHER: {"teacher"}}
    assert len(methods) == asking.calls
    assert {len(timed) for timed in answers.values()} == {4}
    for way, timed in answers.items():
        for one in timed:
            assert one.facts["first_token_ms"] <= one.facts["total_ms"]
            assert 0 < one.first_s <= one.total_s
            if way == WHOLE:
                assert one.facts["first_token_ms"] >= one.facts["teacher_ms"]
    assert any(one.facts["first_token_ms"] < one.facts["teacher_ms"] for one in answers[STREAMED])


def handed_over(ms: float, cached: int) -> Timed:
    return Timed(0.1, 1.0, 64, {"mode": "guided", "handover_ms": ms}, cached)


def test_the_table_of_handovers_counts_the_prompts_in_the_cache() -> None:
    answers = {
        (100, COLD): [handed_over(900, 20), handed_over(1100, 24), handed_over(800, 24)],
        (100, WARM): [handed_over(200, 120), handed_over(300, 120), handed_over(900, 20)],
    }
    rows = first_token.handover_figures(answers)
    assert [(row["p50_ms"], row["lowest_ms"], row["highest_ms"]) for row in rows] == [(900, 800, 1100), (300, 200, 900)]
    assert [(row["cached_p50"], row["in_cache"]) for row in rows] == [(24, 0), (120, 2)]
    figures = {"rows": rows, "student": "s", "machine": "One.", "others_cores": 0.1}
    assert first_token.handover_shown(figures).splitlines()[2:4] == [
        "| 100 words | no | 0.90 s | 0.80 s | 1.10 s | 0 of 3 |",
        "| 100 words | yes | 0.30 s | 0.20 s | 0.90 s | 2 of 3 |",
    ]


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_a_warm_student_reads_the_prompt_from_its_cache(redis_url: str) -> None:
    """llama.cpp reports the tokens that it found in its cache."""
    async with LocalStack(student="smollm2-135m-instruct") as stack:
        with fake_engine("two_seconds", for_s=120) as teacher:
            engines = Engines(teacher, stack.student.url, redis_url)
            seen, _ = await first_token.measure_handovers(engines, HandoverWorkload([40], rounds=2))
    cold, warm = seen[40, COLD], seen[40, WARM]
    assert {one.facts["mode"] for one in (*cold, *warm)} == {"guided"}
    assert min(one.cached for one in warm) >= max(one.cached for one in cold) + 40


@pytest.mark.parametrize("head", [first_token.HEAD, HANDOVER_HEAD])
def test_the_page_holds_the_table_that_the_script_prints(head: Any) -> None:
    """Figures are put there by copying its output."""
    assert markdown.line(head) in BENCHMARKS.read_text().splitlines()
