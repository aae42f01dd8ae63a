"""Reads of Redis are consistent despite changes between the scan and the reads."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from gateway.accounting.budgets import Account, Budgets
from gateway.accounting.slices import share_of
from gateway.backup.reader import BackupReader
from gateway.backup.writer import RestoreWriter
from gateway.redis.keys import slice_names
from tests.accounting.receipt_builders import candidate
from tests.backup.deployment import MONTH, ROLLING

if TYPE_CHECKING:
    from tests.backup.deployment import Deployment


@pytest.mark.parametrize("known", [True, False], ids=["of a process that is known", "of another one, and another key"])
async def test_a_request_during_the_key_scan_has_its_intent(
    deployment: Deployment, empty_deployment: Deployment, *, known: bool
) -> None:
    """Without an intent, the request's reservation of the budgets would never be released."""
    async with deployment.parts() as here, empty_deployment.parts() as there:
        await here.budgets_fixture.ask("0.5", MONTH, *([ROLLING] if known else []))
        await here.budgets_fixture.settle(here.budgets_fixture.last, "0.25")
        taking = BackupReader(here.redis, deployment.keys)
        inventory = await taking.inventory()
        await here.budgets_fixture.ask("0.125", MONTH, ROLLING, by="ann" if known else "carl")
        records = [record async for record in taking.redis(inventory, lambda _: None)]
        await RestoreWriter(there.redis, empty_deployment.keys, None).put(records, lambda _: None)
    (one,) = await empty_deployment.under_way()
    assert one == here.budgets_fixture.last
    await empty_deployment.abandon(one)
    async with empty_deployment.parts() as there:
        accounts = [Account("acme", scope) for scope in (MONTH, ROLLING)]
        balances = await Budgets(there.redis, empty_deployment.keys).read(accounts)
    assert [balance.reserved_usd for balance in balances] == [0, 0]
    assert [balance.spent_usd for balance in balances] == [
        Decimal("0.375"),
        Decimal("0.375") if known else Decimal("0.125"),
    ]


async def test_slices_of_a_tenant_are_restored(deployment: Deployment, empty_deployment: Deployment) -> None:
    """A slice has a request in progress, spending and a waiting receipt."""
    names, part = slice_names("acme", 3), share_of(MONTH, 2, 3)
    async with deployment.parts() as here, empty_deployment.parts() as there:
        ended, running = (msgspec.structs.replace(here.budgets_fixture.request("0.5", part), slice=2) for _ in range(2))
        await here.budgets_fixture.tell(candidate(ended, part), candidate(running, part))
        await here.budgets_fixture.settle(ended, "0.25")
        taking = BackupReader(here.redis, deployment.keys)
        records = [record async for record in taking.redis(await taking.inventory(), lambda _: None)]
        await RestoreWriter(there.redis, empty_deployment.keys, None).put(records, lambda _: None)
        (balance,) = await Budgets(there.redis, empty_deployment.keys).read([Account("acme", MONTH, 3)])
        assert (balance.spent_usd, balance.reserved_usd) == (Decimal("0.25"), Decimal("0.5"))
        assert await there.redis.smembers(empty_deployment.keys.ledger().tenants) == {b"acme#2"}
        assert [await there.redis.xlen(empty_deployment.keys.outbox(name)) for name in names] == [0, 0, 1]
        ledger = there.budgets_fixture.processes["bob"]
        assert await ledger.expired_processes(names, 0) == [("acme#2", "ann")]
        assert set(await ledger.intents("acme#2", "ann", 10)) == {running.id}


async def test_a_failed_node_of_a_cluster_fails_the_backup(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster puts the error in place of each reply. The backup would lack the tenant without a word."""
    async with deployment.parts() as here:
        await here.budgets_fixture.ask("0.5", MONTH)
        taking = BackupReader(here.redis, deployment.keys)
        inventory = await taking.inventory()
        open_pipeline: Any = here.redis.pipeline

        def pipeline(transaction: bool = True) -> Any:
            pipe = open_pipeline(transaction=transaction)
            if transaction:
                execute = pipe.execute

                async def fail(raise_on_error: bool = True) -> list[Exception]:
                    return [RedisConnectionError("lost") for _ in await execute(raise_on_error=raise_on_error)]

                pipe.execute = fail
            return pipe

        monkeypatch.setattr(here.redis, "is_cluster", True, raising=False)
        monkeypatch.setattr(here.redis, "pipeline", pipeline)
        with pytest.raises(RedisConnectionError, match="lost"):
            async for _ in taking.redis(inventory, lambda _: None):
                pass
