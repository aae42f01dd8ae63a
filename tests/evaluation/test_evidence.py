"""The evidence of a folder, and the errors for insufficient evidence."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from gateway.errors import StartupError
from gateway.evaluation.advice.evidence import Evidence, combine, evidence_of
from gateway.evaluation.advice.target import AnswerPanel
from gateway.evaluation.record import EXAMPLES, Example, read_run, write_lines
from gateway.policy.projections import PRIMED
from gateway.pricing import Price
from tests.evaluation.known_truth import ALONE, M20, M40, STUDENT, TEACHER, Truth, folder_of
from tests.evaluation.run_folders import read_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

GUIDED = Truth(M40, 0.7, 40, 120)
OTHER = Truth(M20, 0.5, 20, 160)


def evidence(path: Path, truths: Sequence[Truth] = (*ALONE, GUIDED), n: int = 40) -> Evidence:
    return evidence_of(read_run(folder_of(path, truths, n)))


def keep_only(path: Path, keep: Callable[[Example], bool]) -> None:
    """Keep only some of the folder's examples."""
    write_lines(path / EXAMPLES, [one for one in list(read_lines(path / EXAMPLES, Example)) if keep(one)])


def test_settings_are_held_against_each_other_question_by_question(tmp_path: Path) -> None:
    found = evidence(tmp_path)
    panel = AnswerPanel.of(found)
    assert panel.correct.shape == panel.cost.shape == (40, 3)
    assert found.candidates[found.teacher].setting["mode"] == "teacher"
    assert found.candidates[found.student].setting["mode"] == "student"
    assert found.notes == ()
    for column, one in enumerate(found.candidates):
        assert [example.question for example in one.examples] == list(found.questions)
        assert one.accuracy == pytest.approx(panel.correct[:, column].mean())
        assert float(one.cost_per_answer) == pytest.approx(panel.cost[:, column].mean())


def test_only_the_questions_that_all_settings_answered_count(tmp_path: Path) -> None:
    folder_of(tmp_path, (*ALONE, GUIDED), 40)
    # Lines in another order, since a run answers questions concurrently.
    lines = list(read_lines(tmp_path / EXAMPLES, Example))
    write_lines(tmp_path / EXAMPLES, reversed(lines))
    keep_only(tmp_path, lambda one: one.setting != M40.name or one.question >= "q0010")
    found = evidence_of(read_run(tmp_path))
    assert sorted(found.questions) == [f"q{number:04d}" for number in range(10, 40)]
    assert found.notes == ("the settings answered different questions: only the 30 common ones count",)


def test_a_setting_with_few_of_the_questions_does_not_take_the_others_evidence_away(tmp_path: Path) -> None:
    folder_of(tmp_path, (*ALONE, GUIDED, OTHER), 40)
    keep_only(tmp_path, lambda one: one.setting != M20.name or one.question < "q0010")
    found = evidence_of(read_run(tmp_path))
    assert len(found.questions) == 40
    assert [one.name for one in found.candidates] == [TEACHER.name, STUDENT.name, M40.name]
    assert found.notes == (f"left out, with 10 of 40 questions: {M20.name}",)


def test_a_setting_that_was_not_run_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path, (*ALONE, GUIDED, OTHER), 40)
    keep_only(tmp_path, lambda one: one.setting != M20.name)
    assert evidence_of(read_run(tmp_path)).notes == (f"left out without answers: {M20.name}",)


@pytest.mark.parametrize(("truncated", "weak"), [(2, False), (3, True)])
def test_a_teacher_with_truncated_answers_is_a_weak_baseline(tmp_path: Path, truncated: int, weak: bool) -> None:
    folder_of(tmp_path, (*ALONE, GUIDED), 100)
    examples = [
        structs.replace(one, finish="length")
        if one.setting == TEACHER.name and one.question < f"q{truncated:04d}"
        else one
        for one in read_lines(tmp_path / EXAMPLES, Example)
    ]
    write_lines(tmp_path / EXAMPLES, examples)
    notes = evidence_of(read_run(tmp_path)).notes
    assert [note.partition(" answers")[0] for note in notes] == ["weak baseline: 3 of 100"] * weak


