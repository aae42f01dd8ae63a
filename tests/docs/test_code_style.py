"""Check the rules for names and docstrings that CONTRIBUTING.md states, as far as a program can.

`python -m tests.docs.test_code_style` prints every violation of a working tree.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
MAX_WORDS = 25
OPENINGS = re.compile(
    r"(Who|Whoever|Whom|Whose|What|Whatever|Of|Likewise|The same|Its|It|He|They|Their|This|That|These|Those|Such|"
    r"Nobody|Somebody|Where|Whether|One|Some|How|Why|When|If|Nothing)\b"
)
OLD_NAMES = frozenset(
    [
        "asked",
        "told",
        "heard",
        "hearing",
        "said",
        "wanted",
        "sounding",
        "is_sure",
        "go_on",
        "opening",
        "openings",
        "beside",
        "owed",
        "leash",
        "bite",
        "rests",
        "until_cut",
        "cutting",
        "finisher",
        "finishers",
        "sitting",
        "news",
        "mistake",
        "mistakes",
        "draft",
        "drafts",
        "look",
        "looked",
        "visit",
        "guarding",
        "shadowing",
        "handover",
        "retold",
    ]
)
"""Names of earlier versions that mean nothing outside the project. CONTRIBUTING.md lists the standard terms."""

EXCEPTIONS = frozenset(
    {
        "gateway/api/openapi/shapes.py: handover",  # the stage `handover` in sums of usage
        "gateway/api/openapi/shapes.py: owed",  # a field of the edge protocol
        "gateway/cli/eval_recommend.py: asked",  # the option --asked
    }
)
"""At most ten violations that stay, as `path: name`."""


def modules(*folders: str) -> dict[str, ast.Module]:
    """Return the syntax trees of the tracked Python files of folders, by path."""
    names = subprocess.run(
        ["git", "ls-files", *(f"{folder}/*.py" for folder in folders)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    return {name: _tree(name) for name in names if (ROOT / name).exists()}


@cache
def _tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text("utf-8"))


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of the prose of a docstring. Lists, tables, code and `Args:` entries are left out."""
    for paragraph in re.split(r"\n[ \t]*\n", text):
        lines = paragraph.splitlines()
        if any(re.match(r"\s{4,}|\s*[-*|>├└│]|\w+:$|.*\s{2,}\S", line) for line in lines[:2]):
            continue
        yield from re.split(r"(?<=[.!?])\s+(?=[A-Z`])", " ".join(line.strip() for line in lines))


def docstring_faults(name: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        if text is None:
            continue
        where = f"{name}: {getattr(node, 'name', '(module)')}"
        if OPENINGS.match(text):
            yield f"{where}: the docstring opens with '{text.split()[0]}'"
        for sentence in sentences(text):
            if len(sentence.split()) > MAX_WORDS:
                yield f"{where}: a sentence has {len(sentence.split())} words: {sentence[:60]}..."


def identifiers(tree: ast.Module) -> Iterator[str]:
    """Yield the names that a module defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def name_faults(name: str, tree: ast.Module) -> Iterator[str]:
    for identifier in sorted({one for one in identifiers(tree) if one.strip("_") in OLD_NAMES}):
        yield f"{name}: {identifier}"


def duplicate_classes() -> Iterator[str]:
    found: dict[str, list[str]] = defaultdict(list)
    for name, tree in modules("gateway", "load_tests").items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(name)
    for name, places in sorted(found.items()):
        if len(places) > 1:
            yield f"{name}: {', '.join(places)}"


def test_no_public_class_is_defined_twice() -> None:
    assert list(duplicate_classes()) == []


def test_docstrings_open_with_a_verb_or_a_subject_and_have_short_sentences() -> None:
    faults = [
        fault for name, tree in modules("gateway", "load_tests").items() for fault in docstring_faults(name, tree)
    ]
    assert faults == []


def test_no_identifier_has_a_name_of_the_old_vocabulary() -> None:
    faults = [fault for name, tree in modules("gateway", "load_tests").items() for fault in name_faults(name, tree)]
    assert set(faults) - EXCEPTIONS == set()
    assert set(faults) >= EXCEPTIONS, "an exception has no violation any more"
    assert len(EXCEPTIONS) <= 10


if __name__ == "__main__":
    for name, tree in modules("gateway", "load_tests", "tests", "scripts").items():
        for fault in (*docstring_faults(name, tree), *name_faults(name, tree)):
            print(fault)
    print("\n".join(duplicate_classes()))
