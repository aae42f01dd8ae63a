"""Values that a process and the fleet's scheduler exchange: tickets and updates in, outcomes and decisions out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from msgspec import field

from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Ticket(Record, frozen=True):
    """A request for one teacher call.

    Attributes:
        tenant: the tenant whose share of the teacher the call uses.
        prompt_tokens: an estimate; it counts toward a batch's limit and is never billed.
        max_wait_s: the longest time to wait for a batch to fill.
        deadline_s: seconds from now until the guidance is no longer needed.
        weight: the tenant's share of contended permits, relative to the weights of other tenants.
        dedupe_key: tickets with the same key share one call; an empty key shares nothing.
        cache_ttl_s: how long to cache the guidance for later tickets with the same key; 0 disables caching.
    """

    id: str
    tenant: str
    prompt_tokens: int
    max_wait_s: float
    deadline_s: float
    weight: float = 1.0
    dedupe_key: str = ""
    cache_ttl_s: float = 0.0


class Grant(Record, frozen=True):
    """A permit to call the teacher now, in a batch of `batch_size` calls over the fleet."""

    batch_id: str
    batch_size: int


class SharedGuidance(Record, frozen=True):
    """Guidance fetched by another ticket with the same key, from the cache if `cached`."""

    guidance: str
    cached: bool


class TicketRefused(Record, frozen=True):
    """The tenant's queue is full; at the current rate it drains in `retry_after_s`."""

    retry_after_s: float


class TicketBroken(Record, frozen=True):
    """The stored ticket could not be decoded."""


Outcome: TypeAlias = Grant | SharedGuidance | TicketRefused | TicketBroken


@dataclass(frozen=True, slots=True)
class TeacherLimits:
    """Limits of one teacher.

    Attributes:
        max_in_flight: calls over the whole fleet.
        max_size: calls in one batch.
        max_prompt_tokens: prompt tokens in one batch.
        low_water: with fewer calls than this in flight, tickets do not wait for a batch to fill.
        max_queue: waiting tickets of one tenant.
        max_cache_bytes: size of the guidance cache.
        lease_s: how long a process keeps its tickets and permits after its last exchange.
    """

    max_in_flight: int
    max_size: int
    max_prompt_tokens: int
    low_water: int = 0
    max_queue: int = 1000
    max_cache_bytes: int = 0
    lease_s: float = 10.0

    def with_max_in_flight(self, max_in_flight: int) -> TeacherLimits:
        return replace(self, max_in_flight=max_in_flight)


class SchedulerUpdate(Record, frozen=True):
    """Changes that one process sends to the scheduler.

    Attributes:
        arrived: waiting tickets. Sending a ticket again is safe and returns its outcome.
        released: ids of withdrawn tickets and of returned permits.
        finished: fetched guidance by ticket id; the permit is returned with it.
        held: tickets whose permits are in use, whichever scheduler granted them.
        complete: `held` lists all permits of this process.
        fleet_size: processes in the fleet as last known to this process; 0: unknown.
        rejoining: the process used its local scheduler until now.
        leaving: the process stops; the scheduler removes its tickets and permits.
    """

    arrived: Sequence[Ticket] = ()
    released: Sequence[str] = ()
    finished: Sequence[tuple[str, str]] = ()
    held: Sequence[Ticket] = ()
    complete: bool = False
    fleet_size: int = 0
    rejoining: bool = False
    leaving: bool = False


class SchedulerDecision(Record, frozen=True):
    """The scheduler's reply to one process, with the state of the fleet.

    Attributes:
        outcomes: outcomes of this process's tickets.
        next_exchange_s: when to exchange again if nothing changes before; None: only after a change.
        fleet_size: processes that exchanged within the lease.
        in_flight: permits in use, over the fleet.
        waiting: queued tickets, over the fleet.
        window_s: the longest time that the next ticket waits for a batch; None: no ticket waits.
        opened: sizes of the batches opened by this exchange.
        reclaimed: permits and tickets taken from processes that no longer exchange.
        unreadable: tickets dropped because they could not be decoded.
        other_layout_processes: processes of versions with another layout, which have their own scheduler.
    """

    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    next_exchange_s: float | None = None
    fleet_size: int = 1
    in_flight: int = 0
    waiting: int = 0
    window_s: float | None = None
    opened: Sequence[int] = ()
    reclaimed: int = 0
    unreadable: int = 0
    other_layout_processes: int = 0
