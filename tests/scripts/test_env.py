"""`scripts/env` finds a Python, or gets one through uv only with consent. Stubs stand for Python and uv."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
INPUTS = ("requirements-dev.lock", "scripts/build.lock", "scripts/env", "pyproject.toml", "gateway/version.py")
TOOLS = ("awk", "bash", "cat", "cmp", "dirname", "mkdir", "rm", "sed", "touch")
STOPPED = 7  # status of a stub that is asked for a virtual environment: the test ends there
FITTING = f"""#!/bin/sh
case "$*" in
  "-m venv --clear .venv") exit {STOPPED} ;;
  --version) echo "Python of the test" ;;
esac
"""
# Fits nothing, but creates virtual environments, whose pip "installs" the stub of uv.
OLD = """#!/bin/sh
case "$*" in
  *version_info*) exit 1 ;;
  "-m venv --clear .venv-uv")
    mkdir -p .venv-uv/bin
    printf '#!/bin/sh\\necho "pip $*" >>"%s"\\n%s\\n' "$LOG" 'cp "$STUBS/uv.stub" .venv-uv/bin/uv' >.venv-uv/bin/pip
    chmod +x .venv-uv/bin/pip ;;
esac
"""
UV = """#!/bin/sh
echo "uv $*" >>"$LOG"
case "$*" in
  "python find"*) [ -f "$STUBS/has-python" ] && echo "$STUBS/fitting" ;;
  "python install"*) touch "$STUBS/has-python" ;;
  "python dir") echo /where/uv/keeps/python ;;
esac
"""


class Done(NamedTuple):
    status: int
    output: str
    calls: list[str]

    @property
    def installed(self) -> bool:
        """Return whether something was downloaded."""
        return any("install" in call for call in self.calls)


class Folder:
    """A copy of the script with its inputs, and a PATH with the stubs alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in INPUTS:
            (path / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, path / name)
        self.stubs = path / "bin"
        self.stubs.mkdir()
        for tool in (*TOOLS, "cp", "chmod"):
            found = shutil.which(tool)
            assert found is not None
            (self.stubs / tool).symlink_to(found)
        self.add("fitting", FITTING)
        self.add("uv.stub", UV)  # what the stub of pip installs

    def add(self, name: str, text: str) -> None:
        (self.stubs / name).write_text(text, "utf-8")
        (self.stubs / name).chmod(0o755)

    def run(self, *arguments: str, answer: str | None = None) -> Done:
        """Run the script, with `answer` on a terminal, or without a terminal."""
        log = self.path / "calls"
        environ = {"PATH": str(self.stubs), "LOG": str(log), "STUBS": str(self.stubs), "HOME": str(self.path)}
        command = [self.path / "scripts/env", *arguments]
        if answer is None:
            done = subprocess.run(
                command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
            )
            status, output = done.returncode, done.stderr
        else:
            terminal, end = pty.openpty()
            os.write(terminal, f"{answer}\n".encode())
            status = subprocess.run(command, env=environ, stdin=end, stderr=end, timeout=60, check=False).returncode
            output = os.read(terminal, 65536).decode()
            os.close(end)
            os.close(terminal)
        return Done(status, output, log.read_text("utf-8").splitlines() if log.exists() else [])


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.mark.parametrize("name", ["python3.11", "python3.14", "python3"])
def test_a_fitting_python_is_used(folder: Folder, name: str) -> None:
    folder.add(name, FITTING)
    folder.add("uv", UV)
    done = folder.run()
    assert (done.status, done.calls) == (STOPPED, [])
    assert "creating .venv with Python of the test" in done.output


def test_without_python_and_uv_the_error_names_both(folder: Folder) -> None:
    done = folder.run("--uv")
    assert done.status == 1
    assert "Python 3.11, 3.12, 3.13 or 3.14 with the venv module is missing" in done.output
    assert "install uv" in done.output


def test_without_a_terminal_nothing_is_downloaded_without_the_option(folder: Folder) -> None:
    folder.add("uv", UV)
    done = folder.run()
    assert done.status == 1
    assert not done.installed
    assert "scripts/env --uv" in done.output


def test_with_the_option_uv_downloads_a_python_and_says_so(folder: Folder) -> None:
    folder.add("uv", UV)
    done = folder.run("--uv")
    assert done.status == STOPPED
    assert "uv python install 3.13" in done.calls
    assert "downloading Python 3.13 with uv into /where/uv/keeps/python" in done.output


def test_a_python_that_uv_has_already_is_used_without_a_question(folder: Folder) -> None:
    folder.add("uv", UV)
    (folder.stubs / "has-python").touch()
    done = folder.run()
    assert done.status == STOPPED
    assert not done.installed


@pytest.mark.parametrize(("answer", "status"), [("y", STOPPED), ("n", 1), ("", 1)])
def test_a_terminal_is_asked_first(folder: Folder, answer: str, status: int) -> None:
    folder.add("uv", UV)
    done = folder.run(answer=answer)
    assert "download Python 3.13 with uv now? [y/N]" in done.output
    assert done.status == status
    assert done.installed == (status == STOPPED)


def test_an_older_python_gets_the_locked_uv_first(folder: Folder) -> None:
    """Only uv is installed with the older Python, with its hashes."""
    folder.add("python3", OLD)
    assert not folder.run().installed
    done = folder.run("--uv")
    assert done.status == STOPPED
    assert (
        "pip --disable-pip-version-check install --quiet --require-hashes --only-binary :all: -r .venv-uv/uv.lock"
        in done.calls
    )
    assert "downloading uv into .venv-uv" in done.output
    expected = (folder.path / ".venv-uv/uv.lock").read_text("utf-8")
    assert [line.split("==")[0] for line in expected.splitlines() if "==" in line] == ["uv"]
    assert expected.count("--hash=sha256:") > 10
    assert expected in (ROOT / "scripts/build.lock").read_text("utf-8")


def test_an_unknown_argument_is_an_error(folder: Folder) -> None:
    done = folder.run("--vu")
    assert done.status == 2
    assert "unknown argument --vu" in done.output
