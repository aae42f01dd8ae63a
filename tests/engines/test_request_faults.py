"""The evidence that tells a bad request from a broken engine."""

from __future__ import annotations

from gateway.engines.request_faults import RequestFaults

BAD, OTHER = b"bad", b"other"


class Played(RequestFaults):
    """Faults of calls that end before the next one is sent."""

    def fails(self, fingerprint: bytes, request_id: str, at: float) -> bool:
        return self.failed(fingerprint, request_id, at, self.success_sent, at + 0.1)

    def succeeds(self, request_id: str, at: float) -> None:
        self.succeeded(request_id, at, at + 0.1)


def test_a_request_that_fails_before_and_after_another_was_answered_is_at_fault() -> None:
    """An SDK's repeat has an id of its own, so a request is recognized by its content."""
    faults = Played()
    assert not faults.fails(BAD, "1", 0.0)
    faults.succeeds("2", 0.2)
    assert faults.fails(BAD, "3", 0.4)
    assert faults.fails(BAD, "4", 0.5)


def test_failures_without_another_answer_prove_nothing() -> None:
    faults = Played()
    assert not any(faults.fails(BAD, "1", at) for at in range(9))


def test_an_answer_from_before_the_first_failure_proves_nothing() -> None:
    """The engine may have broken since. An answer that was under way when it broke is one, too."""
    faults = Played()
    faults.fails(BAD, "1", 1.0)
    faults.succeeds("2", 0.9)
    assert not faults.fails(BAD, "1", 1.3)


def test_an_answer_that_came_after_the_last_failure_was_sent_proves_nothing() -> None:
    """The engine may have recovered just then."""
    faults = Played()
    faults.fails(BAD, "1", 0.0)
    before = faults.success_sent
    faults.succeeds("2", 0.4)
    assert not faults.failed(BAD, "1", 0.2, before, 0.6)


def test_an_engine_at_which_retries_succeed_fails_by_chance() -> None:
    """Behind a load balancer one of its replicas may be broken: no request is blamed for that."""
    faults = Played()
    faults.fails(OTHER, "1", 0.0)
    faults.succeeds("1", 0.2)
    faults.fails(BAD, "2", 0.4)
    faults.succeeds("3", 0.6)
    assert not faults.fails(BAD, "2", 0.8)
    assert faults.fails(BAD, "2", 100.0), "it has not happened for a minute"


def test_failures_long_ago_are_forgotten() -> None:
    faults = Played()
    faults.fails(BAD, "1", 0.0)
    faults.succeeds("2", 0.2)
    assert not faults.fails(BAD, "3", 1000.0)


def test_the_number_of_remembered_requests_is_limited() -> None:
    """Each request may be another."""
    faults = RequestFaults()
    for number in range(5000):
        faults.failed(str(number).encode(), str(number), number, number, number)
    assert len(faults._failed) == len(faults._ids) == 1024
