"""The programs that the pages on the client show, run as they stand, but for whom they ask."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.edge.errors import AwayReason
from tests.edge.devices import toy
from tests.edge.fake_gateway import KEY, FakeGateway
from tests.engines.toy_servers import ANSWER, LlamaCpp

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["docs/edge-client.md", "edge/README.md"])
def test_its_program_answers(page: str, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    gateway = FakeGateway()
    with gateway.running() as url, toy(LlamaCpp()) as student:
        for told, meant in (
            ("https://gateway.example.com", url),
            ("http://127.0.0.1:11434", student.url),
            ("gk-...", KEY),
        ):
            assert told in program
            program = program.replace(told, meant)
        environ = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environ, cwd=tmp_path
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(ANSWER)
    assert gateway.told


def test_every_reason_of_the_clients_own_has_its_row() -> None:
    text = (ROOT / "docs" / "edge-client.md").read_text("utf-8")
    reasons = (*AwayReason.__args__, "student_started_anew")  # type: ignore[attr-defined]
    assert [reason for reason in reasons if not re.search(rf"^\| `{reason}` \|", text, re.MULTILINE)] == []
