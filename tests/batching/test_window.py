"""The rule: when a batch opens, and how many are in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from gateway.batching.ticket import TeacherLimits
from gateway.batching.window import SECOND, EventRate, TeacherLoad, open_batch

NOW = 1_000 * SECOND
MS = SECOND // 1000
LIMITS = TeacherLimits(max_in_flight=10, max_size=4, max_prompt_tokens=1000)
# Room for a long time.
IDLE = TeacherLoad(in_flight=0, cap=10, free_since=NOW - 100 * SECOND)


@dataclass(frozen=True)
class Waits:
    """A ticket that came `ago` microseconds ago."""

    since: int = NOW
    max_wait: int = 10 * MS
    prompt_tokens: int = 10


def waiting(count: int, *, ago: int = 0, max_wait: int = 10 * MS, tokens: int = 10) -> list[Waits]:
    return [Waits(NOW - ago, max_wait, tokens) for _ in range(count)]


def rate(events_per_s: int) -> EventRate:
    """So many events in the last second."""
    return EventRate(NOW, events_per_s)


NEVER = rate(0)


def test_while_its_window_runs_a_ticket_waits_for_others() -> None:
    """Three of four wait, none of them for long enough; the first one's window says when to look again."""
    opened = open_batch([*waiting(1, ago=3 * MS), *waiting(2)], IDLE, LIMITS, NEVER, NEVER, NOW)
    assert (opened.size, opened.due, opened.window) == (0, NOW + 7 * MS, 10 * MS)


def test_a_batch_opens_when_it_is_full_by_count() -> None:
    """At once, whatever its windows."""
    assert open_batch(waiting(4), IDLE, LIMITS, NEVER, NEVER, NOW).size == 4


def test_the_engines_own_limit_fills_a_batch_too() -> None:
    """A teacher that takes two calls never has four to wait for."""
    assert open_batch(waiting(2), TeacherLoad(0, 2, NOW), replace(LIMITS, max_in_flight=2), NEVER, NEVER, NOW).size == 2


def test_a_batch_opens_when_one_ticket_has_waited_its_window_and_takes_the_others_along() -> None:
    """The due ticket need not be the oldest: each route has its own window."""
    tickets = [Waits(NOW - 20 * MS, 50 * MS), Waits(NOW - 5 * MS, 5 * MS), Waits()]
    assert open_batch(tickets, IDLE, LIMITS, NEVER, NEVER, NOW).size == 3


def test_a_batch_opens_when_it_is_full_by_prompt_tokens() -> None:
    """Tokens that fill it exactly are in it; those that pass its bound are for the next one."""
    assert open_batch([Waits(prompt_tokens=400), Waits(prompt_tokens=600)], IDLE, LIMITS, NEVER, NEVER, NOW).size == 2
    assert open_batch([Waits(prompt_tokens=400), Waits(prompt_tokens=601)], IDLE, LIMITS, NEVER, NEVER, NOW).size == 1


def test_a_prompt_larger_than_a_batch_gets_its_own_batch() -> None:
    """No window makes the prompt smaller."""
    assert open_batch([Waits(prompt_tokens=5000), Waits()], IDLE, LIMITS, NEVER, NEVER, NOW).size == 1


def test_below_the_low_water_mark_nothing_waits() -> None:
    """A teacher with little to do gains nothing from a batch; at the mark the window runs."""
    limits = replace(LIMITS, low_water=3)
    assert open_batch(waiting(1), replace(IDLE, in_flight=2), limits, NEVER, NEVER, NOW).size == 1
    assert open_batch(waiting(1), replace(IDLE, in_flight=3), limits, NEVER, NEVER, NOW).size == 0


def test_a_window_is_no_longer_than_a_batch_takes_to_fill() -> None:
    """At the present rate four tickets come in 2 ms: who waited so long goes, and knows for how long it will wait."""
    fast, slow = rate(2000), rate(40)
    opened = open_batch(waiting(1, ago=MS), IDLE, LIMITS, fast, NEVER, NOW)
    assert (opened.size, opened.due, opened.window) == (0, NOW + MS, 2 * MS)
    assert open_batch(waiting(1, ago=2 * MS), IDLE, LIMITS, fast, NEVER, NOW).size == 1
    assert open_batch(waiting(1, ago=2 * MS), IDLE, LIMITS, slow, NEVER, NOW).window == 10 * MS


WIDE = TeacherLimits(max_in_flight=12, max_size=4, max_prompt_tokens=1000)


def test_free_permits_wait_for_a_full_batch() -> None:
    """Four tickets have waited for long, and one permit is free: the batch waits for three more."""
    tickets = waiting(4, ago=SECOND)
    assert open_batch(tickets, TeacherLoad(11, 12, NOW), WIDE, NEVER, NEVER, NOW).size == 0
    assert open_batch(tickets, TeacherLoad(9, 12, NOW), WIDE, NEVER, NEVER, NOW).size == 0
    assert open_batch(tickets, TeacherLoad(8, 12, NOW), WIDE, NEVER, NEVER, NOW).size == 4


def test_a_third_of_the_permits_is_enough() -> None:
    """A batch as large as the cap would let the teacher run dry before it opens."""
    tickets = waiting(4, ago=SECOND)
    limits = replace(WIDE, max_in_flight=6)
    assert open_batch(tickets, TeacherLoad(5, 6, NOW), limits, NEVER, NEVER, NOW).size == 0
    assert open_batch(tickets, TeacherLoad(4, 6, NOW), limits, NEVER, NEVER, NOW).size == 2


