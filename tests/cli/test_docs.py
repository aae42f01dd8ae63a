"""`gkt-gateway docs`, and the pages that messages name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from gateway.cli.docs import pages, sections
from tests.cli.in_process import run
from tests.docs.test_docs_links import anchors

ROOT = Path(__file__).parents[2]
GENERATED = [ROOT / "docs/reference" / name for name in ("cli.md", "configuration.md", "policy.md")]
# Paths and words that mean nothing to a user who installed the wheel.
NEEDS_A_CLONE = re.compile(r"\bdocs/[\w/-]+\.md|\b(?:scripts|deploy|load_tests|tests)/\w|\bcheckout\b|\bclone\b|'\.\[")
_HEAD_LINES = 11  # of a generated page
NAMED_PAGE = re.compile(r"gkt-gateway docs ([a-z][a-z-]*)(?:#([\w-]+))?")


SOURCES = {str(file.relative_to(ROOT)): file.read_text("utf-8") for file in sorted(ROOT.glob("gateway/**/*.py"))}


def messages(source: str) -> list[str]:
    """Return the texts of a module, except for docstrings and the bare strings that describe fields."""
    tree = ast.parse(source)
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in bare)
    return [node.value for node in nodes if isinstance(node.value, str)]


def test_all_pages_are_listed_with_their_titles() -> None:
    done = run("docs")
    listed = dict(re.split(r" {2,}", line, maxsplit=1) for line in done.stdout.splitlines())
    files = [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/design/*.md"), *ROOT.glob("docs/reference/*.md")]
    assert sorted(listed) == sorted(file.stem for file in files)
    assert listed["receipts"] == "Receipts"


def test_a_page_is_printed_unchanged() -> None:
    assert run("docs", "receipts").stdout == (ROOT / "docs/reference/receipts.md").read_text("utf-8")
    assert run("docs", "receipts", "--path").stdout == f"{ROOT}/docs/reference/receipts.md\n"


def test_a_path_is_printed_only_for_a_section_that_exists() -> None:
    assert run("docs", "operations#readiness", "--path").stdout == f"{ROOT}/docs/operations.md\n"
    done = run("docs", "operations#readyness", "--path")
    assert done.returncode == 1
    assert "has no section 'readyness'" in done.stderr


def test_a_section_ends_at_the_next_heading_of_its_level() -> None:
    text = "# One\na\n## Two `x[]` & y\nb\n```\n# no heading\n```\n### Three\nc\n## [Two](z.md) `x[]` & y\nd\n# Four\n"
    found = sections(text)
    assert list(found) == ["one", "two-x--y", "three", "two-x--y-1", "four"]
    assert found["two-x--y"] == "## Two `x[]` & y\nb\n```\n# no heading\n```\n### Three\nc\n"
    assert found["one"] + found["four"] == text


@pytest.mark.parametrize("name", list(pages()))
def test_a_pages_sections_have_the_anchors_of_links(name: str) -> None:
    assert set(sections(pages()[name].read_text("utf-8"))) == anchors(pages()[name])


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("policis", "has no page 'policis'. Did you mean 'policies'?"),
        ("policies#splits", "The page 'policies' has no section 'splits'. Did you mean 'split'?"),
    ],
)
def test_an_unknown_page_or_section_is_an_error_with_the_nearest_name(page: str, error: str) -> None:
    done = run("docs", page)
    assert done.returncode == 1
    assert error in done.stderr


def test_no_message_needs_a_clone() -> None:
    found = [
        f"{name}: {text}"
        for name, source in SOURCES.items()
        if NEEDS_A_CLONE.search(source)
        for text in messages(source)
        if NEEDS_A_CLONE.search(text)
    ]
    assert found == []
    lines = [line for file in GENERATED for line in file.read_text("utf-8").splitlines()[_HEAD_LINES:]]
    assert [line for line in lines if NEEDS_A_CLONE.search(line)] == []


def test_every_page_of_a_message_exists() -> None:
    texts = [file.read_text("utf-8") for file in GENERATED]
    named = {match.groups() for text in [*texts, *SOURCES.values()] for match in NAMED_PAGE.finditer(text)}
    assert len(named) > 10
    files = pages()
    lost = [(page, part) for page, part in named if page not in files or (part and part not in anchors(files[page]))]
    assert lost == []
