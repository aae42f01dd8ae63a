"""The comparison of guided answers with two calls, on the stand-in for vLLM."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import pytest

from load_tests import two_calls
from tests.contracts.catalog import CATALOG, STAND_IN
from tests.contracts.running import RunningEngine

if TYPE_CHECKING:
    from pathlib import Path


def test_all_questions_differ() -> None:
    assert len(set(islice(two_calls.questions(), 500))) == 500


@pytest.mark.process
async def test_every_mode_is_measured(tmp_path: Path) -> None:
    engine = RunningEngine(CATALOG[STAND_IN], tmp_path / "engine.log")
    engine.start()
    try:
        rows = await two_calls.run(engine, 8, 24, [2, 3], rounds=1)
    finally:
        engine.stop()
    modes = [two_calls.TWO_CALLS, "guided, JSON", "guided, SSE"]
    assert [row[:2] for row in rows] == [[number, mode] for number in ("2", "3") for mode in modes]
    assert [row[3] for row in rows if row[1] == two_calls.TWO_CALLS] == ["1.00", "1.00"]
    assert all(float(row[2]) > 0 for row in rows)
