from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway.errors import ConfigError, StartupError
from gateway.evaluation.folder import digest
from gateway.evaluation.questions.data import MAX_ISSUES_SHOWN, NAMES, LoadedData, QuestionRange, load
from gateway.evaluation.record import read_run
from gateway.evaluation.scoring import SCORERS
from tests.kit.records import records

if TYPE_CHECKING:
    from collections.abc import Sequence

DATASETS = Path(__file__).resolve().parents[3] / "shared" / "datasets"


def write(folder: Path, *lines: dict[str, Any] | str) -> Path:
    path = folder / "own.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def refused(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load(str(path))
    return [str(issue).removeprefix(f"{path}:") for issue in raised.value.issues]


def ids(data: LoadedData) -> list[str]:
    return [question.id for question in data.questions]


# what a line may say


def test_own_lines_are_read_with_all_their_fields(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"id": "sea", "question": "How deep is it?", "answer": "about 40 m", "scorer": "contains"},
        {"question": "How many?", "answer": 18},
        {"question": "How much?", "answer": 2.5, "tolerance": 0.01},
        {"question": "Which town?", "answer": "Oslo"},
        {"question": "What total?", "answer": "12", "pattern": r"total: (\d+)"},
        {"question": "Why?", "answer": "It rains.", "scorer": "judge", "topic": "weather"},
    )
    data = load(str(path))
    assert data.name == "own"
    assert [(one.id, one.answer, one.scorer, dict(one.options)) for one in data.questions] == [
        ("sea", "about 40 m", "contains", {}),
        ("own-2", "18", "numeric", {}),
        ("own-3", "2.5", "numeric", {"tolerance": "0.01"}),
        ("own-4", "Oslo", "exact", {}),
        ("own-5", "12", "regex", {"pattern": r"total: (\d+)"}),
        ("own-6", "It rains.", "judge", {}),
    ]


def test_gsm8k_s_own_lines_are_recognised(tmp_path: Path) -> None:
    path = write(tmp_path, {"question": "Two and two eggs?", "answer": "2 + 2 = <<2+2=4>>4 eggs.\n#### 1,004"})
    (question,) = load(str(path)).questions
    assert (question.answer, question.scorer) == ("1,004", "numeric")


@pytest.mark.parametrize(
    "line",
    [
        {
            "question": "Where?",
            "choices": {"label": ["A", "B"], "text": ["here", "there"]},
            "answerKey": "B",
            "id": "x",
        },
        {"id": "x", "question": "Where?", "choices": {"a": "here", "b": "there"}, "answer": "b"},
        {"id": "x", "question": "Where?", "choices": ["here", "there"], "answer": "B"},
        {"id": "x", "question": "Where?", "choices": ["here", "there"], "answer": "there"},
    ],
)
def test_choices_are_put_to_the_model_as_in_the_paper(tmp_path: Path, line: dict[str, Any]) -> None:
    (question,) = load(str(write(tmp_path, line))).questions
    assert question.text == "Where? Answer Choices: (a) here (b) there"
    assert (question.answer, question.scorer, question.options) == ("b", "choice", (("a", "here"), ("b", "there")))


def test_a_text_comparison_gets_the_text_of_the_choice(tmp_path: Path) -> None:
    line = {"question": "Where?", "choices": ["here", "there"], "answer": "b", "scorer": "judge"}
    (question,) = load(str(write(tmp_path, line))).questions
    assert question.answer == "there"


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    path = write(
        tmp_path, "\ufeff" + json.dumps({"question": "One?", "answer": 1}), "", {"question": "Two?", "answer": 2}
    )
    assert ids(load(str(path))) == ["own-1", "own-3"]


