"""The circuit breaker with a clock of the test."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gateway.engines.breaker
from gateway.engines.breaker import Breaker, BreakerCall, BreakerRule

if TYPE_CHECKING:
    from collections.abc import Callable

_ids = itertools.count()
RULE = BreakerRule(failures=3, cooldown_s=1.0, max_cooldown_s=5.0)


def breaker(rule: BreakerRule = RULE) -> Breaker:
    """Return a breaker with cooldowns exactly as long as in the rule, the middle of the random range."""
    return Breaker(rule, draw=lambda: 0.5)


def fail(one: Breaker, now: float = 0.0, tenant: str = "a", request: str = "", *, connected: bool = True) -> bool:
    """Make a call fail. Each call belongs to another request unless one is named."""
    return one.failed(one.start_call(tenant, request or f"request-{next(_ids)}", now), now, connected=connected)


def opened(at: float = 0.0, *, connected: bool = True) -> Breaker:
    one = breaker()
    assert [fail(one, at, connected=connected) for _ in range(3)] == [False, False, True]
    return one


@pytest.mark.parametrize("connected", [True, False])
def test_consecutive_failures_open_the_circuit(*, connected: bool) -> None:
    one = opened(10.0, connected=connected)
    assert (one.state(10.9), one.refuses_for_s("a", 10.4)) == ("open", pytest.approx(0.6))


@pytest.mark.parametrize("connected", [True, False])
def test_a_success_between_failures_resets_the_count(*, connected: bool) -> None:
    one = breaker()
    for failed in (True, True, False, True, True):
        if failed:
            assert not fail(one, connected=connected)
        else:
            assert not one.succeeded()
    assert one.state(0) == "closed"


@pytest.mark.parametrize("connected", [True, False])
def test_after_the_rest_one_call_is_the_trial_and_the_others_wait_for_its_outcome(*, connected: bool) -> None:
    one = opened(connected=connected)
    assert (one.state(1.0), one.refuses_for_s("a", 1.0)) == ("half_open", 0)
    one.start_call("a", "trial", 1.0)
    assert one.refuses_for_s("a", 1.0) > 0


def test_a_trial_that_hangs_holds_the_others_no_longer_than_one_cooldown() -> None:
    """The duration of its request is unknown."""
    one = opened(connected=False)
    one.start_call("a", "slow", 1.0)
    assert one.refuses_for_s("b", 1.9) > 0
    assert one.refuses_for_s("b", 2.0) == 0


@pytest.mark.parametrize("connected", [True, False])
def test_a_successful_trial_closes_the_circuit(*, connected: bool) -> None:
    one = opened(connected=connected)
    one.start_call("a", "trial", 1.0)
    assert one.succeeded()
    assert (one.state(1.0), one.refuses_for_s("a", 1.0)) == ("closed", 0)
    assert not fail(one, 1.0, connected=connected), "the count starts anew"


@pytest.mark.parametrize("connected", [True, False])
def test_each_trial_that_fails_doubles_the_rest_up_to_the_longest(*, connected: bool) -> None:
    one, now, pauses = opened(connected=connected), 0.0, []
    for _ in range(4):
        now += one.refuses_for_s("a", now)
        assert fail(one, now, connected=connected)
        pauses.append(one.refuses_for_s("a", now))
    assert pauses == pytest.approx([2, 4, 5, 5])


@pytest.mark.parametrize("connected", [True, False])
def test_a_canceled_trial_allows_another_trial(*, connected: bool) -> None:
    one = opened(connected=connected)
    one.abandoned(one.start_call("a", "trial", 1.0))
    assert one.refuses_for_s("a", 1.0) == 0
    assert one.state(1.0) == "half_open"


def test_earlier_calls_do_not_affect_the_trial() -> None:
    """Earlier calls may fail or be canceled while the trial is in flight."""
    one = breaker()
    old = [one.start_call("a", str(number), 0) for number in range(5)]
    for call in old[:3]:
        one.failed(call, 0, connected=True)
    assert one.start_call("a", "trial", 1.0).tenant_trial
    assert not one.failed(old[3], 1.0, connected=True)
    one.abandoned(old[4])
    assert one.refuses_for_s("a", 1.0) > 0


def test_a_retry_after_is_respected_and_needs_no_trial() -> None:
    one = breaker()
    one.pause("a", 0, 2.5)
    assert (one.state(0.9), one.refuses_for_s("a", 0.9)) == ("open", pytest.approx(1.6))
    assert (one.state(2.5), one.start_call("a", "r", 2.5)) == ("closed", BreakerCall("a", "r"))


def test_during_a_pause_one_call_per_second_is_a_trial() -> None:
    one = breaker()
    one.pause("a", 0, 20)
    passed = []
    for tenth in range(1, 40):
        now = tenth / 10
        if one.refuses_for_s("a", now) == 0:
            passed.append(now)
            one.abandoned(one.start_call("a", "r", now))
            one.pause("a", now, 20)
    assert passed == [1.0, 2.0, 3.0]
    assert one.refuses_for_s("a", 3.9) == pytest.approx(19.1), "each trial renewed the pause"


@pytest.mark.parametrize("whole", [True, False])
def test_the_success_of_a_trial_ends_the_pause_of_its_tenant_only(*, whole: bool) -> None:
    """The first data of an answer is enough."""
    one = breaker()
    for tenant in "ab":
        one.pause(tenant, 0, 20)
    trial = one.start_call("a", "r", 1.0)
    if whole:
        one.succeeded(trial)
    else:
        one.started(trial)
    assert (one.state(1.1), one.refuses_for_s("a", 1.1)) == ("open", 0)
    one.start_call("b", "r", 1.1)
    assert one.refuses_for_s("b", 1.2) == pytest.approx(18.8)
    one.pause("a", 2.0, 20)
    one.succeeded(trial)
    assert one.refuses_for_s("a", 2.1) > 0, "a later pause"


def test_a_call_from_before_the_pause_does_not_end_it() -> None:
    one = breaker()
    earlier = one.start_call("a", "r", 0)
    one.pause("a", 1, 20)
    one.succeeded(earlier)
    assert one.refuses_for_s("a", 1.5) == 19.5


def test_the_state_is_closed_when_the_last_pause_has_ended() -> None:
    one = breaker()
    for tenant in "ab":
        one.pause(tenant, 0, 20)
    for tenant in "ab":
        one.succeeded(one.start_call(tenant, "r", 1.0))
    assert one.state(1.0) == "closed"


def test_the_pauses_of_many_tenants_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tenant that was paused last keeps its pause."""
    monkeypatch.setattr(gateway.engines.breaker, "_MAX_TENANTS", 3)
    one = breaker()
    for tenant in "abcade":
        one.pause(tenant, 0, 20)
    assert [one.refuses_for_s(tenant, 0.5) > 0 for tenant in "abcde"] == [True, False, False, True, True]


