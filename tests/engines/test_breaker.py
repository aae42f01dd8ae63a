"""A breaker against a clock of the test's own."""

from __future__ import annotations

import pytest

from gateway.engines.breaker import Breaker, BreakerRule

RULE = BreakerRule(failures=3, rest_s=1.0, longest_s=5.0)


def breaker() -> Breaker:
    """One whose rests are exactly as long as the rule says: half way between the least and the most."""
    return Breaker(RULE, draw=lambda: 0.5)


def opened(at: float = 0.0) -> Breaker:
    one = breaker()
    assert [one.failed(at, trial=one.begin(at)) for _ in range(3)] == [False, False, True]
    return one


def test_failures_in_a_row_open_it() -> None:
    one = opened(10.0)
    assert (one.state(10.9), one.refuses_for_s(10.4)) == ("open", pytest.approx(0.6))


def test_a_success_between_failures_starts_the_count_anew() -> None:
    one = breaker()
    for outcome in (True, True, False, True, True):
        trial = one.begin(0)
        if outcome:
            assert not one.failed(0, trial=trial)
        else:
            assert not one.succeeded()
    assert one.state(0) == "closed"


def test_after_the_rest_one_call_is_the_trial_and_the_others_wait_for_its_verdict() -> None:
    one = opened()
    assert (one.state(1.0), one.refuses_for_s(1.0)) == ("half_open", 0)
    assert one.begin(1.0)
    assert one.refuses_for_s(1.0) > 0


def test_a_trial_that_succeeds_closes_it() -> None:
    one = opened()
    one.begin(1.0)
    assert one.succeeded()
    assert (one.state(1.0), one.refuses_for_s(1.0)) == ("closed", 0)
    assert not one.failed(1.0, trial=one.begin(1.0)), "the count starts anew"


def test_each_trial_that_fails_doubles_the_rest_up_to_the_longest() -> None:
    one, now, rests = opened(), 0.0, []
    for _ in range(4):
        now += one.refuses_for_s(now)
        assert one.failed(now, trial=one.begin(now))
        rests.append(one.refuses_for_s(now))
    assert rests == pytest.approx([2, 4, 5, 5])


def test_a_trial_whose_caller_left_leaves_the_trial_to_another() -> None:
    one = opened()
    one.abandoned(trial=one.begin(1.0))
    assert one.refuses_for_s(1.0) == 0
    assert one.state(1.0) == "half_open"


def test_calls_from_before_it_opened_say_nothing_of_the_trial() -> None:
    """They may fail after it, or be given up, while the trial is still out."""
    one = breaker()
    old = [one.begin(0) for _ in range(5)]
    for trial in old[:3]:
        one.failed(0, trial=trial)
    assert one.begin(1.0)
    assert not one.failed(1.0, trial=old[3])
    one.abandoned(trial=old[4])
    assert one.refuses_for_s(1.0) > 0


def test_an_engine_that_asked_for_a_pause_gets_it_and_needs_no_trial() -> None:
    one = breaker()
    one.asked_to_wait(0, 2.5)
    assert (one.state(2.0), one.refuses_for_s(2.0)) == ("open", pytest.approx(0.5))
    assert (one.state(2.5), one.begin(2.5)) == ("closed", False)


def test_no_engine_is_left_alone_for_longer_than_a_minute_because_it_asked() -> None:
    one = breaker()
    one.asked_to_wait(0, 86_400)
    assert one.refuses_for_s(0) == 60


def test_an_engine_that_is_seen_again_may_be_tried_at_once() -> None:
    one = opened()
    one.answers(0.2)
    assert (one.state(0.2), one.refuses_for_s(0.2)) == ("half_open", 0)


def test_rests_differ_from_process_to_process() -> None:
    """Or all would make their trial at the same moment."""
    rests = []
    for drawn in (0.0, 1.0):
        one = Breaker(RULE, draw=lambda drawn=drawn: drawn)
        for _ in range(3):
            one.failed(0, trial=one.begin(0))
        rests.append(one.refuses_for_s(0))
    assert rests == pytest.approx([0.75, 1.25])
