"""Run the programs of the pages for devices, with other addresses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.edge.errors import AwayReason
from gateway.edge.queue import default_folder
from tests.edge.devices import NOBODY, toy
from tests.edge.fake_gateway import KEY, FakeGateway
from tests.engines.toy_servers import ANSWER, LlamaCpp

ROOT = Path(__file__).parents[2]


GUIDE = "docs/edge.md"


def played(page: str, gateway: str, student: str, folder: Path, key: str = KEY) -> subprocess.CompletedProcess[str]:
    """Return the page's program with these addresses."""
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    named = [("https://gateway.example.com", gateway), ("http://127.0.0.1:11434", student)]
    for placeholder, meant in named if page == GUIDE else [*named, ("gk-...", key)]:
        assert placeholder in program
        program = program.replace(placeholder, meant)
    environ = {**os.environ, "XDG_STATE_HOME": str(folder), "PYTHONPATH": str(ROOT), "GKT_KEY": key}
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environ, cwd=folder
    )


@pytest.mark.parametrize("page", ["edge/README.md", GUIDE])
def test_its_program_answers(page: str, tmp_path: Path) -> None:
    gateway = FakeGateway()
    with gateway.running() as url, toy(LlamaCpp()) as student:
        done = played(page, url, student.url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(ANSWER)
    assert gateway.reports


def test_the_guides_program_answers_offline_and_reports_with_the_next_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    gateway = FakeGateway()
    with gateway.running() as url, toy(LlamaCpp()) as student:
        alone = played(GUIDE, NOBODY, student.url, tmp_path)
        default_folder(NOBODY).rename(default_folder(url))  # it is the same gateway, come back elsewhere
        again = played(GUIDE, url, student.url, tmp_path)
    assert alone.stdout.startswith(f"{ANSWER}\n {{'mode': 'student', 'unguided': 'gateway_unreachable', 'said': ")
    assert re.search(r"\n \{'mode': 'guided', 'guidance_tokens': \d+, 'placement': 'prefix', 'receipt': ", again.stdout)
    assert len(gateway.reports) == 2


def test_the_guides_program_explains_errors(tmp_path: Path) -> None:
    with FakeGateway().running() as url, toy(LlamaCpp()) as student:
        refused = played(GUIDE, url, student.url, tmp_path, key="gk-another")
        away = played(GUIDE, url, NOBODY, tmp_path)
    assert (refused.returncode, refused.stderr) == (1, "\nThe gateway refuses: This key is not known.\n")
    assert away.returncode == 1
    assert "Student" in away.stderr


def test_every_reason_of_the_clients_own_has_its_row() -> None:
    text = (ROOT / GUIDE).read_text("utf-8")
    reasons = (*AwayReason.__args__, "student_started_anew")  # type: ignore[attr-defined]
    assert [reason for reason in reasons if not re.search(rf"^\| `{reason}` \|", text, re.MULTILINE)] == []
