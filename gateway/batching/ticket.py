"""What a process and the fleet's board say to each other: tickets and news in, outcomes and a decision back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from msgspec import field

from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Ticket(Record, frozen=True):
    """A wish for guidance.

    Attributes:
        tenant: whose share of the teacher it takes.
        prompt_tokens: an estimate; it fills a batch, it is never billed.
        max_wait_s: how long it may wait for others to fill its batch.
        deadline_s: how long from now until nobody wants its guidance any more.
        weight: the tenant's share of contended permits, relative to the others'.
        work: tickets of the same work want the same guidance, and one of them fetches it. Empty: like no other.
        cache_ttl_s: how long the guidance may be kept for later tickets of the same work; 0: not at all.
    """

    id: str
    tenant: str
    prompt_tokens: int
    max_wait_s: float
    deadline_s: float
    weight: float = 1.0
    work: str = ""
    cache_ttl_s: float = 0.0


class Grant(Record, frozen=True):
    """The permit to call the teacher now, as one of a batch of `batch_size` calls over the fleet."""

    batch_id: str
    batch_size: int


class SharedGuidance(Record, frozen=True):
    """What another ticket of the same work fetched: just now, or, `cached`, a while ago."""

    guidance: str
    cached: bool


class TicketRefused(Record, frozen=True):
    """The tenant's queue is full; at the rate of the last seconds it is worked off in `retry_after_s`."""

    retry_after_s: float


class TicketBroken(Record, frozen=True):
    """What the board kept of the ticket cannot be read."""


Outcome: TypeAlias = Grant | SharedGuidance | TicketRefused | TicketBroken


@dataclass(frozen=True, slots=True)
class TeacherLimits:
    """What one teacher takes.

    Attributes:
        max_in_flight: calls over the whole fleet.
        max_size: calls in one batch.
        max_prompt_tokens: prompt tokens in one batch.
        low_water: with fewer calls than this in flight, tickets do not wait for others.
        max_queue: waiting tickets of one tenant.
        max_cache_bytes: guidance kept for later tickets of the same work.
        lease_s: how long a process that is not heard of keeps its tickets and permits.
    """

    max_in_flight: int
    max_size: int
    max_prompt_tokens: int
    low_water: int = 0
    max_queue: int = 1000
    max_cache_bytes: int = 0
    lease_s: float = 10.0

    def of_cap(self, max_in_flight: int) -> TeacherLimits:
        return replace(self, max_in_flight=max_in_flight)


class SchedulerUpdate(Record, frozen=True):
    """What one process tells when it looks for a decision.

    Attributes:
        arrived: tickets that wait. To tell one twice is harmless, and tells what became of it.
        gone: ids of tickets withdrawn and of permits returned.
        finished: guidance that was fetched, by ticket id; the permit goes back with it.
        held: tickets whose permit is in use, whoever granted it, so that it is counted.
        everything: `held` is all that this process holds.
        fleet: how many processes the fleet had, as this one remembers it; 0: it has not heard of it yet.
        returning: the process decided alone until now.
        leaving: the process stops; nothing of it is left behind.
    """

    arrived: Sequence[Ticket] = ()
    gone: Sequence[str] = ()
    finished: Sequence[tuple[str, str]] = ()
    held: Sequence[Ticket] = ()
    everything: bool = False
    fleet: int = 0
    returning: bool = False
    leaving: bool = False


class SchedulerDecision(Record, frozen=True):
    """What follows for one process, and what it saw of the fleet.

    Attributes:
        outcomes: of this process's tickets.
        next_look_s: when to ask again if there is no news before; None: only then.
        fleet: processes heard of within the lease.
        in_flight: permits out, over the fleet.
        waiting: tickets in the queue, over the fleet.
        window_s: how long the next ticket waits for others at most; None: nothing waits.
        opened: sizes of the batches that this exchange opened.
        reclaimed: permits and tickets taken back from processes that are gone.
        broken: tickets dropped because they could not be read.
        beside: processes of versions with another layout, which have a board of their own.
    """

    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    next_look_s: float | None = None
    fleet: int = 1
    in_flight: int = 0
    waiting: int = 0
    window_s: float | None = None
    opened: Sequence[int] = ()
    reclaimed: int = 0
    broken: int = 0
    beside: int = 0
