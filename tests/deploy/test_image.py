"""The container image: built without a Docker engine and run, and the parts of that check."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from deploy.image.build import (
    DOCKERFILE,
    CheckFailed,
    ImageConfig,
    base_image,
    file_bytes,
    missing_programs,
    run_logged,
)
from tests.deploy.written import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PROGRAMS = ("buildah", "mmdebstrap", "runc")
BUILD_LIMIT_S = 3000


@pytest.mark.long
@pytest.mark.timeout(BUILD_LIMIT_S)
def test_the_image_is_built_and_gives_a_guided_answer() -> None:
    if missing := missing_programs(*PROGRAMS):
        pytest.skip(f"did not run: there is no {' '.join(missing)} here (Debian: apt install {' '.join(missing)})")
    if os.geteuid() != 0:
        pytest.skip("did not run: it needs root")
    done = subprocess.run(
        [sys.executable, "-m", "deploy.image"], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        timeout=BUILD_LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "all checks passed"


def test_the_base_image_is_that_of_the_dockerfile() -> None:
    assert base_image(DOCKERFILE.read_text("utf-8")).startswith("python:3.")
    with pytest.raises(CheckFailed, match="has no line `ARG PYTHON=TAG`"):
        base_image("FROM scratch\n")


def test_the_containers_command_is_that_of_the_image() -> None:
    config = ImageConfig.of(
        {
            "Docker": {
                "config": {
                    "User": "10001",
                    "Entrypoint": ["gkt-gateway"],
                    "Cmd": ["serve", "--config", "/etc/gkt/config.yaml"],
                    "Env": ["PATH=/opt/gkt/bin:/usr/bin", "OPTIONS=a=b"],
                    "Healthcheck": {"Test": ["CMD", "python", "-c", "pass"]},
                }
            }
        }
    )
    assert config.command == ["gkt-gateway", "serve", "--config", "/etc/gkt/config.yaml"]
    assert config.environ == {"PATH": "/opt/gkt/bin:/usr/bin", "OPTIONS": "a=b"}


def test_a_failed_step_shows_the_end_of_its_messages(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(CheckFailed, match=r"exit status 3\n(.*\n)*line 100$") as failure:
        run_logged(["/bin/sh", "-c", "seq -f 'line %g' 100; exit 3"], log)
    assert "line 10\n" not in str(failure.value)
    assert "line 10\n" in log.read_text("utf-8")


def test_a_file_with_two_names_counts_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * 1000)
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    assert file_bytes(tmp_path) == 1000


def test_missing_programs_are_named() -> None:
    assert missing_programs("sh", "no-such-program") == ["no-such-program"]
