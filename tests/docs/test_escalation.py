"""The archive of records has its checksum, and docs/evaluation/escalation.py prints the results of its page from it."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path

from click.testing import CliRunner

from tests.kit.records import ARCHIVE, records

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_results_of_the_study() -> None:
    spec = importlib.util.spec_from_file_location("escalation", ROOT / "docs" / "evaluation" / "escalation.py")
    assert spec is not None
    assert spec.loader is not None
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    done = CliRunner().invoke(study.main, [str(records() / "gsm8k-heldout")], catch_exceptions=False)
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


def test_the_archive_has_the_checksum_of_its_page() -> None:
    page = (ROOT / "docs" / "evaluation" / "records" / "README.md").read_text("utf-8")
    assert f"{hashlib.sha256(ARCHIVE.read_bytes()).hexdigest()}  records.tar.xz" in page
    assert ARCHIVE.stat().st_size < 3_000_000
