"""Every Markdown page: each link leads to a file that is there, and each anchor to a heading of it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "examples", "deploy", "load_tests", "policies")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
_FENCED = re.compile(r"^( *)(```|~~~).*?^\1\2 *$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(`+).+?\1", re.DOTALL)


def prose(page: Path) -> str:
    """The text without code, in which brackets mean something else."""
    return _SPAN.sub("", _FENCED.sub("", page.read_text("utf-8")))


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


@cache
def anchors(page: Path) -> frozenset[str]:
    """As forges make them: small letters, marks left out, blanks to hyphens; a second one alike ends in -1."""
    found: dict[str, int] = {}
    made = set()
    for heading in re.findall(r"^#{1,6} (.+)$", _FENCED.sub("", page.read_text("utf-8")), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip())
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        made.add(f"{slug}-{found[slug]}" if slug in found else slug)
        found[slug] = found.get(slug, 0) + 1
    return frozenset(made)


def astray(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    lost = []
    for link in links(page):
        target, _, anchor = link.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        there = page.parent / target if target else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there.resolve())):
            lost.append(link)
    return lost


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    assert astray(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    """A file that is not there, an anchor that is not; not what is code, nor what a forge would find."""
    (tmp_path / "b.md").write_text("# A `b[]` & c\n\n## Twice\n\n## Twice\n", "utf-8")
    (tmp_path / "a.md").write_text(
        "# Here\n[1](gone.md) [2](b.md#nowhere) [3](#there) `[4](x.md)` [5](b.md#a-b--c) [6](b.md#twice-1) [7](#here)\n"
        "```\n[8](y.md)\n# no heading\n```\n[9](https://example.org/#z) [10](#no-heading)\n",
        "utf-8",
    )
    assert astray(tmp_path / "a.md") == ["gone.md", "b.md#nowhere", "#there", "#no-heading"]
