"""Processes that admit the requests of one tenant in slices, on a real Redis."""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
from redis.asyncio import Redis

from gateway.accounting.budgets import Account, Budgets
from gateway.accounting.local_limits import LocalLimits
from gateway.accounting.redis_ledger import RedisLedger
from gateway.accounting.slice_admission import SliceAdmission
from gateway.accounting.slice_events import SliceEvents
from gateway.accounting.store import ReceiptStore
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys, slice_names
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.accounting.receipt_builders import candidate, closed, guided, intent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.accounting.intent import Intent
    from gateway.accounting.receipt import Receipt
    from gateway.accounting.redis_ledger import TenantEvent
    from gateway.accounting.scopes import Scope
    from gateway.accounting.verdict import AdmissionVerdict, Refusal
    from gateway.config.limits import OnRedisFailure

SLICES = 4
LEASE_S = 1.2


class SlicedProcess:
    """The store of one gateway process. `redis` inspects the data and has no timeout."""

    def __init__(
        self, url: str, keys: RedisKeys, process_id: str, *, slices: int, timeout_s: float, keep_s: float
    ) -> None:
        self.keys, self.slices, self.process_id = keys, slices, process_id
        self.metrics, self.tasks = Metrics(), BackgroundTasks()
        self.client = RedisClient(url, timeout_s=timeout_s, metrics=self.metrics, check_interval_s=0.05)
        self.redis = Redis.from_url(url)
        self.ledger = RedisLedger(
            self.client.commands, keys, process_id, 100, LEASE_S, self.client.queries, lambda _: self.slices
        )
        self.events: list[TenantEvent] = []
        self.local = LocalLimits(lambda: 2, lambda: 0.0, by_tenant=self.client.is_cluster)
        self.store = ReceiptStore(
            self.client, self.ledger, local=self.local, on_event=self.events.append, metrics=self.metrics
        )
        self.budgets = Budgets(self.client.commands, keys)
        events = SliceEvents(self.client, self.budgets, self.events.append, self.tasks, check_every_s=0.0)
        self.admission = SliceAdmission(self.store, events, keep_s=keep_s)
        self.admitted: list[Intent] = []

    async def ask(
        self, *scopes: Scope, usd: str = "0.01", tokens: int = 10, on_failure: OnRedisFailure = "degrade"
    ) -> AdmissionVerdict | None:
        """Return the verdict on a request. None: the request continues uncounted."""
        one = msgspec.structs.replace(intent(self.process_id), reserved_usd=Decimal(usd), tokens=tokens)
        admitted = await self.admission.admit(candidate(one, *scopes), self.slices, on_failure=on_failure)
        verdict = None if admitted is None else admitted[0]
        if verdict is None or verdict.refusal is None:
            self.admitted.append(one)
        return verdict

    async def ask_until_refused(self, *scopes: Scope, usd: str) -> None:
        """Admit requests until one is refused."""
        while (verdict := await self.ask(*scopes, usd=usd)) is not None and verdict.refusal is None:
            pass

    def settle(self, one: Intent, usd: str) -> Receipt:
        receipt = msgspec.structs.replace(closed(guided()), id=one.id, cost_usd=Decimal(usd))
        self.store.put(receipt)
        return receipt

    async def intents(self) -> list[set[str]]:
        """Return the ids of requests under way in each slice."""
        keys = [self.keys.intents(name, self.process_id) for name in slice_names("acme", self.slices)]
        return [{raw.decode() for raw in await self.redis.hkeys(key)} for key in keys]

    async def spent(self, scope: Scope) -> tuple[Decimal, Decimal]:
        """Return the spent and the reserved amount of a budget over all slices."""
        (balance,) = await self.budgets.read([Account("acme", scope, self.slices)])
        return balance.spent_usd, balance.reserved_usd


@asynccontextmanager
async def sliced_process(
    url: str,
    keys: RedisKeys | None = None,
    process_id: str = "ann",
    *,
    slices: int = SLICES,
    timeout_s: float = 5.0,
    keep_s: float = 0.0,
) -> AsyncIterator[SlicedProcess]:
    """Run a process that tries another slice first for each request, unless `keep_s` is set."""
    keys = keys or RedisKeys(f"t{secrets.token_hex(6)}")
    part = SlicedProcess(url, keys, process_id, slices=slices, timeout_s=timeout_s, keep_s=keep_s)
    part.tasks.keep("redis", part.client.watch())
    part.tasks.keep("receipts", part.store.run())
    try:
        yield part
    finally:
        await part.tasks.close()
        await part.client.close()
        await part.redis.aclose()


async def admitted(part: SlicedProcess, *scopes: Scope, **more: Any) -> AdmissionVerdict:
    """Return the verdict on a request that is admitted."""
    verdict = await part.ask(*scopes, **more)
    assert verdict is not None
    assert verdict.refusal is None
    return verdict


async def refused(part: SlicedProcess, *scopes: Scope, **more: Any) -> Refusal:
    """Return the refusal of a request."""
    verdict = await part.ask(*scopes, **more)
    assert verdict is not None
    assert verdict.refusal is not None
    return verdict.refusal
