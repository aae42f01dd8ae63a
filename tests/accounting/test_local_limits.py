"""Limits and budgets of one process while Redis is down."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec
import pytest

from gateway.accounting.local_limits import FRESH_S, LocalLimits
from gateway.accounting.redis_ledger import AdmissionRequest, Variant
from gateway.accounting.scopes import Scope
from tests.accounting.budget_fixture import budget
from tests.accounting.receipt_builders import intent

if TYPE_CHECKING:
    from gateway.accounting.verdict import AdmissionVerdict

DOLLAR = 10**12


def asks(usd: str, *scopes: Scope, tokens: int = 0, more: dict[int, str] | None = None) -> AdmissionRequest:
    """Return a request with that cost. `more` has the costs of other plans, by kind."""
    first = msgspec.structs.replace(intent(), reserved_usd=Decimal(usd), tokens=tokens)
    others = (
        Variant(kind, msgspec.structs.replace(first, reserved_usd=Decimal(max_usd)))
        for kind, max_usd in (more or {}).items()
    )
    return AdmissionRequest(scopes, (Variant(1, first), *others))


class DetachedProcess:
    """A process without Redis."""

    def __init__(self, fleet: int = 1, joined_s: float = 0.0) -> None:
        self.limits = LocalLimits(lambda: fleet, lambda: joined_s)
        self.now_s = 1000.0
        self.under_way: list[AdmissionRequest] = []

    def decide(self, candidate: AdmissionRequest) -> AdmissionVerdict:
        return self.limits.admit(candidate, self.under_way, self.now_s)

    def admits(self, candidate: AdmissionRequest) -> bool:
        return self.decide(candidate).refusal is None

    def back(self) -> None:
        """Let Redis recover and the fleet settle."""
        self.limits.recover(self.now_s)
        while self.limits.is_settling("acme", self.now_s):
            self.now_s += 1
        self.limits.recover(self.now_s)


@pytest.mark.parametrize(("fleet", "admitted"), [(1, 5), (2, 2), (5, 1), (6, 0)])
def test_a_fleet_may_use_half_of_the_remainder(fleet: int, admitted: int) -> None:
    """Ten requests would fit. All processes together admit at most five, each at its largest cost."""
    scope = budget("20")
    one = DetachedProcess(fleet)
    one.limits.learn("acme", scope, 10 * DOLLAR, one.now_s)
    assert [one.admits(asks("1", scope)) for _ in range(10)] == [True] * admitted + [False] * (10 - admitted)


@pytest.mark.parametrize(("joined_ago_s", "admitted"), [(2.9, False), (3.0, True)])
def test_a_process_that_the_others_may_not_know_yet_spends_nothing(joined_ago_s: float, admitted: bool) -> None:
    scope = budget("20")
    one = DetachedProcess(fleet=3, joined_s=1000.0 - joined_ago_s)
    one.limits.learn("acme", scope, 10 * DOLLAR, one.now_s)
    assert one.admits(asks("1", scope)) is admitted


def test_the_cost_of_a_request_replaces_its_reservation() -> None:
    scope = budget("20")
    one = DetachedProcess()
    one.limits.learn("acme", scope, 4 * DOLLAR, one.now_s)
    first = asks("2", scope)
    assert one.admits(first)
    assert not one.admits(asks("1", scope))
    one.limits.settle(first.id, Decimal("0.5"))
    one.limits.settle(first.id, Decimal(0))  # a second call changes nothing
    assert one.admits(asks("1.5", scope))
    assert not one.admits(asks("0.000001", scope))


def test_an_unknown_or_old_remainder_admits_only_free_requests() -> None:
    scope = budget("20")
    one = DetachedProcess()
    assert not one.admits(asks("0.000001", scope))
    assert one.admits(asks("0", scope))
    old = DetachedProcess()
    old.limits.learn("acme", scope, 10 * DOLLAR, old.now_s - FRESH_S - 1)
    assert not old.admits(asks("1", scope))


def test_a_remainder_does_not_age_while_redis_is_away() -> None:
    scope = budget("20")
    one = DetachedProcess()
    one.limits.learn("acme", scope, 10 * DOLLAR, one.now_s)
    assert one.admits(asks("1", scope))
    one.now_s += 10 * FRESH_S
    assert one.admits(asks("1", scope))


def test_the_tenants_and_the_keys_budget_both_need_room() -> None:
    tenant, key = budget("20"), budget("5", name="key:only")
    one = DetachedProcess()
    one.limits.learn("acme", tenant, 20 * DOLLAR, one.now_s)
    one.limits.learn("acme", key, 2 * DOLLAR, one.now_s)
    assert one.admits(asks("1", tenant, key))
    refused = one.decide(asks("1", tenant, key))
    assert refused.refusal is not None
    assert (refused.refusal.limit, refused.refusal.scope) == ("budget", 2)


def test_a_budget_that_wants_the_student_alone_takes_the_cheaper_answer() -> None:
    scope = budget("20", on_hard="student_only")
    one = DetachedProcess()
    one.limits.learn("acme", scope, 2 * DOLLAR, one.now_s)
    assert one.decide(asks("2", scope, more={3: "0.5"})).variant == 3
    assert one.decide(asks("0.5", scope, more={3: "0.1"})).variant == 1


def test_only_usage_unknown_to_redis_is_counted_locally() -> None:
    """Redis goes up and down. The new remainder includes what Redis counts, and nothing else."""
    scope = budget("20")
    one = DetachedProcess()
    one.limits.learn("acme", scope, 10 * DOLLAR, one.now_s)
    counted, uncounted = asks("2", scope), asks("2", scope)
    assert one.admits(counted)
    assert one.admits(uncounted)
    one.limits.release([counted.id])
    one.back()
    one.limits.learn("acme", scope, 8 * DOLLAR, one.now_s)
    assert one.admits(asks("2", scope))
    assert not one.admits(asks("0.5", scope))


@pytest.mark.parametrize(("away_s", "settles_s"), [(0.5, 2.5), (60.0, 10.0)])
def test_a_process_keeps_its_share_until_the_others_have_reported_their_spending(
    away_s: float, settles_s: float
) -> None:
    scope = budget("20")
    one = DetachedProcess()
    one.limits.learn("acme", scope, 10 * DOLLAR, one.now_s)
    spent = asks("4", scope)
    assert one.admits(spent)
    one.now_s += away_s
    one.limits.release([spent.id])
    one.limits.recover(one.now_s)
    one.limits.learn("acme", scope, 6 * DOLLAR, one.now_s)
    assert one.limits.is_settling("acme", one.now_s + settles_s - 0.1)
    assert not one.limits.is_settling("acme", one.now_s + settles_s)
    assert not one.admits(asks("2", scope))
    assert one.admits(asks("1", scope))
    one.limits.fail()
    assert not one.limits.is_settling("acme", one.now_s), "Redis is away again"
    one.limits.recover(one.now_s + 1)
    assert one.limits.is_settling("acme", one.now_s + 1 + settles_s - 0.1)


def test_lost_receipts_count_until_redis_returns() -> None:
    scope = budget("20")
    one = DetachedProcess()
    one.limits.learn("acme", scope, 2 * DOLLAR, one.now_s)
    lost = asks("1", scope)
    assert one.admits(lost)
    one.limits.settle(lost.id, Decimal(1))
    one.limits.lost(lost.id)
    assert not one.admits(asks("1", scope))
    one.back()
    assert one.admits(asks("1", scope))


def test_limits_a_minute_are_divided_by_the_fleet_and_at_least_one() -> None:
    for fleet, admitted in ((1, 4), (2, 2), (9, 1)):
        one = DetachedProcess(fleet)
        scope = Scope("tenant", 4, 0, 0)
        assert [one.admits(asks("1", scope)) for _ in range(6)] == [True] * admitted + [False] * (6 - admitted)
        one.now_s += 62
        assert one.admits(asks("1", scope))


def test_tokens_a_minute_are_counted_as_estimated() -> None:
    one, scope = DetachedProcess(2), Scope("tenant", 0, 100, 0)
    assert one.admits(asks("0", scope, tokens=40))
    refused = one.decide(asks("0", scope, tokens=20)).refusal
    assert refused is not None
    assert (refused.limit, refused.maximum, refused.used, refused.need) == ("tokens", "50", "40", "20")
    assert 0 < refused.retry_us <= 62_000_000


def test_requests_in_flight_at_the_outage_use_slots_and_no_budget() -> None:
    scope = msgspec.structs.replace(budget("20"), parallel=2)
    one = DetachedProcess()
    one.limits.learn("acme", scope, 2 * DOLLAR, one.now_s)
    running = asks("100", scope)
    one.under_way = [running]
    assert one.admits(asks("0.5", scope))
    refused = one.decide(asks("0.1", scope)).refusal
    assert refused is not None
    assert refused.limit == "parallel"
    one.limits.settle(running.id, Decimal(100))
    assert one.admits(asks("0.5", scope))


def test_nothing_is_kept_of_an_outage_that_is_over() -> None:
    scope = msgspec.structs.replace(budget("20"), rpm=100, parallel=100)
    one = DetachedProcess()
    one.limits.learn("acme", scope, 20 * DOLLAR, one.now_s)
    ended, running = asks("1", scope), asks("1", scope)
    assert one.admits(ended)
    assert one.admits(running)
    one.limits.settle(ended.id, Decimal(1))
    one.limits.release([ended.id, running.id])
    one.back()
    assert (one.limits._holds, one.limits._uses, one.limits._outages) == ({}, {}, {})
    without = DetachedProcess()
    plain = asks("1", Scope("tenant", 5, 0, 0))
    assert without.admits(plain)
    without.limits.settle(plain.id, Decimal(1))
    assert without.limits._holds == {}, "a limit without a budget needs no hold"


def test_each_value_of_a_label_has_its_own_remainder() -> None:
    """A value without a known remainder spends nothing, and the tenant's budget applies as well."""
    tenant, a, b = budget("20"), budget("20", name="label:team=a"), budget("20", name="label:team=b")
    one = DetachedProcess()
    one.limits.learn("acme", tenant, 10 * DOLLAR, one.now_s)
    one.limits.learn("acme", a, 4 * DOLLAR, one.now_s)
    assert [one.admits(asks("1", tenant, a)) for _ in range(3)] == [True, True, False]
    assert not one.admits(asks("1", tenant, b))
    assert [one.admits(asks("1", tenant)) for _ in range(4)] == [True, True, True, False]
