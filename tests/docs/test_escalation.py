"""The results in docs/design/escalation.md are those that docs/evaluation/escalation.py prints."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from click.testing import CliRunner

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "docs" / "evaluation" / "records" / "gsm8k-heldout"


def test_the_page_has_the_results_of_the_study() -> None:
    spec = importlib.util.spec_from_file_location("escalation", ROOT / "docs" / "evaluation" / "escalation.py")
    assert spec is not None
    assert spec.loader is not None
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    done = CliRunner().invoke(study.main, [str(RECORDS)], catch_exceptions=False)
    first, *lines = done.output.splitlines()
    assert first == "200 questions"
    primary = [line for line in lines if line.endswith("PRIMARY")]
    page = (ROOT / "docs" / "design" / "escalation.md").read_text("utf-8")
    rows = re.findall(
        r"\| (Claude Sonnet 5\.5|GPT-5\.5) \| (30) % \| ([\d.]+) % \| (\d+) % \| (\S+) \((\S+) to (\S+)\) \| loses \|",
        page,
    )
    printed = [
        re.match(
            r"(.*): m=80, 30% .*: (\d+)% escalated; ([\d.]+)% at (\d+)% of the teacher's cost; (\S+) points "
            r"\((\S+) to (\S+)\) over .*: loses;",
            line,
        )
        for line in primary
    ]
    assert [one and one.groups() for one in printed] == rows
    assert len(rows) == 2
    others = [line for line in lines if line not in primary]
    assert [sum(f": {verdict};" in line for line in others) for verdict in ("loses", "undecided", "wins")] == [24, 4, 0]