def test_a_retry_after_is_limited_to_a_minute() -> None:
    one = breaker()
    one.pause("a", 0, 86_400)
    assert one.refuses_for_s("a", 0) == 60


def test_a_pause_that_one_tenant_met_holds_no_other() -> None:
    """Providers answer 429 with `Retry-After` to a single large request, so one caller can cause it."""
    one = breaker()
    one.pause("a", 0, 60)
    one.pause("a", 0.5, 60)
    assert (one.refuses_for_s("a", 0.5), one.refuses_for_s("b", 0.5)) == (60, 0)
    assert one.state(1) == "open"


def test_pauses_that_several_tenants_met_hold_no_other() -> None:
    one = breaker()
    for tenant in "abc":
        one.pause(tenant, 0, 60)
    assert [one.refuses_for_s(tenant, 0.5) for tenant in "abcd"] == [59.5, 59.5, 59.5, 0]


def test_a_suspension_holds_all_until_a_probe_succeeds() -> None:
    one = breaker()
    one.suspend(0)
    assert (one.state(30), one.refuses_for_s("a", 30)) == ("open", 30)
    one.probe_succeeded(31)
    assert (one.state(31), one.refuses_for_s("a", 31)) == ("closed", 0)


def test_a_suspension_ends_by_itself_if_no_probe_renews_it() -> None:
    """The probes may fail for another reason by then."""
    one = breaker()
    one.suspend(0)
    one.suspend(50)
    assert [one.refuses_for_s("a", now) for now in (50, 60, 110)] == [60, 50, 0]


def test_a_probe_does_not_end_a_pause_that_the_engine_requested() -> None:
    one = breaker()
    one.pause("a", 0, 10)
    one.probe_succeeded(0.5)
    assert one.refuses_for_s("a", 0.5) == 9.5


@pytest.mark.parametrize("now", [0.2, 30.0])
def test_a_successful_probe_closes_the_circuit_after_connection_failures(now: float) -> None:
    """No later call is a trial for which others wait."""
    one = opened(connected=False)
    one.probe_succeeded(now)
    assert not one.start_call("a", "first", now).engine_trial
    assert (one.state(now), one.refuses_for_s("a", now), one.refuses_for_s("b", now)) == ("closed", 0, 0)


def test_a_successful_probe_makes_the_trial_of_a_tenant_due() -> None:
    """A server whose model hangs may answer probes."""
    one = opened()
    one.probe_succeeded(0.2)
    assert (one.state(0.2), one.refuses_for_s("a", 0.2)) == ("half_open", 0)


def test_cooldowns_differ_between_processes() -> None:
    """With equal cooldowns, all processes would start their trials at the same time."""
    pauses = []
    for drawn in (0.0, 1.0):
        one = Breaker(RULE, draw=lambda drawn=drawn: drawn)
        for _ in range(3):
            fail(one)
        pauses.append(one.refuses_for_s("a", 0))
    assert pauses == pytest.approx([0.75, 1.25])


# Failures of several tenants.


def test_connection_failures_of_one_tenant_open_it_for_all() -> None:
    """Without a connection no request can be the cause."""
    assert opened(connected=False).refuses_for_s("b", 0.5) > 0