# what a line may not say


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "1: not valid JSON: expecting property name enclosed in double quotes, at column 2"),
        ('{"question": "a", "answer": NaN}', "1: not valid JSON: NaN is not a JSON number"),
        ('"text"', "1: must be an object with 'question' and 'answer'"),
        ({"answer": "1"}, "1: question: missing: add it"),
        ({"question": "a"}, "1: answer: missing: add it"),
        ({"question": " ", "answer": "1"}, "1: question: must not be empty"),
        ({"question": "a", "answer": True}, "1: answer: must be text"),
        ({"question": "a", "answer": "1", "id": []}, "1: id: must be text or a whole number"),
        ({"question": "a", "answer": "1", "scorrer": "exact"}, "1: scorrer: unknown field. Did you mean 'scorer'?"),
        (
            {"question": "a", "answer": "1", "scorer": "numerc"},
            "1: scorer: unknown scorer 'numerc'; known: exact, numeric, choice, contains, regex, judge, preference. ",
        ),
        (
            {"question": "a", "answer": "1", "scorer": "os:system"},
            "1: scorer: a plug-in may be named only on the command line: --scorer package.module:function",
        ),
        (
            {"question": "a", "answer": "some", "scorer": "numeric"},
            "1: answer: 'some' is not a number, and the scorer numeric needs one",
        ),
        (
            {"question": "a", "answer": "f", "choices": ["x", "y"]},
            "1: answer: 'f' is not one of the choices (a, b)",
        ),
        (
            {"question": "a", "answer": "a", "choices": ["x"]},
            "1: choices: there must be at least two, each with its own letter",
        ),
        ({"question": "a", "answer": "a", "choices": {"a": "x", "A": "y"}}, "1: choices: there must be at least two"),
        ({"question": "a", "answer": "a", "choices": ["x", ""]}, "1: choices: every letter and every choice must be"),
        ({"question": "a", "answer": "a", "choices": "x, y"}, "1: choices: must be {"),
        (
            {"question": "a", "answer": "a", "choices": {"label": ["a"], "text": []}},
            "1: choices: 'label' and 'text' must be lists of the same length",
        ),
        ({"question": "a", "answer": "a", "scorer": "choice"}, "1: choices: missing: the scorer choice needs them"),
        ({"question": "a", "answer": "a", "scorer": "regex"}, "1: pattern: missing: add it"),
        ({"question": "a", "answer": "a", "pattern": "(a"}, "1: pattern: not a valid RE2 pattern: missing )"),
        ({"question": "a", "answer": "1", "tolerance": -1}, "1: tolerance: must be 0 or more"),
        ({"question": "a", "answer": "1", "tolerance": "much"}, "1: tolerance: must be a number"),
    ],
)
def test_a_bad_line_is_refused_with_its_number_its_field_and_the_reason(
    tmp_path: Path, line: dict[str, Any] | str, message: str
) -> None:
    (issue,) = refused(write(tmp_path, line))
    assert issue.startswith(message)


def test_text_of_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes('{"question": "Où?", "answer": "là"}\n'.encode("latin-1"))
    assert refused(path) == ["1: not UTF-8 text: save the file as UTF-8"]


def test_equal_ids_are_refused_with_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path, {"id": 1, "question": "a", "answer": "b"}, {"id": "1", "question": "c", "answer": "d"})
    assert refused(path) == ["2: id: '1' is a duplicate of line 1: ids must differ"]


def test_the_first_invalid_lines_are_listed_and_the_others_counted(tmp_path: Path) -> None:
    issues = refused(write(tmp_path, {"question": "a", "answer": "b"}, *["{"] * 15))
    assert len(issues) == MAX_ISSUES_SHOWN + 1
    assert issues[0].startswith("2: not valid JSON")
    assert issues[-1].endswith("5 more bad lines; --skip-bad skips and counts all 15")


def test_invalid_lines_are_counted_and_skipped_on_request(tmp_path: Path) -> None:
    path = write(tmp_path, {"question": "a", "answer": "b"}, "{", {"question": "c"}, {"question": "d", "answer": "e"})
    data = load(str(path), skip_bad=True)
    assert ids(data) == ["own-1", "own-4"]
    assert [(issue.line, issue.field) for issue in data.skipped] == [(2, ""), (3, "answer")]


