"""load_tests/usage_catch_up.py: all phases are measured and printed. The tests check no figures."""

from __future__ import annotations

import pytest

from load_tests.usage_catch_up import AFTER, BEFORE, MEANWHILE, figures_of, measure, shown


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_each_phase_has_answers() -> None:
    measured = await measure(receipts=2_000, rate=20, seconds=1, rounds=1)
    assert list(measured.answered_s) == [BEFORE, MEANWHILE, AFTER]
    assert len(measured.took_s) == 1
    assert all(len(took_s) >= 5 for took_s in measured.answered_s.values())


def test_figures_are_in_milliseconds() -> None:
    phase = {**figures_of([0.001] * 98 + [0.5, 1.0]), "refused": 2}
    assert (phase["answers"], phase["p50_ms"], phase["max_ms"]) == (100, 1, 1000)
    assert 500 <= phase["p99_ms"] <= 1000
    facts = {"receipts": 2_000, "receipts_per_s": 1_000, "rate": 20, "others_cores": 0, "machine": "here"}
    table = shown({**facts, "phases": {BEFORE: phase}})
    assert "| before | 100 | 2 | 1.0 ms |" in table
    assert "2,000 receipts, 1,000 per second" in table
