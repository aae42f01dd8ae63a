"""`import litellm` writes a configuration that `check` accepts, lists the rest by line, and copies no secret."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
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
    assert "written: policies/default.yaml (6 routes)" in done.stdout
    assert f"set these environment variables: {', '.join(VARIABLES)}" in done.stdout
    checked = run("check", **ENVIRONMENT)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.startswith("ok: 5 models, 1 tenant, 6 routes, 0 keys")


def test_the_printed_command_for_a_key_completes_the_policy(folder: Path) -> None:
    printed = convert().stdout
    assert (
        "(echo keys:; gkt-gateway keys create --tenant default --id app --print-yaml) >> policies/default.yaml"
        in printed
    )
    lines = run("keys", "create", "--tenant", "default", "--id", "app", "--print-yaml").stdout
    policy = folder / "policies" / "default.yaml"
    policy.write_text(f"{policy.read_text()}keys:\n{lines}")
    checked = run("check", **ENVIRONMENT)
    assert (checked.returncode, "1 key" in checked.stdout) == (0, True), checked.stderr


def test_a_second_run_of_the_printed_command_leaves_the_policy_valid(folder: Path) -> None:
    (line,) = (line for line in convert().stdout.splitlines() if "keys create" in line)
    lines = run("keys", "create", "--tenant", "default", "--id", "app", "--print-yaml").stdout
    (folder / "lines.yaml").write_text(lines)
    (folder / "gkt-gateway").write_text("#!/bin/sh\ncat lines.yaml\n")
    (folder / "gkt-gateway").chmod(0o755)
    for _ in range(2):
        subprocess.run(["sh", "-c", line], env={"PATH": f"{folder}:{os.environ['PATH']}"}, check=True)
    assert (folder / "policies" / "default.yaml").read_text().count("keys:\n") == 1
    checked = run("check", **ENVIRONMENT)
    assert (checked.returncode, "1 key" in checked.stdout) == (0, True), checked.stderr


def test_without_its_variables_check_names_them(folder: Path) -> None:
    convert()
    checked = run("check")
    assert checked.returncode == 1
    assert [name for name in VARIABLES if f"the environment variable {name} is not set" not in checked.stderr] == []


@pytest.mark.parametrize("option", [(), ("--dry-run",), ("--teacher", "claude")])
def test_no_secret_is_copied_or_printed(folder: Path, option: tuple[str, ...]) -> None:
    done = convert(*option)
    shown = done.stdout + done.stderr
    files = "".join(file.read_text() for file in (folder / "config.yaml", folder / "policies" / "default.yaml")
                    if file.exists())  # fmt: skip
    assert "GPT_4O_API_KEY" in shown
    assert [secret for secret in (LITERAL_KEY, LITERAL_PASSWORD) if secret in shown + files] == []


def test_settings_without_an_equivalent_are_listed_with_their_lines() -> None:
    listed = [line.partition(": ")[0::2] for line in convert().stderr.splitlines()]
    lines = SAMPLE.splitlines()
    by_field = {text.partition(": ")[0]: (place, text.partition(": ")[2]) for place, text in listed}
    for field, word, reason in (
        ("model_list[0].litellm_params.rpm", "rpm: 600", "an engine has no rate limit"),
        ("model_list[1].litellm_params.organization", "org-1", "not sent"),
        ("litellm_settings.drop_params", "drop_params", "gkt-gateway docs engines#litellm-providers"),
        ("litellm_settings.callbacks[0]", "callbacks", "GET /metrics"),
        ("litellm_settings.callbacks[1]", "callbacks", "no logging callbacks"),
        ("litellm_settings.context_window_fallbacks", "context_window_fallbacks", "gkt-gateway docs engines#"),
        ("litellm_settings.cache", "cache: true", "guidance.cache_ttl"),
        ("general_settings.database_url", "database_url", "gkt-gateway keys create"),
    ):
        place, message = by_field[field]
        number = next(index for index, line in enumerate(lines, 1) if word in line)
        assert place == f"litellm.yaml:{number}"
        assert reason in message


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


def test_an_included_file_is_never_overwritten(folder: Path) -> None:
    (folder / "litellm.yaml").rename(folder / "config.yaml")
    (folder / "litellm.yaml").write_text("include: [config.yaml]\n")
    refused = convert("--force")
    assert (refused.returncode, "config.yaml is LiteLLM's file: choose another folder" in refused.stderr) == (1, True)
    assert (folder / "config.yaml").read_text() == SAMPLE
    assert convert("--out", "gateway").returncode == 0


def test_a_file_in_place_of_a_folder_is_reported(folder: Path) -> None:
    refused = convert("--out", "litellm.yaml/new")
    assert (refused.returncode, "--out: litellm.yaml is not a folder" in refused.stderr) == (1, True)
    (folder / "policies").write_text("mine")
    refused = convert()
    message = "policies/default.yaml cannot be written: not a directory"
    assert (refused.returncode, message in refused.stderr) == (1, True)
    assert sorted(file.name for file in folder.iterdir()) == ["litellm.yaml", "policies"]


def test_a_dry_run_prints_both_files_and_writes_none(folder: Path) -> None:
    done = convert("--dry-run")
    assert done.returncode == 0
    config, _, policy = done.stdout.removeprefix("# config.yaml\n").partition("# policies/default.yaml\n")
    assert sorted(file.name for file in folder.iterdir()) == ["litellm.yaml"]
    convert()
    assert config.strip() == (folder / "config.yaml").read_text().strip()
    assert policy.strip() == (folder / "policies" / "default.yaml").read_text().strip()


def test_entries_that_are_not_imported_are_in_the_summary(folder: Path) -> None:
    wildcard = "  - {model_name: 'any/*', litellm_params: {model: 'anthropic/*'}}\n"
    (folder / "litellm.yaml").write_text(SAMPLE.replace("router_settings", f"{wildcard}router_settings", 1))
    assert "entries not imported, see the notices: any/*\n" in convert().stdout


def test_the_printed_commands_quote_the_folder() -> None:
    assert "gkt-gateway check --config 'new folder/config.yaml'" in convert("--out", "new folder").stdout


def test_other_policies_in_the_folder_are_named(folder: Path) -> None:
    (folder / "policies").mkdir()
    (folder / "policies" / "acme.yaml").write_text("tenant: acme\n")
    assert "read by the gateway, too: policies/acme.yaml" in convert().stdout


@pytest.mark.parametrize(
    ("options", "guided", "students"),
    [
        (("--teacher", "claude"), {"gpt-4o", "llama", "gpt-4", "fast"}, "[llama, azure-eu, gpt-4o-1]"),
        (("--teacher", "claude", "--student", "llama"), {"claude"}, "[llama, claude]"),
        (("--teacher", "gpt-4", "--student", "fast"), {"gpt-4o", "gpt-4"}, "[llama, azure-eu, gpt-4o-1]"),
    ],
)
def test_with_a_teacher_routes_are_guided(
    folder: Path, options: tuple[str, ...], guided: set[str], students: str
) -> None:
    done = convert(*options)
    assert done.returncode == 0, done.stderr
    shown = next(line for line in done.stdout.splitlines() if line.startswith("guided routes: "))
    assert set(shown.removeprefix("guided routes: ").split(", ")) == guided
    assert f"students: {students}" in (folder / "policies" / "default.yaml").read_text()
    checked = run("check", **ENVIRONMENT)
    assert checked.returncode == 0, checked.stderr
    assert "is its own teacher" not in checked.stderr
    assert "continuation none" not in checked.stderr


def test_without_a_teacher_the_output_says_how_to_guide(folder: Path) -> None:
    assert "import with --teacher NAME" in convert().stdout
    assert "guided" not in (folder / "policies" / "default.yaml").read_text()


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--student", "llama"), 2, "needs --teacher"),
        (("--teacher", "llama", "--student", "llama"), 2, "must differ from --teacher"),
        (("--teacher", "clade"), 1, "no imported model is called 'clade'"),
        (("--teacher", "clade"), 1, "Did you mean 'claude'?"),
        (("--teacher", "embeddings"), 1, "'embeddings' makes embeddings"),
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
        ("model_list:\n  - model_name: a\n", "litellm.yaml:2: model_list[0]: litellm_params.model: missing: add it"),
        ("model_list: {a: b}\n", "litellm.yaml:1: model_list: must be a list"),
        ("model_list:\n  - model_name: 'openai/*'\n    litellm_params: {model: 'openai/*'}\n", "a wildcard"),
    ],
)
def test_a_file_that_is_not_valid_is_an_error_with_its_line(folder: Path, text: str, message: str) -> None:
    (folder / "litellm.yaml").write_text(text)
    done = convert()
    assert (done.returncode, message in done.stderr) == (1, True), done.stderr
    assert not (folder / "config.yaml").exists()
