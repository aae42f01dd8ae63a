"""The circuit breaker with a clock of the test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.engines.breaker import Breaker, BreakerRule

if TYPE_CHECKING:
    from collections.abc import Callable

RULE = BreakerRule(failures=3, cooldown_s=1.0)


def breaker(rule: BreakerRule = RULE) -> Breaker:
    """Return a breaker with cooldowns exactly as long as in the rule, the middle of the random range."""
    return Breaker(rule, draw=lambda: 0.5)


def fail(one: Breaker, now: float = 0.0, tenant: str = "a", *, connected: bool = True) -> bool:
    """Make a call fail. Return whether calls of the tenant are refused then."""
    call = one.start_call(tenant, now)
    if connected:
        one.failed(call, now)
    else:
        one.unconnected(call, now)
    return one.refuses_for_s(tenant, now) > 0


def opened(at: float = 0.0, *, connected: bool = True) -> Breaker:
    one = breaker()
    assert [fail(one, at, connected=connected) for _ in range(3)] == [False, False, True]
    return one


@pytest.mark.parametrize("connected", [True, False])
def test_consecutive_failures_open_the_circuit(*, connected: bool) -> None:
    one = opened(10.0, connected=connected)
    assert one.refuses_for_s("a", 10.4) == pytest.approx(0.6)


@pytest.mark.parametrize("connected", [True, False])
def test_a_success_between_failures_resets_the_count(*, connected: bool) -> None:
    one = breaker()
    for failed in (True, True, False, True, True):
        if failed:
            assert not fail(one, connected=connected)
        else:
            one.succeeded(one.start_call("a", 0))


@pytest.mark.parametrize("connected", [True, False])
def test_after_the_cooldown_one_call_is_the_trial_and_the_others_wait_for_its_outcome(*, connected: bool) -> None:
    one = opened(connected=connected)
    assert one.refuses_for_s("a", 1.0) == 0
    one.start_call("a", 1.0)
    assert (one.cools_for_s("a", 1.0), one.tries_for_s("a", 1.0)) == (0, 1.0)


def test_a_trial_that_hangs_holds_the_others_no_longer_than_one_cooldown() -> None:
    """The duration of its request is unknown."""
    one = opened(connected=False)
    one.start_call("a", 1.0)
    assert one.refuses_for_s("b", 1.9) > 0
    assert one.refuses_for_s("b", 2.0) == 0


@pytest.mark.parametrize("connected", [True, False])
def test_a_successful_trial_closes_the_circuit(*, connected: bool) -> None:
    one = opened(connected=connected)
    one.succeeded(one.start_call("a", 1.0))
    assert one.is_closed_for("a", 1.0)
    assert not fail(one, 1.0, connected=connected), "the count starts anew"


@pytest.mark.parametrize("connected", [True, False])
def test_each_trial_that_fails_doubles_the_cooldown_up_to_the_longest(*, connected: bool) -> None:
    one, now, pauses = opened(connected=connected), 0.0, []
    for _ in range(6):
        now += one.refuses_for_s("a", now)
        assert fail(one, now, connected=connected)
        pauses.append(one.refuses_for_s("a", now))
    assert pauses == pytest.approx([2, 4, 8, 16, 30, 30])


@pytest.mark.parametrize("connected", [True, False])
def test_a_canceled_trial_allows_another_trial(*, connected: bool) -> None:
    one = opened(connected=connected)
    one.abandoned(one.start_call("a", 1.0))
    assert one.refuses_for_s("a", 1.0) == 0
    assert not one.is_closed_for("a", 1.0)


def test_earlier_calls_do_not_affect_the_trial() -> None:
    """Earlier calls may fail or be canceled while the trial is in flight."""
    one = breaker()
    old = [one.start_call("a", 0) for _ in range(5)]
    for call in old[:3]:
        one.failed(call, 0)
    one.start_call("a", 1.0)
    one.failed(old[3], 1.0)
    one.abandoned(old[4])
    assert one.tries_for_s("a", 1.0) == 1.0


def test_cooldowns_differ_between_processes() -> None:
    """With equal cooldowns, all processes would start their trials at the same time."""
    pauses = []
    for drawn in (0.0, 1.0):
        one = Breaker(RULE, draw=lambda drawn=drawn: drawn)
        for _ in range(3):
            fail(one)
        pauses.append(one.refuses_for_s("a", 0))
    assert pauses == pytest.approx([0.75, 1.25])


# Whom a failure affects.


@pytest.mark.parametrize("connected", [True, False])
def test_only_connection_failures_refuse_other_tenants(*, connected: bool) -> None:
    """Without a connection no request can be the cause."""
    one = opened(connected=connected)
    assert (one.refuses_for_s("b", 0.5) > 0) is not connected
    assert (one.state(0.5), one.paused_tenants(0.5)) == (("closed", 1) if connected else ("open", 0))
    assert one.state(1.0) == ("closed" if connected else "half_open")


def test_however_many_tenants_fail_another_one_passes() -> None:
    one = breaker()
    for tenant in "abcd":
        assert [fail(one, tenant=tenant) for _ in range(3)] == [False, False, True]
    assert one.paused_tenants(0) == 4
    assert one.is_closed_for("e", 0)


def test_a_success_of_one_tenant_closes_the_circuits_of_all() -> None:
    """The engine works."""
    one = opened()
    one.succeeded(one.start_call("b", 0.5))
    assert one.is_closed_for("a", 0.5)


def test_an_invalid_request_resets_the_count_of_its_tenant_only() -> None:
    """A rejection does not show that the engine answers valid requests."""
    one = opened()
    for _ in range(2):
        fail(one, tenant="b")
    one.rejected(one.start_call("b", 0.5))
    assert one.refuses_for_s("a", 0.5) > 0
    assert not fail(one, 0.5, tenant="b")


def test_the_first_data_ends_a_trial_and_is_no_success() -> None:
    """An engine that always breaks off midway would otherwise never be paused."""
    one = breaker()
    for expected in (False, False, True):
        call = one.start_call("a", 0)
        one.started(call)
        one.failed(call, 0)
        assert (one.refuses_for_s("a", 0) > 0) is expected
    one.started(one.start_call("a", 1.0))
    assert one.is_closed_for("a", 1.0)


def test_a_reply_of_any_kind_ends_connection_failures() -> None:
    one = opened(connected=False)
    fail(one, 1.0, tenant="b")
    assert one.is_closed_for("a", 1.0)


# Pauses that the engine requests.


def test_a_retry_after_is_respected_and_needs_no_trial() -> None:
    one = breaker()
    one.pause(one.start_call("a", 0), 0, 2.5)
    assert one.refuses_for_s("a", 0.9) == pytest.approx(1.6)
    assert one.is_closed_for("a", 2.5)
    assert not one.start_call("a", 2.5).is_trial


def test_during_a_pause_one_call_per_second_is_a_trial() -> None:
    one = breaker()
    one.pause(one.start_call("a", 0), 0, 20)
    passed = []
    for tenth in range(1, 40):
        now = tenth / 10
        if one.refuses_for_s("a", now) == 0:
            passed.append(now)
            one.pause(one.start_call("a", now), now, 20)
    assert passed == [1.0, 2.0, 3.0]
    assert one.refuses_for_s("a", 3.9) == pytest.approx(19.1), "each trial renewed the pause"


@pytest.mark.parametrize("whole", [True, False])
def test_the_success_of_a_trial_ends_the_pause_of_its_tenant_only(*, whole: bool) -> None:
    """The first data of an answer is enough."""
    one = breaker()
    for tenant in "ab":
        one.pause(one.start_call(tenant, 0), 0, 20)
    trial = one.start_call("a", 1.0)
    if whole:
        one.succeeded(trial)
    else:
        one.started(trial)
    assert (one.paused_tenants(1.1), one.is_closed_for("a", 1.1)) == (1, True)
    one.start_call("b", 1.1)
    assert one.refuses_for_s("b", 1.2) == pytest.approx(18.8)


def test_a_call_from_before_the_pause_does_not_end_it() -> None:
    one = breaker()
    earlier = one.start_call("a", 0)
    one.pause(one.start_call("a", 1), 1, 20)
    one.succeeded(earlier)
    assert one.refuses_for_s("a", 1.5) == 19.5


def test_a_retry_after_is_limited_to_a_minute() -> None:
    one = breaker()
    one.pause(one.start_call("a", 0), 0, 86_400)
    assert one.refuses_for_s("a", 0) == 60


def test_pauses_that_several_tenants_met_hold_no_other() -> None:
    """Providers answer 429 with `Retry-After` to a single large request, so one caller can cause it."""
    one = breaker()
    for tenant in "abc":
        one.pause(one.start_call(tenant, 0), 0, 60)
    assert [one.refuses_for_s(tenant, 0.5) for tenant in "abcd"] == [59.5, 59.5, 59.5, 0]
    assert (one.state(0.5), one.paused_tenants(0.5)) == ("closed", 3)


# Probes.


def test_failed_probes_refuse_all_tenants() -> None:
    """Like connection failures, and together with them."""
    one = breaker()
    fail(one, connected=False)
    one.probe_failed(0, asleep=False)
    assert one.state(0) == "closed"
    one.probe_failed(0, asleep=False)
    assert (one.state(0), one.refuses_for_s("b", 0)) == ("open", 1.0)
    one.probe_failed(0.9, asleep=False)
    assert one.state(1.0) == "half_open", "no later probe prolongs the cooldown"


def test_a_call_without_a_reply_leaves_the_circuit_for_all_open() -> None:
    """The engine accepts connections and hangs. The timeout of a call is no sign of life."""
    one = breaker()
    earlier = one.start_call("a", 0.0)
    for _ in range(3):
        one.probe_failed(0.0, asleep=False)
    one.failed(earlier, 0.5, replied=False)
    assert one.refuses_for_s("b", 0.5) == 0.5
    trial = one.start_call("b", 1.0)
    one.failed(trial, 1.5, replied=False)
    assert one.state(1.5) == "half_open"
    assert one.refuses_for_s("c", 1.5) == 0


def test_failed_probes_of_an_engine_that_answers_calls_refuse_nobody() -> None:
    one = breaker()
    for _ in range(9):
        one.probe_failed(0, asleep=False)
        one.started(one.start_call("a", 0))
    assert one.is_closed_for("a", 0)


def test_a_sleep_holds_all_until_a_probe_succeeds() -> None:
    one = breaker()
    one.probe_failed(0, asleep=True)
    one.succeeded(one.start_call("a", 0))
    assert (one.state(30), one.refuses_for_s("a", 30)) == ("open", 30), "a call from before it is no evidence"
    one.probe_succeeded()
    assert one.is_closed_for("a", 31)


def test_a_sleep_ends_by_itself_if_no_probe_renews_it() -> None:
    """The probes may fail for another reason by then."""
    one = breaker()
    one.probe_failed(0, asleep=True)
    one.probe_failed(50, asleep=True)
    assert [one.refuses_for_s("a", now) for now in (50, 60, 110)] == [60, 50, 0]


def test_a_probe_does_not_end_a_pause_that_the_engine_requested() -> None:
    one = breaker()
    one.pause(one.start_call("a", 0), 0, 10)
    one.probe_succeeded()
    assert one.refuses_for_s("a", 0.5) == 9.5


@pytest.mark.parametrize("now", [0.2, 30.0])
def test_a_successful_probe_closes_the_circuit_after_connection_failures(now: float) -> None:
    """No later call is a trial for which others wait."""
    one = opened(connected=False)
    one.probe_succeeded()
    assert not one.start_call("a", now).is_trial
    assert (one.state(now), one.refuses_for_s("a", now), one.refuses_for_s("b", now)) == ("closed", 0, 0)


def test_a_successful_probe_makes_the_trial_of_a_tenant_due() -> None:
    """A server whose model hangs may answer probes."""
    one = opened()
    one.probe_succeeded()
    assert one.refuses_for_s("a", 0.2) == 0
    assert one.start_call("a", 0.2).is_trial


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["succeeded", "failed", "timeout", "unconnected", "rejected", "abandoned", "started", "pause", "probe"]
        ),
        st.sampled_from("abc"),
        st.sampled_from([0.0, 0.1, 1.0, 6.0]),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(EVENTS)
def test_replies_to_one_tenant_reject_no_other_tenant(events: list[tuple[str, str, float]]) -> None:
    """A refusal requires failures or a pause of the tenant's own, or an engine that accepts no connection."""
    one, now, unconnected, own = breaker(), 0.0, 0, {"a": 0, "b": 0, "c": 0}
    for kind, tenant, passed in events:
        now += passed
        if kind != "probe" and one.refuses_for_s(tenant, now) > 0:
            continue
        meet(one, kind, tenant, now)
        if kind == "unconnected":
            unconnected += 1
        elif kind not in {"abandoned", "timeout"}:
            unconnected = 0
        if kind in {"failed", "timeout", "pause"}:
            own[tenant] += 1
        if unconnected < RULE.failures:
            assert one.state(now) == "closed"
            assert all(failures or one.is_closed_for(other, now) for other, failures in own.items())
    later = now + 60.0
    assert all(one.refuses_for_s(tenant, later) == 0 for tenant in own)


