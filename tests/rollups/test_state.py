"""What is told of the adding up: in metrics, and to operators."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gateway.metrics import Metrics
from gateway.rollups.roller import Roller
from gateway.rollups.state import LedgerState
from tests.rollups.books import open_books, receipts

if TYPE_CHECKING:
    import pytest


def value(metrics: Metrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(name, labels)
    assert found is not None
    return found


async def test_lag_counts_and_losses_stand_in_metrics(redis_url: str) -> None:
    metrics = Metrics()
    async with open_books(redis_url) as books:
        state = LedgerState(metrics)
        books.ann = Roller(books.client, books.redis, books.keys, books.rollups, "ann", state)
        for _ in range(6):
            await books.settle(*receipts(200))
        assert await books.ann.roll() == 500
        assert 0 < value(metrics, "gkt_rollup_lag_seconds") == state.lag_s < 60
        await books.janitor().tidy()
        assert value(metrics, "gkt_receipts_not_added_up") == value(metrics, "gkt_receipts_buffered") == 700
        await books.janitor(most=600).tidy()
        assert value(metrics, "gkt_receipts_unkept_total", of="sums") == 100
        while await books.ann.roll():
            pass
        await books.janitor().tidy()
        assert value(metrics, "gkt_rollup_lag_seconds") == 0
        assert value(metrics, "gkt_receipts_added_up_total") == 1_100
        assert value(metrics, "gkt_receipts_not_added_up") == value(metrics, "gkt_receipts_buffered") == 0


def test_only_who_adds_up_tells_more_than_that() -> None:
    state = LedgerState()
    assert state.as_dict() == {"adds_up": False}
    state.leads = True
    state.rolled(5, None)
    state.looked(2, 7)
    state.lose("archive", 3)
    assert state.as_dict() == {
        "adds_up": True,
        "lag_s": 0.0,
        "waiting": 2,
        "buffered": 7,
        "added": 5,
        "lost": {"sums": 0, "archive": 3},
    }


def test_while_rounds_fail_the_lag_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    state = LedgerState()
    state.leads = True
    state.rolled(0, None)
    later = time.monotonic() + 30
    monkeypatch.setattr(time, "monotonic", lambda: later)
    state.stuck()
    assert 29 < state.lag_s < 31
    state.lead(leads=False)
    assert state.lag_s == 0, "it no longer knows"
