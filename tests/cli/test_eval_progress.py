"""The progress of a run, on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gateway.cli.eval_progress import EvalProgress, duration


def test_a_terminal_shows_a_bar_with_the_number_of_finished_items() -> None:
    terminal = io.StringIO()
    bars = EvalProgress(Console(file=terminal, force_terminal=True, width=120))
    bars.begin("teacher big", 3)
    for _ in range(3):
        bars.step(20)
    bars.end()
    bars.end()
    assert "teacher big" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
    assert "tokens/s" in terminal.getvalue()
    assert terminal.getvalue().rpartition("\x1b[?25")[2].startswith("h")


def test_without_a_terminal_each_stage_has_a_first_and_a_last_line() -> None:
    file = io.StringIO()
    progress = EvalProgress(Console(file=file, width=120))
    progress.begin("student [small]", 3)
    for _ in range(3):
        progress.step(20)
    progress.end()
    progress.end()
    first, last = file.getvalue().splitlines()
    assert first == "student [small]: 0 of 3"
    assert last.startswith("student [small]: 3 of 3, ")


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (7380, "2 h 3 min")]
)
def test_a_duration_has_its_two_largest_units(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_the_remaining_time_is_shown_after_enough_finished_items() -> None:
    speed = EvalProgress(Console(file=io.StringIO()))
    speed.begin("teacher big", 100)
    assert [speed.left_s(done, 100) is None for done in (0, 1, 15, 16, 99)] == [True, True, True, False, False]
    assert [speed.left_s(done, 8) is None for done in (0, 3, 4)] == [True, True, False]
