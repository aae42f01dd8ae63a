"""`scripts/release` builds the same bytes from each checkout of a commit, and the wheel works without a checkout."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import httpx
import pytest

from gateway.version import __version__
from tests.clients.environments import run_command, run_installer
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, guided, model, running_gateway
from tests.readiness import wait_until_up

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
ADMIN_KEY = "the-admin-key-of-the-test"
FILES = [
    "SHA256SUMS",
    f"gkt-gateway-{__version__}.cdx.json",
    f"gkt-gateway-{__version__}.tgz",
    f"gkt_edge-{__version__}-py3-none-any.whl",
    f"gkt_edge-{__version__}.tar.gz",
    f"gkt_gateway-{__version__}-py3-none-any.whl",
    f"gkt_gateway-{__version__}.tar.gz",
]
WHEEL = f"gkt_gateway-{__version__}-py3-none-any.whl"

# Prints the name of each command whose help can be shown.
HELP = """
import typer
from typer.testing import CliRunner
from gateway.cli.commands import app

def walk(command, words):
    yield words
    for name in getattr(command, "commands", {}):
        yield from walk(command.resolve_command(None, [name])[1], [*words, name])

for words in walk(typer.main.get_command(app), []):
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0 and "Usage" in done.output, (words, done.output)
    print(*words)
