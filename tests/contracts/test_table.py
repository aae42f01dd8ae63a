"""The page with the results of the contract suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contracts import test_engines
from tests.contracts.catalog import CATALOG, REAL
from tests.contracts.recording import ROWS, EngineResults, read_results, reason
from tests.contracts.table import PAGE, page

if TYPE_CHECKING:
    from collections.abc import Iterator


def marks() -> Iterator[str]:
    for name, test in vars(test_engines).items():
        if name.startswith("test_"):
            yield next(mark.args[0] for mark in test.pytestmark if mark.name == "contract")


def test_the_page_shows_the_recorded_results() -> None:
    assert PAGE.read_text() == page(read_results()), "run scripts/engines --table"


def test_each_test_belongs_to_a_row_and_each_row_has_a_test() -> None:
    assert set(marks()) == set(ROWS)


def test_engines_that_were_not_run_are_not_verified() -> None:
    written = page({"vllm": EngineResults("0.32.0", "2026-11-29", "m", {"tools": "fails: a|b"})})
    assert "| version | 0.32.0 | not verified | not verified | not verified | not verified |" in written
    assert "| tools | fails: a\\|b | not verified |" in written
    assert "| disconnect | not verified | not verified |" in written


@pytest.mark.parametrize("name", REAL)
def test_an_engine_can_be_installed_or_has_a_reason(name: str) -> None:
    assert (CATALOG[name].install is None) == bool(CATALOG[name].unavailable)


def test_a_failure_outweighs_missing_support_and_passes() -> None:
    results = EngineResults("1", "2026-11-29", "m")
    for outcome in ("pass", "fails: first", "not supported: x", "fails: second", "pass"):
        results.add("tools", outcome)
    assert results.rows == {"tools": "fails: first"}


def test_a_reason_is_the_first_line_of_a_failure() -> None:
    assert reason("AssertionError: stop 'x'\nassert 1 == 2") == "stop 'x'"
    assert len(reason("word " * 100)) == 160
