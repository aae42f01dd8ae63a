"""When a batch opens. Pure: times are whole microseconds on one clock, and `now` is handed in.

While the teacher has room below its low-water mark, nothing waits. Otherwise a batch opens when it is full, by count or
by prompt tokens, or when one of its tickets has waited its window, since it came and since the teacher had a permit to
give: `max_wait`, and no longer than a batch takes to fill at the rate at which tickets come.

A full batch finds a teacher that is full as well. Permits come back one by one, and handing them on one by one would
make batches of one, each of which interrupts the teacher. So they gather too, as far as the teacher stays busy: until
there is one for each ticket or a third of them all is free, and no longer than three times what that takes at the
present rate. It costs the waiting tickets nothing: the teacher writes as much as before (load_tests/fleet.py).

`board.lua` states the same rules for the fleet; a test holds the two against each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.batching.ticket import TeacherLimits

SECOND = 1_000_000
# Permits gather no longer than this, whatever the rate says.
_LONGEST_HOLD = 2 * SECOND
# Rates are measured over a second, half remembered.
_PERIOD = SECOND


class WaitingTicket(Protocol):
    """A ticket in the queue: when it came, how long it may wait, how much it brings."""

    @property
    def since(self) -> int: ...

    @property
    def max_wait(self) -> int: ...

    @property
    def prompt_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class TeacherLoad:
    """How the teacher stands: calls in flight, how many it takes now, and since when it had a permit to give."""

    in_flight: int
    cap: int
    room_since: int

    @property
    def room(self) -> int:
        return self.cap - self.in_flight


@dataclass(frozen=True, slots=True)
class BatchOpening:
    """`size` of the first tickets go now (0: none), and if none goes, the rule must be asked again at `due`."""

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
    """Judge the first tickets in fair order, at most one batch of them and at least one.

    Args:
        arrivals, grants: counted up to `now`.
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
        patience = ticket.max_wait
        if teacher.in_flight < limits.low_water or ticket.since > now:  # a clock that was set back
            patience = 0
        elif fill is not None:
            patience = min(_LONGEST_HOLD if full else patience, fill)
        start = max(ticket.since, teacher.room_since) if patience else now
        if due is None or start + patience < due:
            due, window = start + patience, patience
    assert due is not None
    if due <= now or (full and teacher.room >= enough):
        return BatchOpening(min(fits, teacher.room), now, window)
    return BatchOpening(0, due, window)


@dataclass(slots=True)
class EventRate:
    """Events a second: those of the current second, and of the one before as much as it still overlaps the last."""

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
        """How long this many events take at the present rate; None: for ever. Call `count` with this `now` before."""
        weighted = self.before * (_PERIOD - (now - self.start)) + self.current * _PERIOD
        return math.floor(events * _PERIOD * _PERIOD / weighted) if weighted else None
