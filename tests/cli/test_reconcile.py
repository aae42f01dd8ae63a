"""The output of `gkt-gateway usage reconcile`. tests/admin/test_reconciliation.py runs it against a gateway."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from gateway.admin.reconciliation import engine_view, reconciled_day, totals
from gateway.cli.usage_reconcile import print_reconciliation
from gateway.usage.uptime import DAY_S, EngineUptime

if TYPE_CHECKING:
    import pytest

DAY = 20_000 * DAY_S


def test_both_sides_the_difference_and_unmatched_amounts_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    watched = {"small": EngineUptime(Decimal("1.20"), 90, 120), "busy": EngineUptime(Decimal(1), 60, 60)}
    charged = {"small": 10**11, "busy": 3 * 10**12, "hosted": 1}
    _, found = reconciled_day(DAY, DAY + DAY_S + 5.0, charged, watched)
    engines = [engine_view(engine) for engine in found]
    print_reconciliation(
        {"days": [{"day": "2024-10-04", "complete": True, "engines": engines}], "total": totals(found)}
    )
    lines = {
        line.split()[1 if "2024" in line else 0]: line.split()
        for line in capsys.readouterr().out.splitlines()
        if line.strip()
    }
    assert lines["busy"][2:] == [
        "1",
        "1.00",
        "h",
        "0.00",
        "h",
        "23.00",
        "h",
        "1.000000",
        "3.000000",
        "-2.000000",
        "300.0%",
    ]
    assert lines["small"][1:] == [
        "1.2",
        "1.50",
        "h",
        "0.50",
        "h",
        "22.00",
        "h",
        "1.800000",
        "0.100000",
        "1.700000",
        "5.6%",
    ]
    assert lines["hosted"][1:] == ["<0.000001"]
    assert lines["all"][-4:] == ["2.800000", "3.100000", "-0.300000", "110.7%"]
    assert lines["by"][-1] == "<0.000001"


def test_an_empty_result_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    print_reconciliation({"days": [{"day": "2024-10-04", "complete": True, "engines": []}], "total": totals([])})
    assert capsys.readouterr().out == "No engine has cost in this time.\n"
