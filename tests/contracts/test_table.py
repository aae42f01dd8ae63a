"""The page with the results of the contract suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contracts import test_engines
from tests.contracts.catalog import CATALOG, REAL
from tests.contracts.recording import KINDS, ROWS, EngineResults, read_results, reason
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
    written = page({"vllm": EngineResults("0.32.0", "2026-11-29", "m", "H100", {"tools": {"test": "fails: a|b"}})})
    assert "| version | 0.32.0 | not verified | not verified | not verified | not verified |" in written
    assert "| settings | H100 | not verified |" in written
    assert "| tools | fails: a\\|b | not verified |" in written
    assert "| disconnect | not verified | not verified |" in written


@pytest.mark.parametrize("name", REAL)
def test_an_engine_can_be_installed_or_has_a_reason(name: str) -> None:
    assert (CATALOG[name].install is None) == bool(CATALOG[name].unavailable)


def test_a_failure_outweighs_missing_support_and_passes() -> None:
    results = EngineResults("1", "2026-11-29", "m", "2 cores")
    assert results.outcome("tools") is None
    for number, (outcome, row) in enumerate(
        (
            ("pass", "pass"),
            ("not supported: x", "not supported (1 of 2 tests): x"),
            ("not tested: y", "not tested (1 of 3 tests): y"),
            ("fails: first", "fails (1 of 4 tests): first"),
            ("fails: second", "fails (2 of 5 tests): first"),
        )
    ):
        results.add("tools", f"test_{number}", outcome)
        assert results.outcome("tools") == row


def test_an_outcome_of_all_tests_has_no_share() -> None:
    results = EngineResults("1", "2026-11-29", "m", "2 cores", {"tools": {"a": "fails: x", "b": "fails: y"}})
    assert results.outcome("tools") == "fails: x"


def test_a_failed_test_does_not_excuse_other_tests_of_its_row() -> None:
    results = EngineResults(
        "1", "2026-11-29", "m", "2 cores", {"tools": {"test[json]": "fails: x", "test[sse]": "pass"}}
    )
    assert results.test_outcome("tools", "test[json]") == "fails: x"
    assert results.test_outcome("tools", "test[sse]") == "pass"
    assert results.test_outcome("tools", "new_test") == ""


def test_a_failure_stays_when_the_fixtures_of_its_test_fail_as_well() -> None:
    results = EngineResults("1", "2026-11-29", "m", "2 cores")
    for outcome in ("fails: the test", "fails: its fixture", "pass"):
        results.add("tools", "test", outcome)
    assert results.rows == {"tools": {"test": "fails: the test"}}


def test_a_test_that_is_skipped_for_another_reason_is_not_tested() -> None:
    results = EngineResults("1", "2026-11-29", "m", "2 cores")
    results.add("tools", "test", "needs Redis")
    assert results.outcome("tools") == "not tested: needs Redis"


def test_recorded_outcomes_have_a_row_and_a_kind() -> None:
    for results in read_results().values():
        assert results.rows.keys() <= ROWS.keys()
        outcomes = [outcome for tests in results.rows.values() for outcome in tests.values()]
        assert {outcome.partition(":")[0] for outcome in outcomes} <= set(KINDS)


def test_a_reason_is_the_first_line_of_a_failure() -> None:
    assert reason("AssertionError: stop 'x'\nassert 1 == 2") == "stop 'x'"
    assert len(reason("word " * 100)) == 160
