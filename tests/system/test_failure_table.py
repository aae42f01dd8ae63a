"""Every fault through a whole gateway, and the page that documents the outcomes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.failure_cells import CELLS
from tests.failure_table import COLUMNS, cases, document, world
from tests.fault_engine import SECRET
from tests.faults import FAULTS

if TYPE_CHECKING:
    from tests.faults import Cell

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "failures.md"


@pytest.fixture(scope="module")
def met(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Cell]]:
    """Play all cases at once; return the outcome of each."""
    with world(tmp_path_factory.mktemp("faults"), redis_url) as running:
        outcome = running.meet_all()
        assert running.faulty.unexpected_paths == []
        assert SECRET not in running.gateway.raw_log
    return outcome


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", [fault.name for fault in FAULTS])
def test_a_fault_has_the_outcome_in_the_table(name: str, met: dict[str, dict[str, Cell]]) -> None:
    """The reply, the receipt and the number of engine calls, with either protocol."""
    outcomes = dict(zip(COLUMNS, CELLS[name], strict=True))
    assert met[name] == {
        f"{case.column}/{case.protocol}": outcomes[case.column] for case in cases() if case.fault.name == name
    }


def test_the_table_has_all_faults_and_calls() -> None:
    """The table is complete."""
    assert list(CELLS) == [fault.name for fault in FAULTS]
    can_meet = {(case.fault.name, case.column) for case in cases()}
    cells = {(name, column) for name, row in CELLS.items() for column, cell in zip(COLUMNS, row, strict=True) if cell}
    assert cells == can_meet


def test_the_committed_page_is_current() -> None:
    """Update the page: python -m tests.failure_table > docs/reference/failures.md"""
    assert DOCUMENT.read_text("utf-8") == document()