@pytest.mark.parametrize(("shots", "missing"), [(0, True), (1, False)])
def test_a_run_needs_a_teacher_with_the_exemplars_of_its_guidance(tmp_path: Path, shots: int, missing: bool) -> None:
    primed = Truth(replace(M40, projection=PRIMED), 0.7, 40, 120)
    teacher = Truth(replace(TEACHER, shots=shots, max_tokens=TEACHER.max_tokens + 1), 0.8, 200, 0)
    notes = evidence_of(read_run(folder_of(tmp_path, (*ALONE, primed, teacher), 40)), "chat").notes
    assert [note.partition(":")[0] for note in notes] == ["missing baseline"] * missing


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_run_without_one_of_the_baselines_is_unfinished(tmp_path: Path, role: str) -> None:
    folder_of(tmp_path, (*ALONE, GUIDED), 40)
    keep_only(tmp_path, lambda one: one.setting != {"teacher": TEACHER, "student": STUDENT}[role].name)
    with pytest.raises(StartupError, match=rf"the run is not finished: the {role} alone has no answers yet"):
        evidence_of(read_run(tmp_path))


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_without_a_baseline_the_error_names_the_missing_run(tmp_path: Path, role: str) -> None:
    truths = [one for one in (*ALONE, GUIDED) if one.setting.mode != role]
    with pytest.raises(
        StartupError, match=rf"the {role} alone has no answers .* `gkt-gateway eval run` .* mode {role}"
    ):
        evidence(tmp_path, truths)


def test_one_of_several_prompt_formats_must_be_selected(tmp_path: Path) -> None:
    shown = [replace(one, setting=replace(one.setting, form="completion", shots=8)) for one in (*ALONE, GUIDED)]
    run = read_run(folder_of(tmp_path, (*ALONE, GUIDED, *shown), 40))
    with pytest.raises(StartupError, match=r"has 2 request forms.* --asked 'chat' \| 'completion, 8 shots'"):
        evidence_of(run)
    with pytest.raises(StartupError, match="no settings with the request form 'chats': --asked 'chat'"):
        evidence_of(run, "chats")
    found = evidence_of(run, "completion, 8 shots")
    selectable = [one for index, one in enumerate(found.candidates) if found.is_selectable(index)]
    assert {one.setting["shots"] for one in selectable} == {8}
    assert len(selectable) == 3


def test_the_teacher_with_other_requests_is_a_baseline(tmp_path: Path) -> None:
    """It may have answered other numbers of questions than the settings of the requests."""
    shown = Truth(replace(TEACHER, form="completion", shots=8), 0.9, 100, 0)
    sampled = Truth(replace(TEACHER, form="completion", temperature=1.0), 0.9, 100, 0)
    truths = (*ALONE, GUIDED, shown, sampled)
    found = evidence_of(read_run(folder_of(tmp_path, truths, 100)), "chat")
    assert [found.candidates[index].name for index in found.teachers] == [TEACHER.name, shown.setting.name]
    assert [found.is_selectable(index) for index in found.teachers] == [True, False]
    assert found.teacher == found.teachers[0]
    keep_only(tmp_path, lambda one: one.setting == shown.setting.name or one.question < "q0040")
    assert len(evidence_of(read_run(tmp_path), "chat").questions) == 40
    both = combine([found, found._replace(sources=("other",))])
    assert (both.teachers, both.teacher) == (found.teachers, found.teacher)


def test_the_two_alone_are_those_with_the_largest_limit_that_both_have(tmp_path: Path) -> None:
    def limited(truth: Truth, tokens: int) -> Truth:
        return replace(truth, setting=replace(truth.setting, max_tokens=tokens))

    teacher, student = ALONE
    found = evidence(tmp_path, [limited(teacher, 100), teacher, limited(student, 100), limited(teacher, 500), student])
    assert [found.candidates[place].setting["max_tokens"] for place in (found.teacher, found.student)] == [300, 300]


