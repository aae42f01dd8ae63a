"""The room's own map names every module in it, and none that is gone."""

from __future__ import annotations

import re
from pathlib import Path

import gateway.evaluation as room


def test_the_map_names_every_module_and_no_other() -> None:
    there = {path.name for path in Path(room.__file__).parent.glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"\b\w+\.py\b", room.__doc__ or "")) == there
