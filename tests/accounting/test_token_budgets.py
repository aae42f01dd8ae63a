"""Key ids of tokens with a budget are registered in a real Redis, until the end of the period."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from redis.exceptions import RedisError

from gateway.accounting import token_budgets
from gateway.accounting.scopes import Scope, key_scope
from gateway.accounting.token_budgets import TokenBudgets
from gateway.config.sections import Defaults
from gateway.policy.identities import IdentityRule
from gateway.policy.schema import TenantPolicy
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DAY_S = 86_400
MONTHLY = {"max_budget": 5}
ROLLING = {"max_budget": 5, "budget_duration": "1d", "calendar_aligned": False}


class World:
    """A process with a clock that a test may move."""

    def __init__(self, redis: RedisClient) -> None:
        self.redis, self.keys, self.ahead_s = redis, RedisKeys(f"t{secrets.token_hex(6)}"), 0.0
        self.budgets = TokenBudgets(redis, self.keys, lambda: time.time() + self.ahead_s)

    async def listed(self, tenant: str = "acme") -> list[str]:
        return (await self.budgets.listed([tenant]))[tenant]

    async def ttl_s(self) -> int:
        return int(await self.redis.commands.ttl(self.keys.token_budgets("acme")))


@pytest_asyncio.fixture
async def world(redis_url: str) -> AsyncIterator[World]:
    redis = RedisClient(redis_url, timeout_s=5.0, metrics=Metrics())
    yield World(redis)
    await redis.close()


def scope(key_id: str, budget: dict[str, Any] | None = MONTHLY) -> Scope:
    rule = IdentityRule.model_validate({"id": "staff", "issuer": "corp", "key": "sub", "budget": budget})
    routes = [{"model": "chat", "mode": "student", "student": "s"}]
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": routes, "key_limits": {"rpm_limit": 1}})
    found = key_scope(policy, rule.entry(key_id), Defaults())
    assert found is not None
    return found


async def test_a_used_budget_of_a_token_is_listed_for_its_tenant(world: World) -> None:
    world.budgets.record("acme", [scope("staff:ada"), scope("staff:grace")])
    assert await world.listed() == [], "nothing waits for Redis on the path of a request"
    await world.budgets.register()
    assert sorted(await world.listed()) == ["staff:ada", "staff:grace"]
    assert await world.listed("globex") == []
    assert 0 < await world.ttl_s() <= 31 * DAY_S


async def test_keys_and_callers_without_a_budget_are_not_registered(world: World) -> None:
    world.budgets.record("acme", [scope("prod"), scope("staff:ada", None)])
    await world.budgets.register()
    assert await world.redis.commands.exists(world.keys.token_budgets("acme")) == 0


async def test_a_key_id_is_registered_once_in_a_while_and_again_in_the_next_period(world: World) -> None:
    world.budgets.record("acme", [scope("staff:ada", ROLLING)])
    await world.budgets.register()
    await world.redis.commands.delete(world.keys.token_budgets("acme"))
    world.budgets.record("acme", [scope("staff:ada", ROLLING)])
    await world.budgets.register()
    assert await world.listed() == []
    world.ahead_s = 3600.0
    world.budgets.record("acme", [scope("staff:ada", ROLLING)])
    await world.budgets.register()
    assert await world.listed() == ["staff:ada"]


async def test_a_key_id_leaves_the_list_at_the_end_of_its_period(world: World) -> None:
    world.ahead_s = -DAY_S - 60.0
    world.budgets.record("acme", [scope("staff:gone", ROLLING)])
    world.ahead_s = 0.0
    world.budgets.record("acme", [scope("staff:ada", ROLLING)])
    await world.budgets.register()
    assert await world.listed() == ["staff:ada"]
    assert await world.redis.commands.zcard(world.keys.token_budgets("acme")) == 1


async def test_a_raise_keeps_a_key_id_listed(world: World) -> None:
    until_s = int(time.time()) + 300 * DAY_S
    await world.budgets.keep("acme", "staff:ada", until_s)
    world.budgets.record("acme", [scope("staff:ada", ROLLING)])
    await world.budgets.register()
    key = world.keys.token_budgets("acme")
    assert await world.redis.commands.zscore(key, "staff:ada") == until_s
    assert await world.ttl_s() > 299 * DAY_S


async def test_a_tenant_has_a_bounded_number_of_key_ids(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_budgets, "MAX_LISTED", 3)
    await world.budgets.keep("acme", "staff:raised", int(time.time()) + 300 * DAY_S)
    for number in range(20):
        world.budgets.record("acme", [scope(f"staff:{number:02}")])
    await world.budgets.register()
    assert await world.listed() == ["staff:18", "staff:19", "staff:raised"], "those that end last stay"


async def test_a_failed_node_of_a_cluster_leaves_out_its_tenants_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.budgets.keep("acme", "staff:ada", int(time.time()) + DAY_S)
    await world.redis.commands.set(world.keys.token_budgets("globex"), "another type, so that reading it fails")
    monkeypatch.setattr(world.redis, "is_cluster", False)
    with pytest.raises(RedisError):
        await world.budgets.listed(["acme", "globex"])
    monkeypatch.setattr(world.redis, "is_cluster", True)
    assert await world.budgets.listed(["acme", "globex"]) == {"acme": ["staff:ada"]}
    monkeypatch.setattr(RedisClient, "is_up", lambda _, key: "acme" not in key)
    assert await world.budgets.listed(["acme", "initech"]) == {"initech": []}


async def test_recorded_key_ids_are_registered_in_the_background(world: World) -> None:
    tasks = BackgroundTasks()
    tasks.keep("token_budgets", world.budgets.run())
    try:
        world.budgets.record("acme", [scope("staff:ada")])
        while await world.listed() != ["staff:ada"]:
            pass
    finally:
        await tasks.close()
