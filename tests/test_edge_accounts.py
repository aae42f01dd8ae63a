"""What devices report, where no gateway need run for it."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.edge_accounts import EdgeAccounts
from gateway.errors import NotFound
from gateway.metrics import Metrics
from tests.ledger.test_edge import USAGE

CALLER: Any = SimpleNamespace(policy=SimpleNamespace(tenant="acme"), key_id="ci")


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
    parts: Any = (None, None, store, None, SimpleNamespace(place=nullcontext), Metrics(), None)
    accounts = EdgeAccounts(*parts, prices={}, within_s=60.0)
    with pytest.raises(NotFound):
        await accounts.close(CALLER, receipt_id, USAGE)
    assert store.asked == []
