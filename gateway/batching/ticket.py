"""Values that a process and the fleet's scheduler exchange: tickets and updates in, outcomes and decisions out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from msgspec import field

from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Ticket(Record, frozen=True):
    """A request for one teacher call."""

    id: str
    tenant: str  # the tenant whose share of the teacher the call uses
    prompt_tokens: int  # an estimate; it counts toward a batch's limit and is never billed
    max_wait_s: float  # the longest time to wait for a batch to fill
    deadline_s: float  # seconds from now until the guidance is no longer needed
    weight: float = 1.0  # the tenant's share of contended permits, relative to the weights of other tenants
    dedupe_key: str = ""  # tickets with the same key share one call; an empty key shares nothing
    cache_ttl_s: float = 0.0  # how long to cache the guidance for later tickets with the same key; 0 disables caching


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
    """Limits of one teacher."""

    max_in_flight: int  # calls over the whole fleet
    max_size: int  # calls in one batch
    max_prompt_tokens: int  # prompt tokens in one batch
    low_water: int = 0  # with fewer calls than this in flight, tickets do not wait for a batch to fill
    max_queue: int = 1000  # waiting tickets of one tenant
    max_cache_bytes: int = 0  # size of the guidance cache
    lease_s: float = 10.0  # how long a process keeps its tickets and permits after its last exchange


class SchedulerUpdate(Record, frozen=True):
    """Changes that one process sends to the scheduler."""

    arrived: Sequence[Ticket] = ()  # waiting tickets. Sending a ticket again is safe and returns its outcome.
    released: Sequence[str] = ()  # ids of withdrawn tickets and of returned permits
    finished: Sequence[tuple[str, str]] = ()  # fetched guidance by ticket id; the permit is returned with it
    held: Sequence[Ticket] = ()  # tickets whose permits are in use, whichever scheduler granted them
    complete: bool = False  # `held` lists all permits of this process
    fleet_size: int = 0  # processes in the fleet as last known to this process; 0: unknown
    rejoining: bool = False  # the process used its local scheduler until now
    leaving: bool = False  # the process stops; the scheduler removes its tickets and permits


class SchedulerDecision(Record, frozen=True):
    """The scheduler's reply to one process, with the state of the fleet."""

    outcomes: Mapping[str, Outcome] = field(default_factory=dict)  # outcomes of this process's tickets
    next_exchange_s: float | None = None  # when to exchange again if nothing changes before; None: only after a change
    fleet_size: int = 1  # processes that exchanged within the lease
    in_flight: int = 0  # permits in use, over the fleet
    waiting: int = 0  # queued tickets, over the fleet
    window_s: float | None = None  # the longest time that the next ticket waits for a batch; None: no ticket waits
    opened: Sequence[int] = ()  # sizes of the batches opened by this exchange
    reclaimed: int = 0  # permits and tickets taken from processes that no longer exchange
    unreadable: int = 0  # tickets dropped because they could not be decoded
