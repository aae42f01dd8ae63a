"""docs/security.md against the tests that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))
ROWS = [
    line
    for line in PAGE.splitlines()
    if line.startswith("| ") and line.count("|") == 4 and not line.startswith(("| threat", "| what happened"))
]


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_every_test_that_is_named_exists(path: str, name: str) -> None:
    """Pytest collects each test that the page names."""
    assert re.search(rf"^(?:async )?def {name}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE)


def test_every_line_names_a_test() -> None:
    """A threat without one is a hope."""
    assert len(ROWS) > 30
    assert [row for row in ROWS if "::test_" not in row.split("|")[3]] == []


def test_every_lesson_has_its_line() -> None:
    """From (a) to (h)."""
    lessons = PAGE.partition("## What others learned")[2].partition("\n## ")[0]
    assert re.findall(r"\| \((\w)\) ", lessons) == list("abcdefgh")
