"""Each replacement of a LiteLLM setting concerns a setting that LiteLLM has, and names pages that are there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from gateway.cli.docs import pages
from gateway.migration import litellm_advice
from gateway.migration.litellm_advice import GENERAL, LITELLM, MODEL_INFO, PARAMETERS, ROUTER, TOP, VARIABLES
from tests.docs.test_docs_links import anchors

TABLES = (PARAMETERS, MODEL_INFO, ROUTER, LITELLM, GENERAL, TOP)
TEXTS = [
    text
    for name, table in vars(litellm_advice).items()
    if isinstance(table, Mapping) and not name.startswith("__") and table is not VARIABLES
    for text in table.values()
]
PAGES = sorted(set(re.findall(r"gkt-gateway docs ([\w-]+(?:#[\w-]+)?)", " ".join(TEXTS))))


def test_each_setting_is_in_the_source_of_litellm() -> None:
    spec = find_spec("litellm")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    folders = (package.glob("*.py"), (package / "types").rglob("*.py"), (package / "proxy").rglob("*.py"))
    words: set[str] = set()
    for file in (file for found in folders for file in found):
        words.update(re.findall(r"\w+", file.read_text("utf-8")))
    names = {name for table in (*TABLES, VARIABLES) for name in table if name}
    assert sorted(names - words) == []


@pytest.mark.parametrize("text", PAGES)
def test_each_page_and_anchor_is_there(text: str) -> None:
    page, _, anchor = text.partition("#")
    assert not anchor or anchor in anchors(pages()[page])


def test_advice_is_one_line() -> None:
    assert [text for text in TEXTS if "\n" in text or not text or text.endswith(".")] == []
