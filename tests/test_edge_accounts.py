"""What devices report, where no gateway need run for it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.edge_accounts import EdgeAccounts
from gateway.errors import NotFound, StoreUnavailable
from gateway.metrics import Metrics
from tests.ledger.test_edge import USAGE

NOW = 1_700_000_000.0
CALLER: Any = SimpleNamespace(policy=SimpleNamespace(tenant="acme", weight=1.0), key_id="ci")


class Store:
    """It has nothing, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def get(self, _: str, receipt_id: str) -> None:
        self.asked.append(receipt_id)


@pytest.mark.parametrize(
    "receipt_id", ["", "\0", "req_of_nobody", "req_" + "0" * 25, "req_" + "0" * 24 + "-edge", "req_" + "0" * 24 + "\n"]
)
async def test_what_is_no_id_of_a_guidance_is_looked_for_nowhere(receipt_id: str) -> None:
    """PostgreSQL, for one, fails at a NUL, and that would be a 503 to try again."""
    store = Store()
    with pytest.raises(NotFound):
        await _accounts(store).close(CALLER, receipt_id, replace(USAGE, at=NOW))
    assert store.asked == []


@pytest.mark.parametrize(
    ("at", "refused"),
    [
        (None, NotFound),
        (NOW - 121, NotFound),
        (NOW + 121, NotFound),
        (NOW - 119, StoreUnavailable),
        (NOW, StoreUnavailable),
    ],
)
async def test_a_guidance_that_may_become_known_is_not_said_to_be_none(
    at: float | None, refused: type[Exception]
) -> None:
    """What was given while Redis was away is known to the process that gave it, and the report may come to another."""
    store, metrics = Store(), Metrics()
    with pytest.raises(refused):
        await _accounts(store, metrics).close(CALLER, "req_" + "0" * 24, replace(USAGE, at=at))
    assert len(store.asked) == 3
    counted = 'gkt_edge_closings_total{outcome="unknown"} 1.0' in metrics.render().decode()
    assert counted == (refused is NotFound)


def _accounts(store: Store, metrics: Metrics | None = None) -> EdgeAccounts:
    parts: Any = (None, None, store, None, SimpleNamespace(place=nullcontext), metrics or Metrics(), None)
    return EdgeAccounts(*parts, prices={}, within_s=60.0, clock=lambda: NOW)
