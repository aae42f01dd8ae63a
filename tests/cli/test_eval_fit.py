"""`gkt-gateway eval fit`: what it says, what it writes, and how it leaves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from gateway.cli.eval_fit import NO_BETTER, fit
from gateway.cli.lazy import SETTINGS
from gateway.errors import StartupError
from gateway.evaluation.record import EXAMPLES, MANIFEST, write_lines
from gateway.policy.length_model import lengths_of
from tests.cli.in_process import Done
from tests.evaluation.families import examples, manifest, questions

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("gateway.evaluation.questions.data")

COUNT = 80


def run(*arguments: object) -> Done:
    app = typer.Typer(**SETTINGS)
    app.command("fit")(fit)
    done = CliRunner().invoke(app, [str(one) for one in arguments], env={"NO_COLOR": "1", "COLUMNS": "200"})
    if isinstance(done.exception, StartupError):
        return Done(1, done.stdout, done.stderr + done.exception.message)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The questions, as a file."""
    file = tmp_path / "made-up.jsonl"
    lines = [{"id": one.id, "question": one.text, "answer": one.answer} for one in questions(COUNT)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def folder(path: Path, *, by_kind: bool) -> Path:
    path.mkdir()
    (path / MANIFEST).write_bytes(msgspec.json.encode(manifest(COUNT)))
    write_lines(path / EXAMPLES, examples(questions(COUNT), by_kind=by_kind))
    return path


def test_a_model_better_than_the_fixed_length_is_written(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "policies/lengths/chat.json"
    done = run(folder(tmp_path / "run", by_kind=True), "--data", data, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "It is better than the fixed length." in done.stdout
    model = lengths_of(out.read_bytes())
    assert model.name.startswith("chat.")
    assert model.figures is not None
    assert model.figures.beats
    assert model.provenance.setting.startswith("form chat")
    for name in ("student alone", "20", "40", "80"):
        assert f"\n {name} " in done.stdout or f"\n{name} " in done.stdout


@pytest.mark.long
def test_a_model_worse_than_the_fixed_length_exits_with_3(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "chat.json"
    done = run(folder(tmp_path / "run", by_kind=False), "--data", data, "--out", out)
    assert done.returncode == NO_BETTER == 3
    assert "It is not significantly better than the fixed length: use tokens: 80." in done.stdout
    figures = lengths_of(out.read_bytes()).figures
    assert figures is not None
    assert not figures.beats


def test_an_impossible_fit_is_reported_with_a_remedy(tmp_path: Path, data: Path) -> None:
    run_folder = folder(tmp_path / "run", by_kind=True)
    assert "eval run" in run(tmp_path / "none", "--data", data).stderr
    assert "lengths/chat.json" in run(run_folder, "--data", data, "--out", tmp_path / "a b.yaml").stderr
    assert "--setting" in run(run_folder, "--data", data, "--setting", "primed", "--out", tmp_path / "a.json").stderr
    data.write_text('{"id": "other", "question": "Why?", "answer": "1"}\n')
    assert "name the data" in run(run_folder, "--data", data, "--out", tmp_path / "a.json").stderr
