"""Each package's overview names all of its modules and subpackages, and no others."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import gateway.evaluation

ROOM = Path(gateway.evaluation.__file__).parent
ROOMS = sorted(path.parent.name for path in ROOM.glob("*/__init__.py"))


@pytest.mark.parametrize("name", ["", *ROOMS])
def test_the_map_names_every_module_and_no_other(name: str) -> None:
    words = importlib.import_module(".".join(filter(None, ["gateway.evaluation", name]))).__doc__ or ""
    there = {path.name for path in (ROOM / name).glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"\b\w+\.py\b", words)) == there


def test_the_map_names_every_room() -> None:
    assert set(re.findall(r"^(\w+)/", gateway.evaluation.__doc__ or "", re.MULTILINE)) == set(ROOMS)
    assert ROOMS
