"""What a process may do alone follows from what it knew of its fleet."""

from __future__ import annotations

import pytest

from gateway.batching.membership import Membership

LEASE_S = 10.0


@pytest.mark.parametrize(
    ("cap", "held", "others", "at_once"),
    [
        (10, 0, 0, 5),  # nobody was busy: its share
        (10, 2, 6, 4),  # the others had six, and may have them still
        (10, 2, 8, 2),  # its own calls make room for its next ones
        (10, 9, 1, 5),  # it had more than its share
        (10, 0, 10, 0),
        (1, 1, 0, 0),  # what does not divide is left
    ],
)
def test_one_of_two_has_its_share_and_at_first_no_more_than_the_others_left(
    cap: int, held: int, others: int, at_once: int
) -> None:
    one = Membership()
    one.saw(2, held + others, LEASE_S, 0.0)
    one.go_alone(held, 1.0)
    assert one.share(cap, LEASE_S, 1.0) == at_once
    assert one.share(cap, LEASE_S, 10.9) == at_once
    assert one.share(cap, LEASE_S, 11.0) == cap // 2


@pytest.mark.parametrize("seen", [True, False])
def test_the_only_process_has_the_whole_teacher(seen: bool) -> None:
    """So has one that had no time to see its fleet."""
    one = Membership()
    if seen:
        one.saw(1, 3, LEASE_S, 0.0)
    one.go_alone(3 if seen else 0, 1.0)
    assert one.share(10, LEASE_S, 1.0) == 10


def test_those_that_were_there_within_a_lease_count() -> None:
    """Redis began anew and has heard of this process alone: the others are still there. After a lease they are not."""
    one = Membership()
    one.saw(4, 0, LEASE_S, 0.0)
    one.saw(1, 0, LEASE_S, 5.0)
    assert one.fleet == 4
    one.saw(1, 0, LEASE_S, 10.5)
    assert one.fleet == 1


def test_while_redis_is_away_nothing_is_forgotten() -> None:
    """An outage may last for hours; the first look after it knows of nobody else yet."""
    one = Membership()
    one.saw(3, 0, LEASE_S, 0.0)
    one.go_alone(0, 1.0)
    one.saw(1, 0, LEASE_S, 5000.0)
    assert one.fleet == 3
    one.saw(1, 0, LEASE_S, 5010.5)
    assert one.fleet == 1
