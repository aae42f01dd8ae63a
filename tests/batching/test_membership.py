"""The calls that a process may make without Redis follow from its last knowledge of the fleet."""

from __future__ import annotations

import pytest

from gateway.batching.membership import Membership

LEASE_S = 10.0


@pytest.mark.parametrize(
    ("cap", "held", "at_once"),
    [
        (10, 0, 0),  # the others may have all
        (10, 2, 2),  # its own calls make room for its next ones
        (10, 5, 5),
        (10, 9, 5),  # it had more than its share
        (1, 1, 0),  # what does not divide is left
    ],
)
def test_a_member_gets_its_new_share_after_the_others_calls_ended(cap: int, held: int, at_once: int) -> None:
    one = Membership()
    one.record_fleet(2, LEASE_S, 0.0)
    one.record_deadline(3.0, LEASE_S, 0.5)
    one.record_outage(held, 1.0)
    assert one.share(cap, LEASE_S, 1.0) == at_once
    assert one.share(cap, LEASE_S, 3.9) == at_once
    assert one.share(cap, LEASE_S, 4.0) == cap // 2


@pytest.mark.parametrize(
    ("sightings", "ends"),
    [
        ([], 30.0),  # it cannot know what the others were asked
        ([(19.0, 2.0)], 22.0),
        ([(18.0, 4.0), (19.0, 2.0)], 24.0),
        ([(8.0, 8.0), (19.0, 2.0)], 22.0),  # a lease ago: it has ended
        ([(19.0, 2.0), (20.5, 3.0)], 23.0),  # the others may have been asked the same before
        ([(19.0, 60.0)], 30.0),  # no call outlives a lease
    ],
)
def test_the_others_calls_have_ended_after_the_longest_deadline_of_the_last_lease(
    sightings: list[tuple[float, float]], ends: float
) -> None:
    one = Membership()
    one.record_fleet(2, LEASE_S, 0.0)
    for at, deadline_s in sightings:
        if at < 20.0:
            one.record_deadline(deadline_s, LEASE_S, at)
    one.record_outage(1, 20.0)
    for at, deadline_s in sightings:
        if at > 20.0:
            one.record_deadline(deadline_s, LEASE_S, at)
    assert one.share(10, LEASE_S, ends - 0.1) == 1
    assert one.share(10, LEASE_S, ends) == 5


@pytest.mark.parametrize("seen", [True, False])
def test_the_only_process_has_the_whole_teacher(seen: bool) -> None:
    """A process that had no time to see its fleet has the whole teacher, too."""
    one = Membership()
    if seen:
        one.record_fleet(1, LEASE_S, 0.0)
    one.record_outage(3 if seen else 0, 1.0)
    assert one.share(10, LEASE_S, 1.0) == 10


def test_those_that_were_there_within_a_lease_count() -> None:
    """Redis began anew and has heard of this process alone: the others are still there. After a lease they are not."""
    one = Membership()
    one.record_fleet(4, LEASE_S, 0.0)
    one.record_fleet(1, LEASE_S, 5.0)
    assert one.fleet_size == 4
    one.record_fleet(1, LEASE_S, 10.5)
    assert one.fleet_size == 1


def test_while_redis_is_away_nothing_is_forgotten() -> None:
    """An outage may last for hours; the first look after it knows of nobody else yet."""
    one = Membership()
    one.record_fleet(3, LEASE_S, 0.0)
    one.record_outage(0, 1.0)
    one.record_fleet(1, LEASE_S, 5000.0)
    assert one.fleet_size == 3
    one.record_fleet(1, LEASE_S, 5010.5)
    assert one.fleet_size == 1