"""


def git(*arguments: str | Path, folder: Path = ROOT) -> str:
    return run_command("git", "-C", folder, *arguments)


def tracked(folder: str) -> list[str]:
    return git("ls-files", folder).split()


def release(folder: Path, umask: int, line_ends: str) -> dict[str, bytes]:
    """Clone the repository, commit the changes of the working tree and a further artifact, and release the commit."""
    git("clone", "--quiet", "--shared", ROOT, folder)
    changed = subprocess.run(["git", "diff", "--binary", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    if changed:
        subprocess.run(["git", "apply", "--index"], cwd=folder, input=changed, check=True)
    step = folder / "deploy/extra/release"
    step.parent.mkdir()
    step.write_text('#!/bin/sh\necho "$SOURCE_DATE_EPOCH" >"$1/extra-$VERSION.txt"\n', "utf-8")
    step.chmod(0o755)
    git("add", step, folder=folder)
    when = {"GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z"}
    name = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    subprocess.run(["git", *name, "commit", "-qm", "changes"], cwd=folder, env={**os.environ, **when}, check=True)
    environ = {**os.environ, "PYTHON": sys.executable}
    environ.pop("PYTHONPATH", None)
    git("config", "core.autocrlf", line_ends, folder=folder)
    done = subprocess.run(
        [folder / "scripts/release"], env=environ, umask=umask, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {file.name: file.read_bytes() for file in sorted((folder / "dist").iterdir())}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return release(tmp_path_factory.mktemp("release") / "a", 0o022, "false")


def test_a_tree_with_changes_is_refused(tmp_path: Path) -> None:
    git("init", "--quiet", tmp_path)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/release", tmp_path / "scripts")
    done = subprocess.run([tmp_path / "scripts/release"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "release: the working tree has changes: commit or remove them\n?? scripts/" in done.stderr
    assert not (tmp_path / "dist").exists()


def test_the_help_names_every_file() -> None:
    shown = run_command(ROOT / "scripts/release", "--help")
    for name in FILES:
        assert name.replace(__version__, "VERSION") in shown


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_builds_of_a_commit_are_identical(built: dict[str, bytes], tmp_path: Path) -> None:
    assert list(built) == sorted([*FILES, f"extra-{__version__}.txt"])
    assert built[f"extra-{__version__}.txt"] == b"1767225600\n"
    assert release(tmp_path / "a folder elsewhere", 0o077, "true") == built
    sums = dict(line.split("  ")[::-1] for line in built.pop("SHA256SUMS").decode().splitlines())
    assert sums == {name: hashlib.sha256(content).hexdigest() for name, content in built.items()}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_chart_has_the_files_of_its_folder(built: dict[str, bytes], tmp_path: Path) -> None:
    archive = tmp_path / "chart.tgz"
    archive.write_bytes(built[f"gkt-gateway-{__version__}.tgz"])
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    chart = "deploy/helm/gkt-gateway"
    files = [name.removeprefix(f"{chart}/") for name in tracked(chart) if not name.startswith(f"{chart}/ci/")]
    held = {
        file.relative_to(tmp_path / "gkt-gateway") for file in (tmp_path / "gkt-gateway").rglob("*") if file.is_file()
    }
    assert held == {Path(name) for name in files}
    assert all((tmp_path / "gkt-gateway" / name).read_bytes() == (ROOT / chart / name).read_bytes() for name in files)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_sbom_has_each_locked_package(built: dict[str, bytes]) -> None:
    sbom = json.loads(built[f"gkt-gateway-{__version__}.cdx.json"])
    assert (sbom["bomFormat"], sbom["metadata"]["component"]["name"]) == ("CycloneDX", "gkt-gateway")
    assert sbom["metadata"]["component"]["version"] == __version__
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    locked = {tuple(line.split()[0].split("==")) for line in lock.splitlines() if "==" in line}
    assert {(one["name"], one["version"]) for one in sbom["components"]} == locked


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["gkt_gateway", "gkt_edge"])
def test_the_source_distribution_builds_the_same_wheel(built: dict[str, bytes], name: str, tmp_path: Path) -> None:
    archive, wheel = tmp_path / "sdist.tar.gz", f"{name}-{__version__}-py3-none-any.whl"
    archive.write_bytes(built[f"{name}-{__version__}.tar.gz"])
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
        epoch = str(file.getmembers()[0].mtime)
    source = tmp_path / f"{name}-{__version__}"
    environ = {**os.environ, "SOURCE_DATE_EPOCH": epoch}
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(command, cwd=source, env=environ, check=True, capture_output=True)
    assert (tmp_path / wheel).read_bytes() == built[wheel]


@pytest.fixture(scope="module")
def installed(built: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `bin` folder of an environment with the locked packages and the wheel."""
    folder = tmp_path_factory.mktemp("installed")
    wheel = folder / WHEEL
    wheel.write_bytes(built[wheel.name])
    python = folder / "env/bin/python"
    run_command(UV, "venv", "--quiet", "--python", sys.executable, folder / "env")
    quiet = ("--quiet", "--python", python)
    run_installer(UV, "pip", "sync", *quiet, "--require-hashes", "--no-build", ROOT / "requirements.lock")
    run_command(UV, "pip", "install", *quiet, "--no-index", "--no-deps", wheel)
    return python.parent


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_wheel_contains_each_file_of_the_package_and_each_page(built: dict[str, bytes], tmp_path: Path) -> None:
    wheel = tmp_path / WHEEL
    wheel.write_bytes(built[wheel.name])
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    pages = [name for name in tracked("docs") if re.fullmatch(r"docs/(design/|reference/)?[\w-]+\.md", name)]
    expected = {name: (ROOT / name).read_bytes() for name in tracked("gateway")}
    expected |= {name.replace("docs/", "gateway/documentation/", 1): (ROOT / name).read_bytes() for name in pages}
    assert held == expected
    license_of_questions = "gateway/evaluation/questions/shipped/LICENSE.md"
    assert {license_of_questions, "gateway/evaluation/questions/shipped/gsm8k.jsonl"} <= set(held)
    with zipfile.ZipFile(wheel) as archive:
        info = f"gkt_gateway-{__version__}.dist-info"
        assert archive.read(f"{info}/licenses/{license_of_questions}") == held[license_of_questions]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_commands_work_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    """Help, version, schemas, pages and `check` run outside the repository, with this environment's packages alone."""

    def output(*arguments: str | Path) -> str:
        environ = {"PATH": "/bin", "GKT_ADMIN_KEY": ADMIN_KEY}
        done = subprocess.run(arguments, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    command = installed / "gkt-gateway"
    assert output(command, "--version") == f"gkt-gateway {__version__}\n"
    assert json.loads(output(command, "schema", "policy"))["title"]
    assert output(command, "docs", "policies") == (ROOT / "docs/policies.md").read_text("utf-8")
    assert str(installed.parent) in output(command, "docs", "policies", "--path")
    helped = output(installed / "python", "-I", "-c", HELP).splitlines()
    assert {"demo", "serve", "eval recommend", "usage verify", "plan measure"} <= set(helped)
    (tmp_path / "policies").mkdir()
    (tmp_path / "admin.key").write_text(ADMIN_KEY, "utf-8")
    page = (ROOT / "docs/quickstart.md").read_text("utf-8")
    for name, text in re.findall(r"```yaml\n# (\S+)\n(.*?)```", page, re.DOTALL):
        (tmp_path / name).write_text(text, "utf-8")
    assert output(command, "check", "--config", "config.yaml").startswith("ok: 2 models, 1 tenant")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_serve_answers_and_records_without_a_checkout(installed: Path, tmp_path: Path, redis_url: str) -> None:
    """A guided answer needs Redis scripts, the receipt the usage database, and the pages their files."""
    command = str(installed / "gkt-gateway")
    replaced = f"import os, sys; os.chdir({str(tmp_path)!r}); os.execv({command!r}, [{command!r}, *sys.argv[1:]])"
    with (
        FakeEngine(says("A ship sails", "length")).running() as teacher,
        FakeEngine(says(" to the island.")).running() as student,
        running_gateway(
            tmp_path,
            entry=("-c", replaced),
            environ={"PYTHONPATH": "", "GKT_ADMIN_KEY": ADMIN_KEY},
            redis_url=redis_url,
            models=[model("big", "tgi", teacher.url), model("small", "openai", f"{student.url}/v1")],
            routes=[guided()],
            admin={"key": "env:GKT_ADMIN_KEY"},
            usage={"run": "host"},
        ) as gateway,
        httpx.Client(timeout=60, headers={"Authorization": f"Bearer {KEY}"}) as client,
    ):
        assert client.get(f"{gateway.url}/healthz").status_code == 200
        wait_until_up(gateway.admin_url)
        body = {"model": "chat", "messages": [{"role": "user", "content": "Write."}]}
        reply = client.post(f"{gateway.url}/v1/chat/completions", json=body)
        assert (reply.status_code, reply.headers["x-gkt-mode"]) == (200, "guided")
        assert "<html" in client.get(f"{gateway.admin_url}/dashboard", follow_redirects=True).text  # the login page
        deadline = time.monotonic() + 60
        while client.get(f"{gateway.url}/v1/usage?since=1h").json().get("total", {}).get("requests") != 1:
            assert time.monotonic() < deadline, "the request is not in the usage database"
            time.sleep(0.2)
