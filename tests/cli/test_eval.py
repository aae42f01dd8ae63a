"""`gkt-gateway eval` from its first command to its last, as a newcomer calls them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from gateway.cli.eval_recommend import TOO_FEW
from gateway.evaluation.record import read_run
from tests.cli.in_process import run

if TYPE_CHECKING:
    from pathlib import Path

SMALL = "smollm2-135m-instruct"
RUN = (
    *("--teacher", SMALL, "--student", SMALL, "--tokens", "4,8", "--max-tokens", "12", "--concurrency", "2"),
    *("--slot-tokens", "512"),
)


@pytest.mark.models
@pytest.mark.timeout(300)  # a busy machine is slow
@pytest.mark.long
def test_a_run_of_the_shipped_questions_is_reported_judged_and_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "my-run"
    done = run("eval", "run", str(folder), "--limit", "1", *RUN)
    assert done.returncode == 0, done.stderr
    assert f"Next: gkt-gateway eval report {folder}" in done.stdout
    assert re.search(r"Input tokens read from the prompt cache: teacher \d+%, student \d+%\.", done.stdout)
    first = (folder / "generations.jsonl").read_bytes()
    assert run("eval", "run", str(folder), "--limit", "2", *RUN).returncode == 0
    texts, stages = ((folder / name).read_bytes() for name in ("generations.jsonl", "stages.jsonl"))
    assert texts.startswith(first)
    assert run("eval", "run", str(folder), "--limit", "2", *RUN).returncode == 0
    assert (folder / "generations.jsonl").read_bytes() == texts, "nothing is asked twice"
    assert (folder / "stages.jsonl").read_bytes() == stages
    records = read_run(folder)
    assert {name: len(found) for name, found in records.by_setting.items()} == {
        setting["name"]: 2 for setting in records.manifest.settings
    }
    assert [one.error for one in records.examples if one.error] == []

    reported = run("eval", "report", str(folder))
    assert reported.returncode == 0, reported.stderr
    assert reported.stderr == "", "a whole run has no remarks"
    assert (folder / "report" / "report.md").read_text("utf-8").startswith("# Does guidance pay?")
    assert json.loads((folder / "report" / "report.json").read_bytes())

    policy = tmp_path / "policies" / "mine.yaml"
    judged = run("eval", "recommend", str(folder), "--out", str(policy))
    assert judged.returncode == TOO_FEW, judged.stderr
    assert re.search(
        r"nothing is claimed with fewer than \d+ questions, and these are 2\.|would show it|too close to the limit",
        judged.stdout,
    )
    assert "mode: guided" not in (policy.read_text() if policy.exists() else "")
