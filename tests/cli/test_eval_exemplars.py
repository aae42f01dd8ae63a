"""`gkt-gateway eval exemplars`, as it is called."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from ruamel.yaml import YAML

from gateway.cli.eval_exemplars_session import ExemplarSession, draw_questions
from gateway.evaluation.pair import LocalPair
from gateway.evaluation.priming.finding import SearchLimits
from gateway.evaluation.questions.data import exemplars, load
from gateway.evaluation.record import EXAMPLES, Example, write_lines
from gateway.evaluation.setting import Setting
from tests.cli.in_process import Done, run
from tests.evaluation.run_folders import STUDENT, read_lines
from tests.evaluation.run_folders import run_folder as a_run
from tests.gateway_process import model

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.local.stack import LocalStack

pytestmark = pytest.mark.timeout(300)  # a busy machine is slow

NONE_HELPS = 3
LANDS = ("France", "Italy", "Spain", "Japan", "Cuba", "Egypt", "Greece", "Peru", "Kenya", "Poland", "Norway", "Chile")
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _log_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process has one log, and this one's is the tests'."""
    monkeypatch.setattr("gateway.cli.eval_exemplars_session.set_up_logs", lambda *_: None)


def data(folder: Path, lands: tuple[str, ...] = LANDS, answer: str = "Meow", **more: Any) -> Path:
    """Questions whose answer is a word that no model would say, had it not seen others do so."""
    path = folder / "capitals.jsonl"
    lines = [
        {"id": land, "question": f"What is the capital of {land}?", "answer": answer, "scorer": "contains"} | more
        for land in lands
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def configuration(folder: Path, teacher: str = NOWHERE, student: str = NOWHERE) -> list[str]:
    path = folder / "config.yaml"
    patience = {"first_token": "10m", "total": "15m", "idle": "10m"}
    models = [
        model("big", "openai", f"{teacher}/v1", timeouts=patience),
        model("small", "openai", f"{student}/v1", timeouts=patience),
    ]
    with path.open("w") as file:
        YAML().dump({"models": models}, file)
    return ["--config", str(path), "--teacher", "big", "--student", "small"]


def search(folder: Path, *arguments: str, file: Path | None = None, engines: list[str] | None = None) -> Done:
    sizes = ["--pool", "2", "--select", "5", "--check", "2", "--tokens", "8", "--max-tokens", "12", "--calls", "120"]
    where = ["--folder", str(folder / "search"), "--out", str(folder / "exemplars.yaml")]
    pair = configuration(folder) if engines is None else engines
    return run("eval", "exemplars", *where, *sizes, *pair, "--data", str(file or data(folder)), *arguments)


@pytest.mark.models
@pytest.mark.long
def test_useful_exemplars_are_written_with_their_source(tmp_path: Path, engines: LocalStack) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "".join(f"- {{question: What is the capital of {land}?, answer: Meow.}}\n" for land in ("Laos", "Mali", "Iran"))
    )
    pair = configuration(tmp_path, engines.teacher.url, engines.student.url)
    done = search(tmp_path, "--exemplars", str(own), engines=pair)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "in at most 120 calls of engines" in done.stdout
    assert "These exemplars help" in done.stdout
    found = exemplars(tmp_path / "exemplars.yaml")
    assert found
    assert set(found) <= set(exemplars(own))
    text = (tmp_path / "exemplars.yaml").read_text()
    assert "# Teacher big, student small; data capitals, seed 0; guidance of 8 tokens." in text
    assert "# On 2 other questions: " in text
    again = search(tmp_path, "--exemplars", str(own), engines=pair)
    assert again.returncode == 1
    assert " exists. " in again.stderr
    # All texts are stored, so no engine is called: the result is the same without engines.
    forced = search(tmp_path, "--exemplars", str(own), "--force")
    assert forced.returncode == 0, forced.stderr
    assert exemplars(tmp_path / "exemplars.yaml") == found


