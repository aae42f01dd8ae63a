"""The gauges of budgets show what Redis counts, and disappear while Redis is down."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec
import pytest_asyncio
from redis.asyncio import Redis

from gateway.accounting.budget_watch import BudgetMonitor
from gateway.accounting.budgets import Account, Budgets, Raise
from gateway.accounting.local_limits import LocalLimits
from gateway.accounting.scopes import tenant_scope
from gateway.accounting.slices import share_of
from gateway.config.limits import BudgetRule
from gateway.config.sections import Defaults
from gateway.policy.book import PolicySet
from gateway.policy.policies import Policies
from gateway.policy.schema import Route, TenantPolicy
from gateway.redis.client import RedisClient
from gateway.telemetry.gauges import BudgetFigures
from gateway.telemetry.metrics import Metrics
from tests.accounting.budget_fixture import BudgetFixture, budget
from tests.accounting.receipt_builders import candidate, intent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from gateway.accounting.scopes import Scope

ROUTES = (Route(model="chat", mode="student", student="small"),)
ACME = TenantPolicy(tenant="acme", routes=ROUTES, budget=BudgetRule(max_budget=Decimal(2)))
GLOBEX = TenantPolicy(tenant="globex", routes=ROUTES)
OWN = tenant_scope(ACME, Defaults())
assert OWN is not None


def watch(
    redis_url: str,
    budgets: Budgets,
    *policies: TenantPolicy,
    metrics: Metrics,
    defaults: Defaults | None = None,
    local: LocalLimits | None = None,
) -> BudgetMonitor:
    client = RedisClient(redis_url, timeout_s=5, metrics=metrics)
    return BudgetMonitor(
        client,
        budgets,
        Policies(PolicySet.of(policies), defaults=defaults or Defaults()),
        metrics,
        local or LocalLimits(lambda: 1, lambda: 0.0),
    )


def shown(metrics: Metrics, name: str) -> dict[str, float]:
    return {
        sample.labels["tenant"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == f"gkt_budget_{name}_usd"
    }


@pytest_asyncio.fixture
async def budgets_fixture(redis_url: str) -> AsyncIterator[BudgetFixture]:
    async with Redis.from_url(redis_url) as redis:
        yield BudgetFixture(redis)


async def test_limit_spent_and_left_are_those_of_redis(budgets_fixture: BudgetFixture, redis_url: str) -> None:
    """The remainder excludes reservations and includes a raise."""
    metrics, budgets = Metrics(), Budgets(budgets_fixture.redis, budgets_fixture.keys)
    monitor = watch(redis_url, budgets, ACME, GLOBEX, metrics=metrics)
    assert await monitor.read_budgets() == {"acme": BudgetFigures(2.0, 0.0, 2.0)}
    await budgets_fixture.ask("0.5", OWN)
    await budgets_fixture.settle(budgets_fixture.last, "0.25")
    await budgets_fixture.ask("0.75", OWN)
    assert await monitor.read_budgets() == {"acme": BudgetFigures(2.0, 0.25, 1.0)}
    (seconds, _) = await budgets_fixture.redis.time()
    await budgets.put_raise(Account("acme", OWN), Raise(Decimal(3), seconds + 60))
    assert await monitor.read_budgets() == {"acme": BudgetFigures(5.0, 0.25, 4.0)}


async def test_slices_are_added_up_and_learned_one_by_one(budgets_fixture: BudgetFixture, redis_url: str) -> None:
    local, policy = LocalLimits(lambda: 1, lambda: 0.0), ACME.model_copy(update={"redis_slices": 4})
    budgets = Budgets(budgets_fixture.redis, budgets_fixture.keys)
    monitor = watch(redis_url, budgets, policy, GLOBEX, metrics=Metrics(), local=local)
    part = share_of(OWN, 2, 4)
    one = msgspec.structs.replace(intent(), reserved_usd=Decimal("0.25"), slice=2)
    await budgets_fixture.tell(candidate(one, part))
    assert await monitor.read_budgets() == {"acme": BudgetFigures(2.0, 0.0, 1.75)}

    def fits(usd: str, number: int) -> bool:
        one = msgspec.structs.replace(intent(), reserved_usd=Decimal(usd), slice=number)
        return local.admit(candidate(one, part), [], asyncio.get_running_loop().time()).refusal is None

    assert [fits("0.13", 2), fits("0.12", 2), fits("0.25", 0), fits("0.01", 0)] == [False, True, True, False]


async def test_the_defaults_of_config_yaml_are_budgets_too(budgets_fixture: BudgetFixture, redis_url: str) -> None:
    defaults = Defaults(budget=BudgetRule(max_budget=Decimal(7)))
    monitor = watch(
        redis_url,
        Budgets(budgets_fixture.redis, budgets_fixture.keys),
        ACME,
        GLOBEX,
        metrics=Metrics(),
        defaults=defaults,
    )
    assert {tenant: one.limit_usd for tenant, one in (await monitor.read_budgets()).items()} == {
        "acme": 2.0,
        "globex": 7.0,
    }


async def test_tenants_above_the_limit_of_series_are_not_read(budgets_fixture: BudgetFixture, redis_url: str) -> None:
    many = [TenantPolicy(tenant=f"t{n}", routes=ROUTES, budget=BudgetRule(max_budget=Decimal(1))) for n in range(250)]
    monitor = watch(
        redis_url, Budgets(budgets_fixture.redis, budgets_fixture.keys), *many, metrics=Metrics(max_tenants=210)
    )
    assert set(await monitor.read_budgets()) == {f"t{n}" for n in range(210)}


async def test_series_exist_only_while_redis_answers(
    budgets_fixture: BudgetFixture, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, budgets = Metrics(), Budgets(budgets_fixture.redis, budgets_fixture.keys)
    running = asyncio.get_running_loop().create_task(watch(redis_url, budgets, ACME, metrics=metrics).run(0.01))
    while shown(metrics, "left") != {"acme": 2.0}:
        await asyncio.sleep(0.01)
    assert (shown(metrics, "limit"), shown(metrics, "spent")) == ({"acme": 2.0}, {"acme": 0.0})

    async def broken(_: object) -> list[object]:
        raise ConnectionError

    monkeypatch.setattr(budgets, "read", broken)
    while shown(metrics, "left"):
        await asyncio.sleep(0.01)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_local_limits_learn_the_remainders_of_budgets(budgets_fixture: BudgetFixture, redis_url: str) -> None:
    """Local limits learn the budgets of every tenant, and of the keys that this process used."""
    local, now_s = LocalLimits(lambda: 1, lambda: 0.0), asyncio.get_running_loop().time()
    used, other = budget("4", name="key:used"), budget("4", name="key:other")
    local.learn("acme", used, 0, now_s)
    monitor = watch(
        redis_url, Budgets(budgets_fixture.redis, budgets_fixture.keys), ACME, metrics=Metrics(), local=local
    )
    await budgets_fixture.ask("1", OWN, used)
    await monitor.read_budgets()
    await monitor.refresh()

    def fits(usd: str, scope: Scope) -> bool:
        one = msgspec.structs.replace(intent(), reserved_usd=Decimal(usd))
        return local.admit(candidate(one, scope), [], now_s).refusal is None

    assert fits("0.5", OWN)
    assert not fits("0.1", OWN)
    assert fits("1.5", used)
    assert not fits("0.1", used)
    assert not fits("0.1", other)
