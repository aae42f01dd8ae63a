"""`import litellm` writes a configuration that `check` accepts, lists the rest by line, and copies no secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from gateway.cli.commands import app
from gateway.config.settings import OVERRIDES
from gateway.errors import StartupError
from tests.cli.in_process import Done
from tests.migration.litellm_sample import LITERAL_KEY, LITERAL_PASSWORD, SAMPLE, VARIABLES

if TYPE_CHECKING:
    from pathlib import Path

ENVIRONMENT = dict.fromkeys(VARIABLES, "a-secret-of-the-environment")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """LiteLLM's file in the current folder, in an environment that sets nothing."""
    monkeypatch.chdir(tmp_path)
    for variable in (*OVERRIDES, *VARIABLES):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "litellm.yaml").write_text(SAMPLE)
    return tmp_path


def run(*arguments: str, **environment: str) -> Done:
    """Run a command in this process. Only its own modules are imported."""
    done = CliRunner().invoke(app, arguments, env={"NO_COLOR": "1", "COLUMNS": "200", **environment})
    if isinstance(done.exception, StartupError):
        return Done(1, done.stdout, done.stderr + done.exception.message)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


def convert(*options: str) -> Done:
    return run("import", "litellm", "litellm.yaml", *options)


def test_check_accepts_the_result_of_one_command(folder: Path) -> None:
    done = convert()
    assert done.returncode == 0, done.stderr
    assert "written: config.yaml (5 models)" in done.stdout
    assert "written: policies/default.yaml (4 routes)" in done.stdout
    assert f"set these environment variables: {', '.join(VARIABLES)}" in done.stdout
    checked = run("check", **ENVIRONMENT)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.startswith("ok: 5 models, 1 tenant, 4 routes, 0 keys")


def test_without_its_variables_check_names_them(folder: Path) -> None:
    convert()
    checked = run("check")
    assert checked.returncode == 1
    assert [name for name in VARIABLES if f"the environment variable {name} is not set" not in checked.stderr] == []


@pytest.mark.parametrize("option", [(), ("--teacher", "claude", "--student", "llama")])
def test_no_secret_is_copied_or_printed(folder: Path, option: tuple[str, ...]) -> None:
    done = convert(*option)
    shown = done.stdout + done.stderr
    files = "".join((folder / name).read_text() for name in ("config.yaml", "policies/default.yaml"))
    assert "GPT_4O_2_API_KEY" in shown
    assert [secret for secret in (LITERAL_KEY, LITERAL_PASSWORD) if secret in shown + files] == []


def test_after_the_files_settings_that_were_not_converted_are_listed_with_their_lines() -> None:
    done = convert()
    summary, _, listed = done.stdout.partition("not converted, see `gkt-gateway docs litellm`: 22 settings\n")
    assert done.stderr == ""
    assert "gkt-gateway serve --config config.yaml" in summary
    places = [line.split(": ")[0] for line in listed.splitlines()]
    lines = SAMPLE.splitlines()
    assert len(places) == 22
    for field, word, equivalent in (
        ("model_list[0].litellm_params.rpm", "rpm: 600", ": use weight of the students of the route"),
        ("model_list[1].litellm_params.organization", "org-1", ""),
        ("litellm_settings.callbacks", "callbacks", ""),
        ("general_settings.database_url", "database_url", ": use usage.url"),
    ):
        number = next(index for index, line in enumerate(lines, 1) if word in line)
        assert f"litellm.yaml:{number}: {field}: not converted{equivalent}\n" in listed


def test_existing_files_are_not_overwritten_without_force(folder: Path) -> None:
    policy = folder / "policies" / "default.yaml"
    policy.parent.mkdir()
    policy.write_text("tenant: mine\n")
    refused = convert()
    assert (refused.returncode, "policies/default.yaml exists: overwrite with --force" in refused.stderr) == (
        1,
        True,
    )
    assert (policy.read_text(), (folder / "config.yaml").exists()) == ("tenant: mine\n", False)
    assert "kept, a replaced file: policies/default.yaml.bak\n" in convert("--force").stdout
    assert "tenant: default" in policy.read_text()
    assert (folder / "policies" / "default.yaml.bak").read_text() == "tenant: mine\n"