def test_prices_of_ones_own_are_exact_and_the_other_role_keeps_the_runs(tmp_path: Path) -> None:
    run = read_run(folder_of(tmp_path, (*ALONE, GUIDED), 40))
    found = evidence_of(run, prices={"teacher": Price.of_tokens(Decimal("0.90"), Decimal("0.90"))})
    # 40 teacher tokens at 0.90 USD per 1M, and 120 student tokens at 0.10 USD.
    assert found.candidates[2].cost_per_answer == Decimal("0.000048")
    assert found.candidates[found.student].cost_per_answer == Decimal("0.00002")
    bare = read_run(folder_of(tmp_path, (*ALONE, GUIDED), 40, prices={}))
    with pytest.raises(StartupError, match="no price of the student: add --price student=IN,OUT"):
        evidence_of(bare, prices={"teacher": Price.of_tokens(Decimal(1), Decimal(1))})


def test_extra_prompt_tokens_of_the_teacher_have_their_own_price(tmp_path: Path) -> None:
    """Exemplars add 300 tokens to the question's 50, which the teacher alone does not read."""
    folder_of(tmp_path, (*ALONE, GUIDED), 40)
    reads = {"teacher": 50, "student": 0, "guided": 350}
    lines = [
        structs.replace(one, teacher_input_tokens=reads[one.mode]) for one in read_lines(tmp_path / EXAMPLES, Example)
    ]
    write_lines(tmp_path / EXAMPLES, lines)
    price = Price.of_tokens(Decimal("0.90"), Decimal("0.90"), Decimal("0.09"))
    found = evidence_of(read_run(tmp_path), prices={"teacher": price})
    assert found.candidates[2].cost_per_answer == Decimal("0.000048") + Decimal("0.000045") + Decimal("0.000027")
    assert found.candidates[found.teacher].cost_per_answer == 250 * Decimal("0.0000009")


def test_failed_answers_are_counted_and_reported(tmp_path: Path) -> None:
    folder_of(tmp_path, (*ALONE, GUIDED), 40)
    lines = list(read_lines(tmp_path / EXAMPLES, Example))
    failed = Example(
        setting=lines[0].setting,
        question=lines[0].question,
        mode="teacher",
        score=0,
        text="",
        cost_usd=Decimal(0),
        teacher_usd=Decimal(0),
        baseline_usd=Decimal(0),
        error="engine_failed",
    )
    write_lines(tmp_path / EXAMPLES, [failed, *lines[1:]])
    found = evidence_of(read_run(tmp_path))
    assert found.notes[0].startswith("1 answers failed and count as wrong")


def test_folders_together_have_the_settings_that_all_share(tmp_path: Path) -> None:
    one = evidence(tmp_path / "one", (*ALONE, GUIDED, OTHER), 40)
    found = combine([one, evidence(tmp_path / "two", (*ALONE, GUIDED), 60)])
    assert AnswerPanel.of(found).correct.shape == (100, 3)
    assert len(found.manifests) == len(found.sources) == 2
    assert found.notes == (f"left out, because some folders lack them: {M20.name}",)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("run.json", None, "run.json: no such file: name a folder that `gkt-gateway eval run` wrote"),
        ("examples.jsonl", None, "examples.jsonl: no such file"),
        ("run.json", "{}", "run.json: not written by .*: Object missing required field"),
        (
            "examples.jsonl",
            '{"setting": "x"}\n',
            "line 1: not written by .*: Object missing required field",
        ),
        ("examples.jsonl", "", "no examples"),
    ],
)
def test_a_missing_folder_is_an_error_with_a_remedy(tmp_path: Path, name: str, text: str | None, says: str) -> None:
    folder_of(tmp_path, (*ALONE, GUIDED), 5)
    (tmp_path / name).unlink() if text is None else (tmp_path / name).write_text(text)
    with pytest.raises(StartupError, match=says) as error:
        evidence_of(read_run(tmp_path))
    assert "eval run" in error.value.message
