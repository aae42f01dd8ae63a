"""The comparison on GPUs, with stand-ins for the engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from load_tests import gpu
from tests.contracts.catalog import CATALOG, STAND_IN
from tests.contracts.running import RunningEngine

if TYPE_CHECKING:
    from pathlib import Path


def test_the_last_number_of_an_answer_is_its_result() -> None:
    assert gpu.is_right("12 * 3 = 36, so 36 - 2 = 34.", 34)
    assert gpu.is_right("The result is 1,234", 1234)
    assert not gpu.is_right("34 pens of 36", 34)
    assert not gpu.is_right("I do not know.", 34)


def test_the_questions_are_the_same_in_each_run_and_differ() -> None:
    assert gpu.questions() == gpu.questions()
    assert len({question.text for question in gpu.questions()}) == gpu.QUESTIONS


@pytest.mark.process
async def test_every_mode_is_measured_with_every_number_of_callers(tmp_path: Path) -> None:
    engine = RunningEngine(CATALOG[STAND_IN], tmp_path / "engine.log")
    engine.start()
    try:
        rows = await gpu.run((engine.url, engine.url), (engine.model, engine.model), (0.4, 0.05), 10, 24, [1, 4], 4)
    finally:
        engine.stop()
    assert [(row.mode, row.callers) for row in rows] == [(mode, n) for n in (1, 4) for mode in gpu.MODES]
    assert [len(row.answers) for row in rows] == [4, 4, 4, 12, 12, 12]
    for row in rows:
        assert all(answer.tokens == 24 for answer in row.answers)
        assert row.mode != "guided" or not any("unguided" in answer.facts for answer in row.answers)
        assert float(row.cells()[5]) > 0
