from __future__ import annotations

from gateway.accounting.recent_settlements import REMEMBERED_S, RecentSettlements
from gateway.accounting.redis_ledger import Settlement
from tests.accounting.receipt_builders import closed, guided


def settlements(count: int) -> list[Settlement]:
    return [Settlement(closed(guided()), None) for _ in range(count)]


def test_settlements_of_others_get_half_of_the_places_and_own_ones_all() -> None:
    recent, others, own = RecentSettlements(4), settlements(3), settlements(4)
    recent.add_of_others(others, 10.0, 10.0)
    assert recent.take(0.0) == others[:2]
    recent.add_of_others(others, 10.0, 10.0)
    recent.add(own[:3], 11.0, 10.0)
    recent.add_of_others(others, 11.0, 10.0)
    assert recent.take(0.0) == [others[1], *own[:3]], "no own one is dropped for others"
    recent.add_of_others(others, 10.0, 10.0)
    recent.add(own, 11.0, 10.0)
    assert recent.take(0.0) == own


def test_old_settlements_take_no_room_from_others() -> None:
    """An idle process drops its own only when it keeps the next ones."""
    recent, others = RecentSettlements(4), settlements(2)
    recent.add(settlements(4), 10.0, 10.0)
    recent.add_of_others(others, 20.0, 10.1 + REMEMBERED_S)
    assert recent.take(0.0) == others


def test_settlements_are_kept_until_redis_was_unchanged_for_three_seconds() -> None:
    recent, (first, second) = RecentSettlements(4), settlements(2)
    recent.add([first], 10.0, 10.0 + REMEMBERED_S)
    recent.add([second], 11.0, 10.0 + REMEMBERED_S)
    assert recent.take(10.0) == [second], "only those after `since`"
    assert recent.take(0.0) == []
