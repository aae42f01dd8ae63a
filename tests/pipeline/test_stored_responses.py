"""Turns of tenants that read and write stored responses."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.errors import PreviousResponseNotFound, StoreUnavailable
from gateway.pipeline.admission import Slots
from gateway.pipeline.redis_responses import StoredResponse
from gateway.pipeline.stored_responses import MAX_TRANSFERS, StoredResponses
from gateway.policy.schema import TenantPolicy
from gateway.telemetry.metrics import Metrics


class Redis:
    """Stored responses that arrive when the test lets them."""

    def __init__(self) -> None:
        self.under_way: list[tuple[str, asyncio.Event]] = []
        self.known = True

    async def load(self, tenant: str, _: str) -> StoredResponse | None:
        if not self.known:
            return None
        arrives = asyncio.Event()
        self.under_way.append((tenant, arrives))
        await arrives.wait()
        return StoredResponse(b"{}", b"[]")

    async def save(self, tenant: str, response_id: str, *_: object) -> str:
        await self.load(tenant, response_id)
        return "stored"

    async def arrive(self) -> None:
        """Let the oldest one arrive."""
        self.under_way.pop(0)[1].set()
        await settled()

    @property
    def tenants(self) -> list[str]:
        return [tenant for tenant, _ in self.under_way]


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def policy(tenant: str) -> TenantPolicy:
    route = {"model": "chat", "mode": "student", "student": "small"}
    return TenantPolicy.model_validate({"tenant": tenant, "routes": [route], "stored_responses": {}})


def parts() -> tuple[Any, Redis, StoredResponses]:
    client: Any = SimpleNamespace(up=True)
    redis, metrics = Redis(), Metrics()
    responses: Any = redis
    return client, redis, StoredResponses(client, responses, Slots(100, "reads", metrics), metrics)


async def test_a_process_transfers_few_responses_at_once_and_tenants_take_turns() -> None:
    """A tenant that reads large responses neither blocks the event loop nor delays other tenants by its queue."""
    _, redis, store = parts()
    flood = [asyncio.ensure_future(store.find(policy("acme"), "resp_1")) for _ in range(50)]  # noqa: TID251
    await settled()
    assert redis.tenants == ["acme"] * MAX_TRANSFERS
    saved = asyncio.ensure_future(store.save(policy("globex"), "resp_2", StoredResponse(b"{}", b"[]")))  # noqa: TID251
    await settled()
    assert len(redis.tenants) == MAX_TRANSFERS
    await redis.arrive()
    await redis.arrive()
    assert sorted(redis.tenants) == ["acme"] * (MAX_TRANSFERS - 1) + ["globex"]
    while redis.under_way:
        await redis.arrive()
    assert await saved
    assert all([await one == StoredResponse(b"{}", b"[]") for one in flood])


async def test_the_error_for_an_unknown_previous_response_says_that_it_may_be_under_way() -> None:
    """A client knows the id from the first event of a stream, and the response is stored at its end."""
    _, redis, store = parts()
    redis.known = False
    with pytest.raises(PreviousResponseNotFound, match="not stored or is not complete: send the whole conversation"):
        await store.previous(policy("acme"), "resp_1")


async def test_after_redis_went_down_no_waiting_read_waits_for_it() -> None:
    client, redis, store = parts()
    reads = [asyncio.ensure_future(store.find(policy("acme"), "resp_1")) for _ in range(MAX_TRANSFERS + 10)]  # noqa: TID251
    await settled()
    client.up = False
    await redis.arrive()
    assert len(redis.under_way) == MAX_TRANSFERS - 1
    for read in reads[MAX_TRANSFERS:]:
        with pytest.raises(StoreUnavailable):
            await read
    while redis.under_way:
        await redis.arrive()
