"""Helm, built once from its Go module in the version below, and kept in the cache folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.clients.environments import built

if TYPE_CHECKING:
    from pathlib import Path

MODULES = {
    "helm": "helm.sh/helm/v4/cmd/helm@v4.3.1",
}
BUILD_LIMIT_S = 1800
_CUT_OFF = re.compile(r"dial tcp.*|no such host|i/o timeout|connection refused|certificate signed by unknown authority")


def go_program(name: str) -> Path:
    """Return the path of a program.

    Skips the test without Go, or if the module proxy is unreachable. Any other failure of the build fails the test.
    """
    if not shutil.which("go"):
        pytest.skip(f"did not run: it needs Go to build {MODULES[name]}, and there is no go on the PATH")

    def install(folder: Path) -> None:
        done = subprocess.run(
            ["go", "install", MODULES[name]], env=os.environ | {"GOBIN": str(folder)},
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=BUILD_LIMIT_S, check=False,
        )  # fmt: skip
        if match := _CUT_OFF.search(done.stderr):
            pytest.skip(f"did not run: there is no way to the Go module proxy ({match[0].strip()})")
        assert done.returncode == 0, done.stderr[-2000:]

    return built(name, (MODULES[name].encode(),), install, group="go") / name


def run(program: Path, *arguments: str | Path, fails: bool = False, cwd: Path | None = None) -> tuple[str, str]:
    """Run a program and return its stdout and stderr."""
    done = subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
        cwd=cwd,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout, done.stderr