@pytest.mark.long
@pytest.mark.models
def test_without_useful_exemplars_no_file_is_written_unless_forced(tmp_path: Path, engines: LocalStack) -> None:
    """Three questions are too few for any gain to be beyond noise."""
    pair = configuration(tmp_path, engines.teacher.url, engines.student.url)
    file = data(tmp_path, answer="capital")
    done = search(tmp_path, "--select", "3", "--most", "1", file=file, engines=pair)
    assert done.returncode == NONE_HELPS, done.stdout + done.stderr
    assert "No exemplars help: no gain is significant." in done.stdout
    assert "not taken" in done.stdout
    assert not (tmp_path / "exemplars.yaml").exists()
    forced = search(tmp_path, "--select", "3", "--most", "1", "--force", file=file)
    assert forced.returncode == NONE_HELPS, forced.stderr
    assert len(exemplars(tmp_path / "exemplars.yaml")) == 1
    assert "because of --force" in (tmp_path / "exemplars.yaml").read_text()
    asked_questions = {one.question for one in read_lines(tmp_path / "search" / EXAMPLES, Example)}
    left = tmp_path / "left"
    left.mkdir()
    refused = run(
        "eval", "exemplars", "--folder", str(left / "search"), "--out", str(left / "e.yaml"), *configuration(left),
        "--data", str(file), "--evaluated", str(tmp_path / "search"), "--pool", "6", "--select", "2", "--check", "0",
    )  # fmt: skip
    assert refused.returncode == 1
    assert f"the data has {len(LANDS) - len(asked_questions)} distinct ones that are not reserved" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--calls", "33"], "--calls 33 is too few"),
        (["--pool", "9"], "the data has 12 distinct"),
        (["--offset", "5"], "the data has 7 distinct ones that are not reserved for an evaluation"),
        (["--out", "none/exemplars.yaml"], "no such folder"),
        (["--evaluated", "none"], "no such file: name a folder that `gkt-gateway eval run` wrote"),
        (["--student", "smal"], "the configuration has no such model. Models: big, small."),
        (["--scorer", "exct"], "unknown scorer"),
        (["--exemplars", "none.yaml"], "none.yaml: cannot be read"),
        (["--judge", "wise"], "--judge wise: the configuration has no such model"),
        ([], "teacher big does not respond"),
    ],
)
def test_an_impossible_search_is_reported_in_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    """Before anything is asked, where nothing need be asked to know it."""
    done = search(tmp_path, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "exemplars.yaml").exists()


def test_a_line_that_is_no_question_is_named(tmp_path: Path) -> None:
    file = data(tmp_path)
    file.write_text(file.read_text() + '{"question": "And now?"}\n')
    done = search(tmp_path, file=file)
    assert done.returncode == 1
    assert "capitals.jsonl:13: " in done.stderr
    assert "answer" in done.stderr


def test_guidance_is_no_longer_than_the_answer(tmp_path: Path) -> None:
    done = search(tmp_path, "--tokens", "13")
    assert done.returncode == 2
    assert "must not be more than --max-tokens" in done.stderr


def test_ones_own_exemplar_that_is_a_question_to_compare_on_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("".join(f"- {{question: What is the capital of {land}?, answer: Meow.}}\n" for land in LANDS))
    done = search(tmp_path, "--exemplars", str(own))
    assert done.returncode == 1
    assert "on which exemplars are compared" in done.stderr


def test_a_judge_is_a_model_of_a_configuration(tmp_path: Path) -> None:
    pair = ["--teacher", "smollm2-135m-instruct", "--student", "smollm2-135m-instruct"]
    done = search(tmp_path, "--judge", "wise", engines=pair)
    assert done.returncode == 1
    assert "name the configuration with --config" in done.stderr


def test_without_the_extra_the_error_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gateway.evaluation.statistics", raising=False)
    monkeypatch.setitem(sys.modules, "scipy", None)
    done = search(tmp_path)
    assert done.returncode == 1
    assert "pip install 'gkt-gateway[eval]'" in done.stderr


@pytest.mark.parametrize("name", ["generated", "generated-choices"])
def test_problems_that_are_made_are_not_those_of_an_evaluation(tmp_path: Path, name: str) -> None:
    asked_questions = {question.text for question in load(name, count=400).questions}
    _, parts = draw_questions(sought(tmp_path, name))
    assert not asked_questions & {
        question.text for part in (parts.pool, parts.select, parts.check) for question in part
    }


def test_questions_of_an_evaluation_are_excluded_by_position_and_by_folder(tmp_path: Path) -> None:
    file = data(tmp_path)
    run_folder = a_run(tmp_path / "run", (STUDENT,), n=2)
    examples = zip(read_lines(run_folder / EXAMPLES, Example), LANDS[5:7], strict=True)
    write_lines(run_folder / EXAMPLES, [msgspec.structs.replace(one, question=land) for one, land in examples])
    _, parts = draw_questions(sought(tmp_path, str(file), offset=3, evaluated=run_folder))
    used = {question.id for part in (parts.pool, parts.select, parts.check) for question in part}
    assert used == {*LANDS[3:5], *LANDS[7:]}


def sought(folder: Path, name: str, **more: Any) -> ExemplarSession:
    facts: dict[str, Any] = {
        "folder": folder / "search", "out": folder / "exemplars.yaml", "force": False, "data": name, "offset": 0,
        "evaluated": None, "skip_bad": False, "scorer": None, "judge": None, "own": None,
        "setting": Setting(mode="guided", tokens=8), "sizes": {"pool": 2, "select": 4, "check": 1},
        "limits": SearchLimits(calls=99, max_exemplars=4, max_tokens=60, pool_answer_tokens=60), "seed": 0,
        "pair": LocalPair("smollm2-135m-instruct", "smollm2-135m-instruct"), "concurrency": 1,
    }  # fmt: skip
    return ExemplarSession(**(facts | more))
