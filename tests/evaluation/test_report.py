"""A report's values, computed from synthetic examples."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec
import pytest

from gateway.evaluation.record import read_run
from gateway.evaluation.reporting.rendering import write_report
from gateway.evaluation.reporting.report import section
from gateway.evaluation.reporting.tables import section_tables
from tests.evaluation.run_folders import GUIDED, SETTINGS, STUDENT, TEACHER, run_folder, with_shots

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.evaluation.record import Example
    from gateway.evaluation.reporting.report import ReportRow, ReportSection
    from gateway.evaluation.setting import Setting

# Correct answers of the teacher, the student and the guided setting to ten questions.
RIGHT = {TEACHER.name: "1111111100", STUDENT.name: "1100000000", GUIDED.name: "1011110010"}


def drawn_up(example: Example) -> Example:
    """Set the scores of RIGHT, and round costs."""
    correct = RIGHT[example.setting][int(example.question[1:])] == "1"
    usd = {"teacher": "0.010", "student": "0.001", "guided": "0.004"}[
        example.mode.replace("teacher_complete", "guided")
    ]
    wrote = {TEACHER.name: (100, 0), STUDENT.name: (0, 150), GUIDED.name: (40, 60)}[example.setting]
    return msgspec.structs.replace(
        example,
        score=float(correct),
        cost_usd=Decimal(usd),
        baseline_usd=Decimal("0.008"),
        teacher_output_tokens=wrote[0],
        student_output_tokens=wrote[1],
    )


@pytest.fixture
def found(tmp_path: Path) -> ReportSection:
    return section(read_run(run_folder(tmp_path, (TEACHER, STUDENT, GUIDED), n=10, change=drawn_up)), seed=1)


def row(section: ReportSection, setting: Setting) -> ReportRow:
    return next(one for one in section.rows if one.summary.name == setting.name)


def test_nothing_is_kept_of_a_teacher_that_is_worse_than_the_student(tmp_path: Path) -> None:
    settings = (TEACHER, STUDENT, GUIDED)
    other = {TEACHER.name: STUDENT.name, STUDENT.name: TEACHER.name, GUIDED.name: GUIDED.name}

    def swapped(example: Example) -> Example:
        right = RIGHT[other[example.setting]][int(example.question[1:])] == "1"
        return msgspec.structs.replace(drawn_up(example), score=float(right))

    found = section(read_run(run_folder(tmp_path, settings, n=10, change=swapped)), seed=1)
    assert row(found, GUIDED).teacher is not None
    assert row(found, GUIDED).kept is None


def test_a_guided_setting_is_compared_with_student_and_teacher(found: ReportSection) -> None:
    """Five wins and one loss against the student; one win and three losses against the teacher."""
    guided = row(found, GUIDED)
    assert guided.student is not None
    assert guided.teacher is not None
    assert guided.student.difference == pytest.approx(0.4)
    assert (len(guided.student.won), len(guided.student.lost)) == (5, 1)
    assert guided.student.p == pytest.approx(2 * (1 + 6) / 64)
    assert guided.teacher.difference == pytest.approx(-0.2)
    assert guided.teacher.p == pytest.approx(2 * (1 + 4) / 16)
    assert guided.teacher.won == ("q008",)
    assert guided.teacher.lost == ("q001", "q006", "q007")


def test_the_closed_gap_is_relative_to_student_and_teacher(found: ReportSection) -> None:
    """(6 - 2) / (8 - 2) of the gap, and 6 / 8 of the teacher's accuracy."""
    guided = row(found, GUIDED)
    assert guided.gap is not None
    assert guided.kept is not None
    assert guided.gap.value == pytest.approx(4 / 6)
    assert guided.kept.value == pytest.approx(0.75)
    assert guided.kept.interval is not None
    assert guided.kept.interval.low <= 0.75 <= guided.kept.interval.high


def test_teacher_tokens_and_total_cost_are_separate(found: ReportSection) -> None:
    """40 of the teacher alone's 100 tokens, 40 of all 100 output tokens, and 4 of 10 of the cost."""
    guided = row(found, GUIDED)
    assert guided.measured is not None
    assert guided.measured.token_share == pytest.approx(0.4)
    assert guided.summary.teacher_token_share == pytest.approx(0.4)
    assert guided.measured.cost_share == pytest.approx(0.4)
    assert guided.measured.savings_usd == Decimal("0.060")
    assert guided.summary.baseline_usd - guided.summary.cost_usd == Decimal("0.040")


def test_the_prompt_cache_is_reported_by_setting_and_model(tmp_path: Path) -> None:
    """The student's engine reports no number, and the teacher's one reads 45 of 60 tokens under guidance only."""

    def cached(example: Example) -> Example:
        reads = {TEACHER.name: 0, STUDENT.name: None, GUIDED.name: 45}[example.setting]
        return msgspec.structs.replace(example, teacher_cached_tokens=reads)

    made = section(read_run(run_folder(tmp_path, (TEACHER, STUDENT, GUIDED), n=10, change=cached)), seed=1)
    (table,) = (one for one in section_tables(made) if one.title == "Prompt cache")
    assert [tuple(cell.replace("\u00a0", " ") for cell in cells) for cells in table.rows] == [
        ("teacher alone", "0.0 % of 60.0", "-"),
        ("student alone", "-", "not reported"),
        ("cutoff, m=40", "75.0 % of 60.0", "not reported"),
    ]
    (report,) = (path for path in write_report([made], tmp_path / "out", 1) if path.suffix == ".json")
    (run,) = json.loads(report.read_text())["runs"]
    assert [one["prompt_cache_hits"] for group in run["groups"] for one in group["settings"]] == [
        {"teacher": 0.0}, {"student": None}, {"teacher": 0.75, "student": None}
    ]  # fmt: skip