def test_litellms_own_file_is_never_overwritten(folder: Path) -> None:
    (folder / "litellm.yaml").rename(folder / "config.yaml")
    refused = run("import", "litellm", "config.yaml", "--force")
    assert (refused.returncode, "choose another folder with --out" in refused.stderr) == (1, True)
    assert (folder / "config.yaml").read_text() == SAMPLE
    assert run("import", "litellm", "config.yaml", "--out", "gateway").returncode == 0
    assert run("check", "--config", "gateway/config.yaml", **ENVIRONMENT).returncode == 0


def test_a_file_in_place_of_a_folder_is_reported(folder: Path) -> None:
    refused = convert("--out", "litellm.yaml/new")
    assert (refused.returncode, "--out: litellm.yaml is not a folder" in refused.stderr) == (1, True)
    (folder / "policies").write_text("mine")
    refused = convert()
    message = "policies/default.yaml cannot be written: not a directory"
    assert (refused.returncode, message in refused.stderr) == (1, True)
    assert sorted(file.name for file in folder.iterdir()) == ["litellm.yaml", "policies"]


def test_the_printed_commands_quote_the_folder() -> None:
    assert "gkt-gateway check --config 'new folder/config.yaml'" in convert("--out", "new folder").stdout


@pytest.mark.parametrize(
    ("teacher", "student", "guided"),
    [
        ("claude", "llama", {"model": "claude", "teacher": "claude", "students": ["llama", "claude"]}),
        (
            "claude",
            "gpt-4",
            {
                "model": "claude",
                "teacher": "claude",
                "students": [{"model": "gpt-4o", "weight": 1}, {"model": "gpt-4o-2", "weight": 1}],
            },
        ),
        (
            "gpt-4",
            "fast",
            {"model": "gpt-4o", "teacher": "gpt-4o", "students": ["llama", "gpt-4o", "gpt-4o-2"], "aliases": ["gpt-4"]},
        ),
    ],
)
def test_with_a_teacher_and_a_student_one_route_is_guided(
    folder: Path, teacher: str, student: str, guided: dict[str, Any]
) -> None:
    done = convert("--teacher", teacher, "--student", student)
    assert done.returncode == 0, done.stderr
    routes = YAML(typ="safe").load(folder / "policies" / "default.yaml")["routes"]
    assert [one for one in routes if one["mode"] == "guided"] == [
        {**guided, "mode": "guided", "guidance": {"deadline": "auto"}}
    ]
    checked = run("check", **ENVIRONMENT)
    assert checked.returncode == 0, checked.stderr
    assert "is its own teacher" not in checked.stderr
    assert "continuation none" not in checked.stderr


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--student", "llama"), 2, "--teacher and --student need each other"),
        (("--teacher", "llama"), 2, "--teacher and --student need each other"),
        (("--teacher", "llama", "--student", "llama"), 2, "must differ from --teacher"),
        (("--teacher", "clade", "--student", "llama"), 1, "no imported model is called 'clade'"),
        (("--teacher", "clade", "--student", "llama"), 1, "Did you mean 'claude'?"),
        (("--teacher", "embeddings", "--student", "llama"), 1, "'embeddings' makes embeddings"),
    ],
)
def test_a_wrong_teacher_or_student_is_an_error(
    folder: Path, options: tuple[str, ...], status: int, message: str
) -> None:
    done = convert(*options)
    assert (done.returncode, message in done.stderr) == (status, True), done.stderr
    assert not (folder / "config.yaml").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_list: [\n", "litellm.yaml:2: not valid YAML"),
        ("general_settings: {}\n", "litellm.yaml:1: model_list: missing"),
        (
            "model_list:\n  - model_name: a\n",
            "litellm.yaml:2: model_list[0]: not converted: needs model_name and litellm_params.model",
        ),
        ("model_list: {a: b}\n", "litellm.yaml:1: model_list: must be a list"),
        ("model_list:\n  - model_name: 'openai/*'\n    litellm_params: {model: 'openai/*'}\n", "a wildcard"),
    ],
)
def test_a_file_that_is_not_valid_is_an_error_with_its_line(folder: Path, text: str, message: str) -> None:
    (folder / "litellm.yaml").write_text(text)
    done = convert()
    assert (done.returncode, message in done.stderr) == (1, True), done.stderr
    assert not (folder / "config.yaml").exists()