def test_free_permits_wait_for_three_times_their_return_time() -> None:
    """Four permits return in 100 ms at the current rate. After 300 ms the free permits open the batch."""
    tickets, drain = waiting(4, ago=SECOND), rate(40)
    opened = open_batch(tickets, TeacherLoad(10, 12, NOW - 250 * MS), WIDE, NEVER, drain, NOW)
    assert (opened.size, opened.due, opened.window) == (0, NOW + 50 * MS, 300 * MS)
    assert open_batch(tickets, TeacherLoad(10, 12, NOW - 300 * MS), WIDE, NEVER, drain, NOW).size == 2


def test_permits_gather_for_two_seconds_at_most_and_without_a_rate_for_the_window() -> None:
    """A teacher that hardly moves holds nobody up for ever."""
    tickets = waiting(4, ago=9 * SECOND)
    assert open_batch(tickets, TeacherLoad(11, 12, NOW), WIDE, NEVER, rate(1), NOW).window == 2 * SECOND
    opened = open_batch(tickets, TeacherLoad(10, 12, NOW - 4 * MS), WIDE, NEVER, NEVER, NOW)
    assert (opened.size, opened.due) == (0, NOW + 6 * MS)


def test_permits_gather_only_for_a_full_batch() -> None:
    """Three of four wait: one permit serves the first of them when its window is over."""
    tickets = waiting(3, ago=SECOND)
    assert open_batch(tickets, TeacherLoad(11, 12, NOW - 10 * MS), WIDE, NEVER, rate(40), NOW).size == 1


def test_a_full_batch_does_not_wait_for_less_because_tickets_come_fast() -> None:
    """The batch waits for permits. The arrival rate of tickets has no effect."""
    assert open_batch(waiting(4, ago=SECOND), TeacherLoad(9, 10, NOW - MS), LIMITS, rate(4000), NEVER, NOW).size == 0


def test_a_ticket_from_the_future_does_not_wait_longer() -> None:
    """The clock was set back by an hour, which does not add to the wait."""
    assert open_batch(waiting(1, ago=-3600 * SECOND), IDLE, LIMITS, NEVER, NEVER, NOW).size == 1


def test_a_rate_decays_over_a_second() -> None:
    """100 events in the last second: ten in 100 ms. Half a second later half of them count, after two none."""
    rate = EventRate()
    assert rate.time_for(10, 0) is None, "for ever"
    for _ in range(100):
        rate.count(1, NOW)
    assert rate.time_for(10, NOW) == SECOND // 10
    rate.count(0, NOW + SECOND)
    assert rate.time_for(10, NOW + SECOND) == SECOND // 10
    rate.count(0, NOW + 3 * SECOND // 2)
    assert rate.time_for(10, NOW + 3 * SECOND // 2) == SECOND // 5
    rate.count(0, NOW + 2 * SECOND)
    assert rate.time_for(10, NOW + 2 * SECOND) is None


def test_a_rate_is_reset_when_the_clock_is_set_back() -> None:
    """Events in the future are dropped."""
    rate = EventRate()
    rate.count(100, NOW)
    rate.count(1, NOW - 3600 * SECOND)
    assert rate.time_for(1, NOW - 3600 * SECOND) == SECOND


heads = st.lists(
    st.builds(
        Waits,
        st.integers(NOW - SECOND, NOW + 5 * MS),
        st.sampled_from([1, 5 * MS, 50 * MS, SECOND]),
        st.integers(1, 300),
    ),
    min_size=1,
    max_size=8,
)
limits = st.builds(
    TeacherLimits, st.integers(1, 12), st.integers(1, 8), st.integers(1, 600), st.sampled_from([0, 0, 3])
)
rates = st.sampled_from([0, 1, 40, 4000]).map(rate)


@given(heads, st.integers(0, 11), st.integers(NOW - SECOND, NOW), limits, rates, rates)
def test_an_opened_batch_respects_all_limits(
    head: list[Waits], in_flight: int, free_since: int, limits: TeacherLimits, arrivals: EventRate, grants: EventRate
) -> None:
    """A batch exceeds neither the permits, the size nor the tokens.

    A batch that does not open has a due time in the future, within its window or the wait for permits. Then it opens.
    """
    size = min(limits.max_size, limits.max_in_flight)
    head, in_flight = head[:size], min(in_flight, limits.max_in_flight - 1)
    teacher = TeacherLoad(in_flight, limits.max_in_flight, free_since)
    opened = open_batch(head, teacher, limits, arrivals, grants, NOW)
    if opened.size:
        assert opened.size <= min(teacher.free_permits, size, len(head))
        assert opened.size == 1 or sum(one.prompt_tokens for one in head[: opened.size]) <= limits.max_prompt_tokens
    else:
        assert in_flight >= limits.low_water
        latest = NOW + 2 * SECOND  # the longest hold, of permits that gather from now on; no window is as long
        assert NOW < opened.due <= latest
        for rate in (arrivals, grants):
            rate.count(0, latest)
        assert open_batch(head, teacher, limits, arrivals, grants, latest).size >= 1
