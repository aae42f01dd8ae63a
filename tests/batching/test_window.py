"""The rule: when a batch opens, and who is in it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.batching.window import Limits, Waiting, decide, next_due, take_batch

NOW = 100.0
LIMITS = Limits(max_in_flight=10, max_size=4, max_prompt_tokens=1000)


def ticket(name: str, *, tokens: int = 10, due: float = NOW + 5, deadline: float = NOW + 50) -> Waiting:
    return Waiting(name, tokens, due, deadline)


def names(batch: list[Waiting]) -> str:
    return "".join(waiting.id for waiting in batch)


def test_nothing_opens_before_its_window_while_there_is_room_in_the_batch() -> None:
    """Three of four wait, none of them long enough: they go on waiting."""
    assert take_batch([ticket(name) for name in "abc"], 0, LIMITS, NOW) == []


def test_a_batch_opens_when_it_is_full_by_count() -> None:
    """The fourth ticket opens a batch of four; the fifth waits for the next one."""
    assert names(take_batch([ticket(name) for name in "abcde"], 0, LIMITS, NOW)) == "abcd"


def test_a_batch_opens_when_one_ticket_has_waited_its_window_and_takes_the_others_along() -> None:
    """The due ticket need not be the oldest: each route has its own window."""
    assert names(take_batch([ticket("a"), ticket("b", due=NOW), ticket("c")], 0, LIMITS, NOW)) == "abc"


def test_a_batch_opens_when_it_is_full_by_prompt_tokens() -> None:
    """Tokens that fill it exactly are in it; those that pass its bound are for the next one."""
    assert names(take_batch([ticket("a", tokens=400), ticket("b", tokens=600)], 0, LIMITS, NOW)) == "ab"
    assert names(take_batch([ticket("a", tokens=400), ticket("b", tokens=601)], 0, LIMITS, NOW)) == "a"


def test_a_prompt_larger_than_a_batch_goes_alone() -> None:
    """It must go at some time, and no window makes it smaller."""
    assert names(take_batch([ticket("a", tokens=5000), ticket("b")], 0, LIMITS, NOW)) == "a"


def test_a_batch_takes_no_more_than_the_permits_that_are_free() -> None:
    """Due tickets beyond the cap wait for permits to come back, in any number of batches."""
    waiting = [ticket(name, due=NOW) for name in "abcd"]
    assert names(take_batch(waiting, 8, LIMITS, NOW)) == "ab"
    assert take_batch(waiting, 10, LIMITS, NOW) == []
    assert take_batch(waiting, 11, LIMITS, NOW) == []


def test_several_batches_open_at_once_while_there_is_room() -> None:
    """Nine wait, ten may run: two full batches, and the ninth for its window."""
    batches, look = decide([ticket(name, due=NOW + 3) for name in "abcdefghi"], 0, LIMITS, NOW)
    assert [names(batch) for batch in batches] == ["abcd", "efgh"]
    assert look == NOW + 3


def test_a_ticket_past_its_deadline_is_dropped() -> None:
    """It neither fills a batch nor opens one."""
    waiting = [ticket("a", deadline=NOW), ticket("b"), ticket("c"), ticket("d"), ticket("e", due=NOW, deadline=NOW - 1)]
    assert decide(waiting, 0, LIMITS, NOW) == ([], NOW + 5)


def test_the_next_look_is_at_the_earliest_window() -> None:
    """Of those that would be in the next batch; none while the teacher is full, for then only news helps."""
    waiting = [ticket("a", due=NOW + 4), ticket("b", due=NOW + 2), ticket("c"), ticket("d"), ticket("e", due=NOW + 1)]
    assert next_due(waiting, 0, LIMITS) == NOW + 2
    assert next_due(waiting, 9, LIMITS) == NOW + 2
    assert next_due(waiting, 10, LIMITS) is None
    assert next_due([], 0, LIMITS) is None


queues = st.lists(
    st.builds(
        Waiting,
        st.uuids().map(str),
        st.integers(1, 300),
        st.floats(NOW - 2, NOW + 2),
        st.floats(NOW - 2, NOW + 20),
    ),
    max_size=30,
)
limits = st.builds(Limits, st.integers(1, 12), st.integers(1, 8), st.integers(1, 600))


@given(queues, st.integers(0, 15), limits)
def test_decisions_keep_every_bound(waiting: list[Waiting], in_flight: int, limits: Limits) -> None:
    """No batch is empty or passes its size, its tokens or the cap; arrival order is kept; nobody is served late."""
    batches, _ = decide(waiting, in_flight, limits, NOW)
    alive = [one for one in waiting if one.deadline > NOW]
    taken = [one for batch in batches for one in batch]
    assert taken == alive[: len(taken)]
    assert len(taken) <= max(0, limits.max_in_flight - in_flight)
    for batch in batches:
        assert 1 <= len(batch) <= limits.max_size
        assert len(batch) == 1 or sum(one.prompt_tokens for one in batch) <= limits.max_prompt_tokens


@given(queues, st.integers(0, 15), limits)
def test_who_is_left_waits_for_a_reason(waiting: list[Waiting], in_flight: int, limits: Limits) -> None:
    """After the decision either no permit is free, or nobody who could be in the next batch is due and it is not full;
    and the next look is in the future."""
    batches, look = decide(waiting, in_flight, limits, NOW)
    taken = sum(map(len, batches))
    left = [one for one in waiting if one.deadline > NOW][taken:]
    head = left[: limits.max_size]
    if in_flight + taken >= limits.max_in_flight or not left:
        assert look is None
    else:
        assert all(one.due > NOW for one in head)
        assert len(head) < limits.max_size
        assert sum(one.prompt_tokens for one in head) < limits.max_prompt_tokens
        assert look == min(one.due for one in head)


@given(queues, st.integers(0, 15), limits)
def test_at_the_next_look_something_opens(waiting: list[Waiting], in_flight: int, limits: Limits) -> None:
    """Looking again when told to is never in vain, unless the tickets that wait have expired: no busy loop."""
    batches, look = decide(waiting, in_flight, limits, NOW)
    if look is None:
        return
    left = [one for one in waiting if one.deadline > NOW][sum(map(len, batches)) :]
    later, _ = decide(left, in_flight + sum(map(len, batches)), limits, look)
    assert later or any(one.deadline <= look for one in left)