def test_no_gap_is_reported_if_the_teacher_may_not_be_better(tmp_path: Path) -> None:
    def alike(example: Example) -> Example:
        return msgspec.structs.replace(example, score=float(int(example.question[1:]) % 2))

    run = read_run(run_folder(tmp_path, (TEACHER, STUDENT, GUIDED), n=10, change=alike))
    guided = row(section(run, seed=1), GUIDED)
    assert guided.gap is None
    assert guided.kept is not None
    assert guided.kept.value == 1.0


def test_settings_are_compared_only_with_the_same_prompt_format(tmp_path: Path) -> None:
    settings = with_shots((TEACHER, STUDENT, GUIDED), 0, 8)
    found = section(read_run(run_folder(tmp_path, settings, n=20)), seed=1)
    assert [group.title for group in found.groups] == [
        f"raw prompt, {shots} exemplars, at most 300 tokens, greedy" for shots in ("no", 8)
    ]
    for group in found.groups:
        guided, teacher = group.guided[0], group.alone("teacher")
        assert guided.teacher is not None
        assert teacher is not None
        assert guided.teacher.reference == teacher.summary.name


def test_only_questions_that_both_answered_are_compared(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, (TEACHER, GUIDED), n=30)
    lines = (folder / "examples.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "examples.jsonl").write_bytes(b"".join(lines[:40]))
    guided = row(section(read_run(folder), seed=1), GUIDED)
    assert guided.summary.n == 10
    assert guided.teacher is not None
    assert guided.teacher.n == 10
    assert guided.measured is not None
    assert guided.measured.n == 10


def test_a_run_without_a_teacher_has_no_best_and_no_share(tmp_path: Path) -> None:
    found = section(read_run(run_folder(tmp_path, (STUDENT, GUIDED), n=20)), seed=1)
    guided = row(found, GUIDED)
    assert (guided.teacher, guided.kept, guided.gap, guided.measured) == (None, None, None, None)
    assert guided.student is not None
    assert found.groups[0].best is None


def test_a_family_of_tests_is_all_guided_settings_of_the_run(found: ReportSection, tmp_path: Path) -> None:
    """A single test keeps its p; among four others it grows."""
    assert row(found, GUIDED).student_p == row(found, GUIDED).student.p  # type: ignore[union-attr]
    many = section(read_run(run_folder(tmp_path / "many", SETTINGS)), seed=1)
    tests = [(one.student_p, one.student.p) for one in many.rows if one.summary.mode == "guided" and one.student]
    assert len(tests) == 5
    assert all(adjusted is not None and adjusted >= raw for adjusted, raw in tests)
    assert row(many, TEACHER).student_p is None


def test_labels_of_all_settings_differ(tmp_path: Path) -> None:
    settings = (
        *with_shots(SETTINGS, 0, 8),
        *SETTINGS,
        replace(GUIDED, boundary="sentence"),
        replace(GUIDED, temperature=0.8, top_p=0.9, seed=3),
    )
    found = section(read_run(run_folder(tmp_path, settings, n=2)), seed=1)
    assert len({one.label for one in found.rows}) == len(settings)


def part_of(folder: Path, counts: dict[str, int]) -> ReportSection:
    """Return the report of an unfinished run."""

    def is_kept(line: bytes) -> bool:
        one = msgspec.json.decode(line)
        return int(one["question"][1:]) < counts.get(one["setting"], 1000)

    file = folder / "examples.jsonl"
    file.write_bytes(b"".join(line for line in file.read_bytes().splitlines(keepends=True) if is_kept(line)))
    return section(read_run(folder), seed=1)


def test_a_setting_that_has_hardly_begun_is_not_held_against_the_whole(tmp_path: Path) -> None:
    """Answers that a teacher ends by itself come first, and are easier than the rest."""
    longer = replace(GUIDED, tokens=80)
    folder = run_folder(tmp_path, (TEACHER, STUDENT, GUIDED, longer), n=40)
    group = part_of(folder, {longer.name: 19}).groups[0]
    assert set(group.common) == {TEACHER.name, STUDENT.name, GUIDED.name}
    assert group.questions == 40
    assert group.best is None or group.best.name == GUIDED.name


def test_settings_are_compared_on_their_common_questions(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, (TEACHER, STUDENT, GUIDED), n=40)
    group = part_of(folder, {GUIDED.name: 20}).groups[0]
    assert {summary.n for summary in group.common.values()} == {20}
    teacher = group.alone("teacher")
    assert teacher is not None
    assert teacher.summary.n == 40
    common, guided = group.on_common(teacher), group.guided[0].summary
    assert [one.question for one in common.examples] == [one.question for one in guided.examples]


def test_a_setting_that_the_manifest_names_twice_is_one_row(tmp_path: Path) -> None:
    found = section(read_run(run_folder(tmp_path, (TEACHER, GUIDED, GUIDED), n=4)), seed=1)
    assert [one.summary.name for one in found.rows] == [TEACHER.name, GUIDED.name]
