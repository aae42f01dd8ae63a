"""`gkt-gateway eval report`: which folders it takes, and where it writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import typer
from typer.testing import CliRunner

from gateway.cli.eval_report import report
from gateway.errors import StartupError
from tests.evaluation.run_folders import GUIDED, TEACHER, run_folder

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


def run(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(report)
    return CliRunner().invoke(app, [str(one) for one in arguments])


def folder(path: Path) -> Path:
    return run_folder(path, (TEACHER, GUIDED), n=3)


def test_a_report_lies_in_its_runs_folder(tmp_path: Path) -> None:
    done = run(folder(tmp_path))
    assert done.exit_code == 0
    written = [tmp_path / "report" / f"report.{kind}" for kind in ("md", "json")]
    assert done.stdout.replace("\n", "") == "".join(map(str, written))
    assert all(file.stat().st_size for file in written)


def test_out_selects_the_folder(tmp_path: Path) -> None:
    assert run(folder(tmp_path / "run"), "--out", tmp_path / "there").exit_code == 0
    assert (tmp_path / "there" / "report.md").exists()
    assert not (tmp_path / "run" / "report").exists()


def test_several_folders_need_a_place(tmp_path: Path) -> None:
    folders = [folder(tmp_path / name) for name in ("one", "two")]
    refused = run(*folders)
    assert isinstance(refused.exception, StartupError)
    assert "--out" in refused.exception.message
    assert run(*folders, "-o", tmp_path / "both").exit_code == 0
    assert "All runs" in (tmp_path / "both" / "report.md").read_text("utf-8")


def test_missing_parts_are_named_and_the_others_reported(tmp_path: Path) -> None:
    (folder(tmp_path) / "stages.jsonl").unlink()
    done = run(tmp_path)
    assert done.exit_code == 0
    assert "stages.jsonl is missing" in done.stderr


@pytest.mark.parametrize("wrong", ["no-such-folder", "a-file"])
def test_a_folder_that_is_none_is_refused(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    refused = run(tmp_path / wrong)
    assert isinstance(refused.exception, StartupError)
    assert "gkt-gateway eval run" in refused.exception.message


def test_an_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    refused = run(folder(tmp_path / "run"), "--out", tmp_path / "taken")
    assert isinstance(refused.exception, StartupError)
    assert "cannot be written" in refused.exception.message
