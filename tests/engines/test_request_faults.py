"""The evidence that tells a bad request from a broken engine."""

from __future__ import annotations

from gateway.engines.request_faults import RequestFaults

BAD, OTHER = b"bad", b"other"


def test_a_request_that_fails_before_and_after_another_was_answered_is_at_fault() -> None:
    faults = RequestFaults()
    assert faults.failed(BAD, "1", sent=0.0, now=0.1) == 1
    faults.succeeded("2", sent=0.2, now=0.3)
    assert faults.failed(BAD, "1", sent=0.4, now=0.5) == 2
    assert faults.is_proven(BAD, sent=0.4)


def test_one_failure_proves_nothing() -> None:
    faults = RequestFaults()
    faults.failed(BAD, "1", sent=0.0, now=0.1)
    faults.succeeded("2", sent=0.2, now=0.3)
    assert not faults.is_proven(BAD, sent=0.0)


def test_an_answer_from_before_the_first_failure_proves_nothing() -> None:
    """The engine may have broken since. An answer that was under way when it broke is one, too."""
    faults = RequestFaults()
    faults.failed(BAD, "1", sent=1.0, now=1.1)
    faults.succeeded("2", sent=0.9, now=1.2)
    faults.failed(BAD, "1", sent=1.3, now=1.4)
    assert not faults.is_proven(BAD, sent=1.3)


def test_an_answer_that_came_after_the_last_failure_was_sent_proves_nothing() -> None:
    """The engine may have recovered just then."""
    faults = RequestFaults()
    faults.failed(BAD, "1", sent=0.0, now=0.1)
    faults.failed(BAD, "1", sent=0.2, now=0.3)
    faults.succeeded("2", sent=0.4, now=0.5)
    assert not faults.is_proven(BAD, sent=0.2)


def test_an_engine_at_which_retries_succeed_fails_by_chance() -> None:
    """Behind a load balancer one of its replicas may be broken: no request is blamed for that."""
    faults = RequestFaults()
    faults.failed(OTHER, "1", sent=0.0, now=0.1)
    faults.succeeded("1", sent=0.2, now=0.3)
    faults.failed(BAD, "2", sent=0.4, now=0.5)
    faults.succeeded("3", sent=0.6, now=0.7)
    faults.failed(BAD, "2", sent=0.8, now=0.9)
    assert not faults.is_proven(BAD, sent=0.8)
    faults.failed(BAD, "2", sent=100.0, now=100.1)
    assert faults.is_proven(BAD, sent=100.0), "it has not happened for a minute"


def test_a_repeated_request_is_recognized_by_its_content() -> None:
    """An SDK's repeat has an id of its own."""
    faults = RequestFaults()
    faults.failed(BAD, "1", sent=0.0, now=0.1)
    faults.succeeded("2", sent=0.2, now=0.3)
    assert faults.failed(BAD, "3", sent=1.0, now=1.1) == 2
    assert faults.is_proven(BAD, sent=1.0)


def test_failures_long_ago_are_forgotten() -> None:
    faults = RequestFaults()
    faults.failed(BAD, "1", sent=0.0, now=0.1)
    assert faults.failed(BAD, "2", sent=1000.0, now=1000.1) == 1


def test_the_number_of_remembered_requests_is_limited() -> None:
    """Each request may be another."""
    faults = RequestFaults()
    for number in range(5000):
        faults.failed(str(number).encode(), str(number), sent=number, now=number)
    assert len(faults._failing) == len(faults._ids) == 1024