def test_other_failures_of_one_tenant_refuse_that_tenant_alone() -> None:
    one = opened()
    assert one.refuses_for_s("a", 0.5) > 0
    assert one.refuses_for_s("b", 0.5) == 0


def test_one_request_that_fails_again_and_again_opens_nothing() -> None:
    """The request may be the only one that fails."""
    one = breaker()
    assert not any(fail(one, request="the same") for _ in range(50))
    assert fail(one, request="another")


def test_where_several_tenants_fail_each_is_refused_after_one_failure_of_its_own() -> None:
    """With several tenants, the engine is the likely cause, and there may be many tenants."""
    one = breaker()
    for tenant in ("a", "b"):
        assert not fail(one, tenant=tenant)
    assert fail(one, tenant="c")
    assert one.refuses_for_s("c", 0.5) > 0
    assert one.refuses_for_s("d", 0.5) == 0
    assert fail(one, tenant="d")


def test_a_success_of_one_tenant_closes_the_circuits_of_all() -> None:
    """The engine works, so the requests of the other tenants cause their failures."""
    one = opened()
    assert one.succeeded()
    assert one.refuses_for_s("a", 0.5) == 0


def test_a_refused_request_closes_no_other_circuit() -> None:
    """A rejection does not show that the engine answers valid requests."""
    one = opened()
    for _ in range(2):
        fail(one, tenant="b")
    one.refused(one.start_call("b", "bad", 0.5))
    assert one.refuses_for_s("a", 0.5) > 0
    assert one.refuses_for_s("b", 0.5) == 0


def test_a_bad_request_as_trial_of_its_tenant_postpones_no_other_tenants_trial() -> None:
    one = breaker()
    for tenant in ("a", "b", "a", "b"):
        fail(one, tenant=tenant)
    for now in (1.0, 3.0, 7.0):
        fail(one, now, tenant="a")
    assert one.refuses_for_s("a", 7.5) > 0
    assert one.refuses_for_s("b", 7.5) == 0


def test_a_reply_of_any_kind_ends_connection_failures() -> None:
    one = opened(connected=False)
    fail(one, 1.0, tenant="b", connected=True)
    assert one.refuses_for_s("a", 1.0) == 0


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["succeeded", "failed", "unconnected", "refused", "abandoned", "started", "probe"]),
        st.sampled_from("abc"),
        st.integers(0, 3),
        st.sampled_from([0.0, 0.1, 1.0, 6.0]),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(EVENTS)
def test_failures_of_one_tenant_reject_no_other_tenant(
    events: list[tuple[str, str, int, float]],
) -> None:
    """A refusal requires a failure of the tenant's own, or an engine that accepts no connection."""
    one, now, unconnected, own = breaker(), 0.0, 0, {"a": 0, "b": 0, "c": 0}
    for kind, tenant, request, passed in events:
        now += passed
        if kind != "probe" and one.refuses_for_s(tenant, now) > 0:
            continue
        meet(one, kind, tenant, str(request), now)
        if kind == "unconnected":
            unconnected += 1
        elif kind not in {"abandoned", "probe"}:
            unconnected = 0
        if kind == "failed":
            own[tenant] += 1
        elif kind == "refused":
            own[tenant] = 0
        elif kind == "succeeded":
            own = dict.fromkeys(own, 0)
        if unconnected < RULE.failures:
            assert all(failures or one.refuses_for_s(other, now) == 0 for other, failures in own.items())
            assert any(own.values()) or one.state(now) == "closed"
    later = now + 3 * RULE.max_cooldown_s
    assert all(one.refuses_for_s(tenant, later) == 0 for tenant in own)


def meet(one: Breaker, kind: str, tenant: str, request: str, now: float) -> None:
    """Start a call and report its outcome, or report a probe."""
    if kind == "probe":
        one.probe_succeeded(now)
        return
    call = one.start_call(tenant, request, now)
    reports: dict[str, Callable[[], object]] = {
        "succeeded": one.succeeded,
        "failed": lambda: one.failed(call, now, connected=True),
        "unconnected": lambda: one.failed(call, now, connected=False),
        "refused": lambda: one.refused(call),
        "started": lambda: one.started(call),
        "abandoned": lambda: one.abandoned(call),
    }
    reports[kind]()


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), st.booleans())
def test_an_engine_that_fails_at_everything_opens_the_circuit_for_every_tenant(
    failures: int, tenants: int, connected: bool
) -> None:
    """A single tenant suffices. Each tenant makes at most `failures` calls before."""
    one = breaker(BreakerRule(failures=failures, cooldown_s=1.0, max_cooldown_s=5.0))
    names = [f"tenant-{number}" for number in range(tenants)]
    made = dict.fromkeys(names, 0)
    for turn in range(failures + 1):
        for name in names:
            if not one.refuses_for_s(name, 0):
                made[name] += 1
                fail(one, tenant=name, request=f"{name}-{turn}", connected=connected)
    assert all(one.refuses_for_s(name, 0) > 0 for name in names)
    assert max(made.values()) <= failures
