"""load_tests/ledger_day.py: correct sums, and the printed table. The tests check no figures."""

from __future__ import annotations

import time

import pytest
import typer
from rich.console import Console

from load_tests.day_receipts import DAY_S, day_of_receipts
from load_tests.ledger_day import Day, run


async def test_a_small_day_is_written_and_its_cost_is_printed() -> None:
    console = Console(record=True, width=200)
    await run(2_000, 20, console, views=False)
    printed = console.export_text()
    assert "2,000 receipts of 20 tenants" in printed
    assert "sums are right" in printed
    for line in ("written, receipts/s", "CPU of the worker", "database", "Redis before, after"):
        assert f"| {line}" in printed


async def test_a_sum_that_is_wrong_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Day, "wrong_sums", lambda _: 1)
    with pytest.raises(typer.Exit):
        await run(1_000, 5, Console(record=True), views=False)


def test_a_day_has_the_order_of_its_time_and_ends_now() -> None:
    now = time.time()
    receipts = list(day_of_receipts(5_000, 50, now))
    created = [one.created for one in receipts]
    assert created == sorted(created)
    assert now - DAY_S <= created[0]
    assert created[-1] <= now
    first = sum(one.tenant == "tenant-000" for one in receipts)
    assert first > 5 * sum(one.tenant == "tenant-040" for one in receipts) > 0
    assert len({one.id for one in receipts}) == len(receipts)
