"""Requests that slices refuse cost other requests little."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from gateway.accounting.budgets import LimitUsage
from gateway.redis.keys import slice_names
from tests.accounting.budget_fixture import budget
from tests.accounting.counts import Counted, tenant
from tests.accounting.sliced_process import SLICES, SlicedProcess, admitted, refused, sliced_process
from tests.batching.process import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from gateway.accounting.budgets import Account, Balance
    from gateway.accounting.redis_ledger import AdmissionRequest
    from gateway.accounting.store import Admitted
    from gateway.config.limits import OnRedisFailure

pytestmark = pytest.mark.process


@pytest_asyncio.fixture
async def ann(redis_url: str) -> AsyncIterator[SlicedProcess]:
    async with sliced_process(redis_url) as part:
        yield part


async def test_a_request_above_a_limit_of_requests_asks_one_slice(
    ann: SlicedProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal has the limit of all slices. A higher limit applies at once."""
    scope = tenant(rpm=8)
    verdicts = [await ann.ask(scope) for _ in range(8)]
    assert all(verdict is not None and verdict.refusal is None for verdict in verdicts)
    before = await refused(ann, scope)
    admit, calls = ann.store.admit, 0

    async def counted(candidate: AdmissionRequest, *, on_failure: OnRedisFailure) -> Admitted:
        nonlocal calls
        calls += 1
        return await admit(candidate, on_failure=on_failure)

    monkeypatch.setattr(ann.store, "admit", counted)
    for _ in range(10):
        again = await refused(ann, scope)
        assert (again.limit, again.maximum, again.used, again.slices) == ("requests", "8", "8", SLICES)
        assert 0 < again.retry_us <= before.retry_us
    assert calls == 10
    higher = tenant(rpm=12)
    for _ in range(4):
        await admitted(ann, higher)
    await refused(ann, higher)


async def test_a_slice_is_asked_again_when_its_limit_has_room(ann: SlicedProcess) -> None:
    """The requests of two slices are a minute old in two seconds. The other slices remain full."""
    scope, counted = tenant(rpm=8), Counted(ann.redis)
    counted.keys = ann.keys
    for _ in range(8):
        await admitted(ann, scope)
    for name in slice_names("acme", 2):
        await counted.grow_older(scope, 58, name)
    assert (await refused(ann, scope)).retry_us < 3_000_000

    async def is_free() -> bool:
        (used,) = await LimitUsage(ann.redis, ann.keys, 10).read("acme", [scope], SLICES)
        return used.requests == 4

    await until(is_free)
    for _ in range(4):
        await admitted(ann, scope)
    assert (await refused(ann, scope)).retry_us > 30_000_000


async def test_events_of_many_budgets_use_one_connection(ann: SlicedProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels may have many budgets that end together. Exchanges of all tenants need connections meanwhile."""
    read, running, most = ann.budgets.read, 0, 0

    async def counted(accounts: Sequence[Account]) -> list[Balance]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return await read(accounts)
        finally:
            running -= 1

    monkeypatch.setattr(ann.budgets, "read", counted)
    scopes = [budget("0.04", name=f"label:user={number}") for number in range(50)]
    await asyncio.gather(*(refused(ann, scope, usd="0.02") for scope in scopes))
    await until(lambda: len(ann.events) == len(scopes))
    assert {one.scope for one in ann.events} == set(scopes)
    assert most == 1
