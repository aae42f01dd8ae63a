"""Reads of Redis are consistent despite changes between the scan and the reads."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from gateway.accounting.budgets import Account, Budgets
from gateway.backup.putting import RestoreWriter
from gateway.backup.taking import BackupReader
from tests.backup.shop import MONTH, ROLLING

if TYPE_CHECKING:
    from tests.backup.shop import Shop


@pytest.mark.parametrize("known", [True, False], ids=["of a process that is known", "of another one, and another key"])
async def test_a_request_during_the_key_scan_has_its_intent(shop: Shop, anew: Shop, *, known: bool) -> None:
    """Otherwise its reservation of the budgets would never be released."""
    async with shop.parts() as here, anew.parts() as there:
        await here.purse.ask("0.5", MONTH, *([ROLLING] if known else []))
        await here.purse.settle(here.purse.last, "0.25")
        taking = BackupReader(here.redis, shop.keys)
        inventory = await taking.inventory()
        await here.purse.ask("0.125", MONTH, ROLLING, by="ann" if known else "carl")
        records = [record async for record in taking.redis(inventory, lambda _: None)]
        await RestoreWriter(there.redis, anew.keys, None).put(records, lambda _: None)
    (one,) = await anew.under_way()
    assert one == here.purse.last
    await anew.abandon(one)
    async with anew.parts() as there:
        accounts = [Account("acme", scope) for scope in (MONTH, ROLLING)]
        balances = await Budgets(there.redis, anew.keys).read(accounts)
    assert [balance.reserved_usd for balance in balances] == [0, 0]
    assert [balance.spent_usd for balance in balances] == [
        Decimal("0.375"),
        Decimal("0.375") if known else Decimal("0.125"),
    ]
