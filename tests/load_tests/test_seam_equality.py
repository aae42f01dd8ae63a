"""The seam experiment with the smallest model: with equal arithmetic, no seam changes an answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.models
@pytest.mark.timeout(300)
def test_guided_answers_of_one_model_equal_its_own_answers(tmp_path: Path) -> None:
    """llama.cpp, one slot, greedy, prompts read token by token: every guided text equals the unguided one."""
    out = tmp_path / "cases.json"
    command = [sys.executable, "-m", "load_tests.seam_equality", "--quick", "--prompts", "4", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    cases = orjson.loads(out.read_bytes())["cases"]
    assert {case["boundary"] for case in cases} == {"word", "sentence", "token"}
    assert len(cases) >= 20
    assert [case for case in cases if case["why"] is not None] == []
    assert all(case["got"].startswith(case["kept"]) for case in cases)