@pytest.mark.parametrize(
    ("lines", "message"), [([], "has no question: write"), (["{"], r"no question \(1 bad lines skipped")]
)
def test_a_file_without_a_question_is_refused(tmp_path: Path, lines: Sequence[str], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        load(str(write(tmp_path, *lines)), skip_bad=True)


def test_a_json_list_is_distinguished_from_json_lines(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="is a JSON list: write one object per line"):
        load(str(write(tmp_path, '[{"question": "a", "answer": "b"}]')))


def test_a_name_that_is_neither_file_nor_data_set_names_the_nearest() -> None:
    with pytest.raises(StartupError, match=r"neither a file nor a data set .* Did you mean 'gsm8k'"):
        load("gsm8")


# which of them, and how


def test_offset_and_limit_take_a_part_in_order() -> None:
    every = load("gsm8k")
    assert ids(load("gsm8k", QuestionRange(offset=5, limit=3))) == ids(every)[5:8]
    assert ids(load("gsm8k", QuestionRange(offset=198, limit=9))) == ids(every)[198:]


def test_a_sample_is_drawn_by_seed_and_keeps_the_order() -> None:
    every = ids(load("csqa"))
    drawn = ids(load("csqa", QuestionRange(sample=10)))
    assert len(drawn) == 10
    assert drawn == [one for one in every if one in drawn] != every[:10]
    assert drawn == ids(load("csqa", QuestionRange(sample=10)))
    assert drawn != ids(load("csqa", QuestionRange(sample=10, seed=1)))
    assert set(drawn) < set(ids(load("csqa", QuestionRange(sample=20))))


def test_a_part_that_cannot_be_is_refused() -> None:
    with pytest.raises(StartupError, match="--limit and --sample exclude each other"):
        QuestionRange(limit=1, sample=1)


def test_an_offset_past_the_end_is_rejected() -> None:
    with pytest.raises(StartupError, match="data set 'gsm8k' has 200 questions: --offset 200 skips all of them"):
        load("gsm8k", QuestionRange(offset=200))


def test_a_scorer_may_be_named_for_all() -> None:
    assert {one.scorer for one in load("gsm8k", scorer="contains").questions} == {"contains"}
    own = "gateway.evaluation.scoring:contains"
    assert {one.scorer for one in load("gsm8k", scorer=own).questions} == {own}
    with pytest.raises(StartupError, match=r"--scorer: unknown scorer 'exakt'.* Did you mean 'exact'"):
        load("gsm8k", scorer="exakt")
    with pytest.raises(StartupError, match="has no function 'none'"):
        load("gsm8k", scorer="gateway.evaluation.scoring:none")


def test_questions_differ_only_by_question_and_answer(tmp_path: Path) -> None:
    first = load(str(write(tmp_path, {"question": "a", "answer": "b", "note": "x"}))).questions
    assert load(str(write(tmp_path, {"note": "y", "question": "a", "answer": "b"}))).questions == first
    assert load(str(write(tmp_path, {"question": "a", "answer": "c"}))).questions != first
    assert load(str(write(tmp_path, {"question": "b", "answer": "b"}))).questions != first


def test_our_own_exemplars_go_with_numbers_and_choices_and_with_nothing_else(tmp_path: Path) -> None:
    assert len(load("gsm8k").exemplars) == 8
    assert len(load("csqa").exemplars) == 7
    assert load(str(write(tmp_path, {"question": "a", "answer": "b"}))).exemplars == ()


def test_exemplars_of_a_file_win(tmp_path: Path) -> None:
    path = tmp_path / "shots.yaml"
    path.write_text("- question: One and one?\n  answer: The answer is 2.\n")
    (exemplar,) = load("gsm8k", exemplars_file=path).exemplars
    assert (exemplar.question, exemplar.answer) == ("One and one?", "The answer is 2.")


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_questions_are_those_of_the_recorded_runs(name: str) -> None:
    """The records name the first 200 questions of the same split, by their hash."""
    data = load(name)
    assert (data.name, len(data.questions)) == (name, 200)
    manifest = read_run(records() / name).manifest
    assert (manifest.questions, manifest.data_sha256) == (200, digest(data.questions))


@pytest.mark.parametrize(("name", "answer"), [("gsm8k", "The answer is {}."), ("csqa", "The answer is ({}).")])
def test_every_shipped_answer_is_scored_as_right(name: str, answer: str) -> None:
    for question in load(name).questions:
        assert SCORERS[question.scorer](answer.format(question.answer), question).correct, question.text


@pytest.mark.parametrize(
    ("file", "scorer"),
    [("gsm8k_test_400.jsonl", "numeric"), ("gsm8k_train_1000.jsonl", "numeric"), ("csqa_dev_400.jsonl", "choice")],
)
def test_real_data_sets_are_read_whole(file: str, scorer: str) -> None:
    if not DATASETS.is_dir():
        pytest.skip("no data sets beside this checkout")
    data = load(str(DATASETS / file))
    assert {one.scorer for one in data.questions} == {scorer}
    assert len(data.questions) in {400, 1000}
    assert not data.skipped
