"""Reading of complete and incomplete run folders."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec
import pytest

from gateway.errors import StartupError
from gateway.evaluation.record import read_run
from tests.evaluation.run_folders import GUIDED, TEACHER, run_folder

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.evaluation.record import Example


def refused(folder: Path, message: str) -> None:
    with pytest.raises(StartupError, match=message) as caught:
        read_run(folder)
    assert "\n" not in caught.value.message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return run_folder(tmp_path, (TEACHER, GUIDED), n=4)


def test_a_whole_run_has_no_remarks(folder: Path) -> None:
    run = read_run(folder)
    assert len(run.examples) == 8
    assert run.remarks == ()


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "away", re.escape(f"{tmp_path / 'away' / 'run.json'}: no such file"))


def test_missing_examples_are_named(folder: Path) -> None:
    (folder / "examples.jsonl").unlink()
    refused(folder, r"examples\.jsonl: no such file")


def test_empty_examples_are_named(folder: Path) -> None:
    (folder / "examples.jsonl").write_bytes(b"")
    refused(folder, r"examples\.jsonl: no examples")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            b'"question"',
            b'"quest"',
            "line 1: not written by .*: Object missing required field `question`",
        ),
        (b'"score":1.0', b'"score":7', r"line \d+: score must be between 0 and 1, not 7.0"),
        (b'"setting":"teacher', b'"setting":"tutor', "line 1: setting 'tutor, chat, 300 tokens' is not in run.json"),
        (
            b'"cost_usd":"0',
            b'"cost_usd":"much',
            "line 1: not written by .*: Invalid decimal string",
        ),
    ],
)
def test_a_wrong_example_is_named_with_its_line(folder: Path, old: bytes, new: bytes, message: str) -> None:
    file = folder / "examples.jsonl"
    file.write_bytes(file.read_bytes().replace(old, new, 1))
    refused(folder, message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            b'"data":',
            b'"dat":',
            "run.json: not written by .*: Object missing required field `data`",
        ),
        (b'"max_tokens":300,', b"", r"run.json: not written by .*: .*`max_tokens`"),
        (
            b'"mode":"guided"',
            b'"mode":"other"',
            "run.json: not written by .*: Invalid enum value 'other'",
        ),
        (b"{", b"", "run.json: not written by .*"),
    ],
)
def test_a_wrong_manifest_is_named(folder: Path, old: bytes, new: bytes, message: str) -> None:
    file = folder / "run.json"
    file.write_bytes(file.read_bytes().replace(old, new, 1))
    refused(folder, message)


def test_money_that_is_no_number_is_named(tmp_path: Path) -> None:
    def priceless(example: Example) -> Example:
        return msgspec.structs.replace(example, baseline_usd=Decimal("NaN"))

    refused(run_folder(tmp_path, (TEACHER,), n=1, change=priceless), "line 1: money must be a finite number")


def test_a_wrong_stage_is_named_with_its_line(folder: Path) -> None:
    with (folder / "stages.jsonl").open("ab") as file:
        file.write(b'{"stage":"nap"}\n')
    refused(folder, r"stages\.jsonl, line 4: not written by .*: Invalid enum value 'nap'")


def test_an_unfinished_run_is_read(folder: Path) -> None:
    file = folder / "examples.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:6]))
    (folder / "stages.jsonl").unlink()
    run = read_run(folder)
    assert len(run.examples) == 6
    assert run.remarks == (
        f"{GUIDED.name}: only 2 of 4 questions have answers.",
        "stages.jsonl is missing, so the durations of the stages are unknown.",
    )


def test_a_line_that_a_kill_cut_short_is_left_out(folder: Path) -> None:
    file = folder / "examples.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    run = read_run(folder)
    assert len(run.examples) == 7
    assert run.remarks[0] == "examples.jsonl, line 8: skipped, because a kill truncated it."


def test_the_last_line_of_a_repeated_question_counts(folder: Path) -> None:
    file = folder / "examples.jsonl"
    first = file.read_bytes().splitlines(keepends=True)[0]
    with file.open("ab") as lines:
        lines.write(re.sub(rb'"score":\d\.0', b'"score":0.25', first))
    assert read_run(folder).examples[0].score == 0.25
