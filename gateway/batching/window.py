"""The rule that opens batches. Pure: times are whole microseconds on one clock, passed as `now`.

While the teacher has fewer calls in flight than its low-water mark, no ticket waits. Otherwise a batch opens in two
cases. It is full, by count or by prompt tokens. Or one of its tickets has waited its window, counted from the ticket's
arrival and from the time when the teacher had a free permit. The window is `max_wait`, and at most the time that a
batch takes to fill at the current rate of arrivals.

A full batch often finds a full teacher. Permits then return one by one, and granting them one by one would make batches
of one call, each of which interrupts the teacher. Free permits therefore accumulate while the teacher stays busy: until
there is one for each ticket, or a third of all permits is free. They accumulate at most three times as long as they
take to return at the current rate. The waiting tickets lose nothing by it, because the teacher generates as many tokens
as before (load_tests/fleet.py).

`scheduler.lua` implements the same rules for the fleet; a test compares the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.batching.ticket import TeacherLimits

SECOND = 1_000_000
# The longest time that free permits accumulate, at any rate.
_MAX_ACCUMULATION = 2 * SECOND
# Rates cover one second, with the previous second weighted by its overlap.
_PERIOD = SECOND


class WaitingTicket(Protocol):
    """A queued ticket: its arrival, its longest wait and its prompt tokens."""

    since: int
    max_wait: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class TeacherLoad:
    """Load of the teacher: calls in flight, the current limit, and since when a permit is free."""

    in_flight: int
    cap: int
    free_since: int

    @property
    def free_permits(self) -> int:
        return self.cap - self.in_flight


@dataclass(frozen=True, slots=True)
class BatchOpening:
    """The rule's result: `size` of the first tickets go now. If `size` is 0, apply the rule again at `due`."""

    size: int
    due: int
    window: int


def open_batch(
    head: Sequence[WaitingTicket],
    teacher: TeacherLoad,
    limits: TeacherLimits,
    arrivals: EventRate,
    grants: EventRate,
    now: int,
) -> BatchOpening:
    """Return whether a batch opens and how many tickets are in it. Both rates are counted up to `now`.

    `head` has the first tickets in fair order, at least one and at most one batch.
    """
    size = min(limits.max_size, limits.max_in_flight)
    fits, tokens, overflows = 0, 0, False
    for ticket in head:
        tokens += ticket.prompt_tokens
        if fits and tokens > limits.max_prompt_tokens:
            overflows = True
            break
        fits += 1
    full = overflows or len(head) >= size or tokens >= limits.max_prompt_tokens
    enough = min(fits, max(1, limits.max_in_flight // 3)) if full else fits
    fill = grants.time_for(3 * enough, now) if full else arrivals.time_for(size, now)
    due, window = None, 0
    for ticket in head:
        wait = ticket.max_wait
        if teacher.in_flight < limits.low_water or ticket.since > now:  # the clock was set back
            wait = 0
        elif fill is not None:
            wait = min(_MAX_ACCUMULATION if full else wait, fill)
        start = max(ticket.since, teacher.free_since) if wait else now
        if due is None or start + wait < due:
            due, window = start + wait, wait
    assert due is not None
    if due <= now or (full and teacher.free_permits >= enough):
        return BatchOpening(min(fits, teacher.free_permits), now, window)
    return BatchOpening(0, due, window)


@dataclass(slots=True)
class EventRate:
    """Events per second: the current second's, and the previous second's weighted by its overlap with the last one."""

    start: int = 0
    before: int = 0
    current: int = 0

    def count(self, events: int, now: int) -> None:
        age = now - self.start
        if age >= 2 * _PERIOD or age < 0:
            self.start, self.before, self.current = now, 0, 0
        elif age >= _PERIOD:
            self.start, self.before, self.current = self.start + _PERIOD, self.current, 0
        self.current += events

    def time_for(self, events: int, now: int) -> int | None:
        """Return how long this many events take at the rate that `count` updated to `now`; None if the rate is 0."""
        weighted = self.before * (_PERIOD - (now - self.start)) + self.current * _PERIOD
        return math.floor(events * _PERIOD * _PERIOD / weighted) if weighted else None
