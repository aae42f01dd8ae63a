"""When a batch opens, and who is in it. Pure: it takes `now` and returns what follows.

The rule: a batch opens when a permit is free and one of the waiting tickets has waited its window, or when as many
wait as fit into one batch, by count or by prompt tokens. Tickets are taken in the order of their arrival; one past its
deadline is dropped. `tickets.lua` states the same rule for the fleet, and a test holds the two against each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request's wish for guidance.

    Attributes:
        prompt_tokens: an estimate; it fills a batch, it is never billed.
        max_wait_s: how long it may wait for others to fill its batch.
        deadline_s: how long from now until nobody wants its guidance any more.
    """

    id: str
    prompt_tokens: int
    max_wait_s: float
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Grant:
    """The permit to call the teacher now, as one of a batch of `batch_size` calls over the fleet."""

    batch_id: str
    batch_size: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What one teacher takes: calls in flight over the fleet, calls and prompt tokens in one batch."""

    max_in_flight: int
    max_size: int
    max_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class News:
    """What one process tells when it looks for a decision.

    Attributes:
        arrived: tickets that wait. To tell one twice is harmless, and tells what became of it.
        gone: ids of tickets withdrawn and of permits returned.
        held: tickets whose permit is in use, whoever granted it, so that it is counted.
    """

    arrived: Sequence[Ticket] = ()
    gone: Sequence[str] = ()
    held: Sequence[Ticket] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows for one process: its grants, when to look again (None: when there is news), processes seen."""

    grants: Mapping[str, Grant]
    next_look_s: float | None
    fleet: int = 1


@dataclass(frozen=True, slots=True)
class Waiting:
    """A ticket in a queue, on the queue's clock."""

    id: str
    prompt_tokens: int
    due: float
    deadline: float


def take_batch(waiting: Sequence[Waiting], in_flight: int, limits: Limits, now: float) -> list[Waiting]:
    """The next batch out of `waiting` (in order of arrival, none past its deadline); empty when none opens."""
    room = limits.max_in_flight - in_flight
    head = waiting[: limits.max_size]
    if room <= 0 or not head:
        return []
    fits: list[Waiting] = []
    tokens = 0
    overflows = False
    for ticket in head:
        tokens += ticket.prompt_tokens
        if fits and tokens > limits.max_prompt_tokens:
            overflows = True
            break
        fits.append(ticket)
    full = overflows or len(head) == limits.max_size or tokens >= limits.max_prompt_tokens
    due = any(ticket.due <= now for ticket in head)
    return fits[:room] if full or due else []


def next_due(waiting: Sequence[Waiting], in_flight: int, limits: Limits) -> float | None:
    """When the rule must be asked again if nothing else happens; None while the teacher is full."""
    if in_flight >= limits.max_in_flight:
        return None
    return min((ticket.due for ticket in waiting[: limits.max_size]), default=None)


def decide(
    waiting: Sequence[Waiting], in_flight: int, limits: Limits, now: float
) -> tuple[list[list[Waiting]], float | None]:
    """Every batch that opens now out of `waiting` (in order of arrival), and when the rule must be asked again."""
    queue = [ticket for ticket in waiting if ticket.deadline > now]
    batches: list[list[Waiting]] = []
    while batch := take_batch(queue, in_flight, limits, now):
        batches.append(batch)
        in_flight += len(batch)
        del queue[: len(batch)]
    return batches, next_due(queue, in_flight, limits)