def meet(one: Breaker, kind: str, tenant: str, now: float) -> None:
    """Start a call and report its outcome, or report a probe."""
    if kind == "probe":
        one.probe_succeeded()
        return
    call = one.start_call(tenant, now)
    reports: dict[str, Callable[[], object]] = {
        "succeeded": lambda: one.succeeded(call),
        "failed": lambda: one.failed(call, now),
        "timeout": lambda: one.failed(call, now, replied=False),
        "unconnected": lambda: one.unconnected(call, now),
        "rejected": lambda: one.rejected(call),
        "started": lambda: one.started(call),
        "pause": lambda: one.pause(call, now, 30.0),
        "abandoned": lambda: one.abandoned(call),
    }
    reports[kind]()


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), st.booleans())
def test_an_engine_that_fails_at_everything_is_refused_to_every_tenant(
    failures: int, tenants: int, connected: bool
) -> None:
    """A single tenant suffices. Each tenant makes at most `failures` calls before."""
    one = breaker(BreakerRule(failures=failures, cooldown_s=1.0))
    made = {f"tenant-{number}": 0 for number in range(tenants)}
    for _ in range(failures + 1):
        for name in made:
            if not one.refuses_for_s(name, 0):
                made[name] += 1
                fail(one, tenant=name, connected=connected)
    assert all(one.refuses_for_s(name, 0) > 0 for name in made)
    assert max(made.values()) <= failures
