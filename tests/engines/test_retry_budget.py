"""The number of retries of a tenant at an engine."""

from __future__ import annotations

from gateway.engines.retry_budget import RetryBudgets


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def taken(budgets: RetryBudgets, engine: str = "small", tenant: str = "acme") -> int:
    """Take all remaining retries, and return their number."""
    count = 0
    while budgets.try_acquire(engine, tenant):
        count += 1
    return count


def test_without_a_success_there_is_the_floor() -> None:
    budgets = RetryBudgets(Clock())
    assert taken(budgets) == 10
    assert taken(budgets) == 0


def test_successes_add_their_share() -> None:
    budgets = RetryBudgets(Clock())
    for _ in range(100):
        budgets.succeeded("small", "acme")
    assert taken(budgets) == 10 + 20


def test_successes_and_retries_of_long_ago_do_not_count() -> None:
    clock = Clock()
    budgets = RetryBudgets(clock)
    for _ in range(1000):
        budgets.succeeded("small", "acme")
    assert taken(budgets) == 210
    clock.now = 600.0
    assert taken(budgets) == 10


def test_retry_budgets_are_separate_by_tenant_and_engine() -> None:
    budgets = RetryBudgets(Clock())
    assert taken(budgets) == 10
    assert taken(budgets, tenant="globex") == 10
    assert taken(budgets, engine="big") == 10


def test_the_retries_of_all_tenants_at_a_dead_engine_do_not_grow_with_their_number() -> None:
    budgets = RetryBudgets(Clock())
    assert sum(taken(budgets, tenant=str(number)) for number in range(100)) == 20


def test_the_share_that_a_tenant_earned_is_its_own() -> None:
    """Other tenants that fail cannot use up the share."""
    budgets = RetryBudgets(Clock())
    for _ in range(100):
        budgets.succeeded("small", "acme")
    assert sum(taken(budgets, tenant=str(number)) for number in range(100)) == 20 + 20
    assert taken(budgets) == 20


def test_the_tenants_that_are_remembered_are_bounded() -> None:
    budgets = RetryBudgets(Clock())
    for number in range(10_100):
        budgets.succeeded("small", str(number))
    assert len(budgets._recent) == 10_000
