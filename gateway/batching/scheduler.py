"""A teacher's scheduler in memory, for a process without Redis: fair shares, permits and shared calls.

`scheduler.lua` implements the same rules in Redis, for the whole fleet. Pure: times are whole microseconds on one
clock, passed as `now`.

Fair shares use stride scheduling (Waldspurger and Weihl, 1995). Each tenant has a pass, and the lowest pass gets the
next permit. A grant advances the tenant's pass by its stride, which is inversely proportional to its weight. A tenant
whose queue was empty starts at the pass of the last permit, so idle time neither saves up permits nor costs any.

Of the tickets with the same key, one is the leader and is queued. The others follow it and receive its guidance. When a
leader ends without guidance, its oldest follower takes its position in the queue.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from dataclasses import dataclass, field
from itertools import count, islice
from typing import TYPE_CHECKING, Literal

from gateway.batching.guidance_cache import GuidanceCache
from gateway.batching.ticket import Grant, SchedulerDecision, SharedGuidance, TicketRefused
from gateway.batching.window import SECOND, EventRate, TeacherLoad, open_batch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.batching.ticket import Outcome, SchedulerUpdate, TeacherLimits, Ticket

# A permit is returned at its deadline. It must not expire before that, even if the clock is set forward by up to JUMP.
GRACE = 2 * SECOND
# Every process exchanges once a second. A longer gap between two exchanges is no elapsed time: the clock was set, or
# the scheduler was stopped.
JUMP = 2 * SECOND
# After an outage the processes return one by one. Grants wait until each has sent its permits, or for this long.
SETTLE = 2 * SECOND
# The retry time without recent grants, when no rate is known.
_DEFAULT_RETRY = 10 * SECOND
_STRIDE = 10_000


@dataclass(slots=True)
class _Entry:
    """A ticket known to the scheduler."""

    id: str
    process_id: str
    tenant: str
    stride: int
    prompt_tokens: int
    max_wait: int
    since: int
    seq: int  # position in the order of arrival
    dedupe_key: str
    cache_ttl: int
    end: int  # when the ticket expires
    tenant_pass: int = 0  # when the ticket became first in the fair order
    state: Literal["waiting", "granted", "following", "shared"] = "waiting"
    outcome: Outcome | None = None


@dataclass(slots=True)
class _Exchange:
    process_id: str
    limits: TeacherLimits
    now: int
    rejoining: bool
    cap: int = 0  # permits that may be in use now
    outcomes: dict[str, dict[str, Outcome]] = field(default_factory=dict)  # by process, by ticket
    opened: list[int] = field(default_factory=list)
    reclaimed: int = 0

    def deliver(self, entry: _Entry, outcome: Outcome) -> None:
        self.outcomes.setdefault(entry.process_id, {})[entry.id] = outcome


class Scheduler:
    """The tickets, permits and cached guidance of one teacher. Its batch ids begin with `batch_prefix`."""

    def __init__(self, batch_prefix: str = "b") -> None:
        self._prefix = batch_prefix
        self._entries: dict[str, _Entry] = {}
        self._permits: set[str] = set()
        self._queues: dict[str, list[tuple[int, str]]] = {}  # by tenant: (seq, id)
        self._passes: dict[str, int] = {}  # by tenant with waiting tickets
        self._idle: dict[str, int] = {}  # by tenant without, if ahead of the last permit's pass
        self._pass = 0  # pass of the last permit
        self._leaders: dict[str, str] = {}  # by key: id
        self._followers: dict[str, list[tuple[int, str]]] = {}  # by key: (seq, id)
        self._last_exchange: dict[str, int] = {}  # by process
        self._cache = GuidanceCache()
        self._arrivals, self._grants = EventRate(), EventRate()
        self._seq = self._batches = self._free_since = 0
        self._last: int | None = None
        self._settle_until = self._settle_fleet = 0
        self._settled: set[str] = set()  # processes that sent a complete update since

    def exchange(
        self, process_id: str, update: SchedulerUpdate, limits: TeacherLimits, now: int
    ) -> tuple[SchedulerDecision, dict[str, dict[str, Outcome]]]:
        """Apply an update. Return the decision for `process_id`, and the outcomes for each other process.

        A process whose outcomes are empty must send a complete update.
        """
        exchange = _Exchange(process_id, limits, now, update.rejoining)
        begins = self._last is None
        if begins or now // SECOND != (self._last or 0) // SECOND:
            # A lower pass has no effect: the tenant starts at the last permit's pass.
            self._idle = {tenant: idle for tenant, idle in self._idle.items() if idle > self._pass}
        self._adjust_clock(now)
        self._settle(exchange, update, begins=begins)
        exchange.cap = limits.max_in_flight if now >= self._settle_until else 0
        for ticket_id in update.released:
            self._remove(ticket_id, exchange)
        for ticket_id, guidance in update.finished:
            self._finish(ticket_id, guidance, exchange)
        for ticket in update.held:
            self._hold(ticket, exchange)
        for entry in [entry for entry in self._entries.values() if entry.end <= now]:
            exchange.reclaimed += entry.state == "granted"
            self._remove(entry.id, exchange)
        self._renew_lease(exchange, leaving=update.leaving)
        self._arrivals.count(0, now)
        self._grants.count(0, now)
        for ticket in update.arrived:
            self._arrive(ticket, exchange)
        window, due = self._open_batches(exchange)
        decision = SchedulerDecision(
            outcomes=exchange.outcomes.pop(process_id, {}),
            next_exchange_s=None if due is None else (due - now) / SECOND,
            fleet_size=len(self._last_exchange),
            in_flight=len(self._permits),
            waiting=self._waiting(),
            window_s=None if window is None else window / SECOND,
            opened=exchange.opened,
            reclaimed=exchange.reclaimed,
        )
        return decision, exchange.outcomes

    def _adjust_clock(self, now: int) -> None:
        gap = 0 if self._last is None else now - self._last
        self._last = now
        if not 0 <= gap <= JUMP:
            self._last_exchange = {process_id: last + gap for process_id, last in self._last_exchange.items()}
            for entry in self._entries.values():
                entry.end += gap
            self._free_since += gap if self._free_since else 0
            self._settle_until += gap

    def _settle(self, exchange: _Exchange, update: SchedulerUpdate, *, begins: bool) -> None:
        """Delay grants after a start or a rejoin, when some calls in flight are unknown to the scheduler."""
        queried: list[str] = []
        if (begins or update.rejoining) and exchange.now >= self._settle_until:
            self._settle_until, self._settle_fleet = exchange.now + SETTLE, 0
            self._settled.clear()
            queried = [process_id for process_id in self._last_exchange if process_id != exchange.process_id]
        if exchange.now < self._settle_until:
            self._settle_fleet = max(self._settle_fleet, update.fleet_size)
            if update.complete:
                self._settled.add(exchange.process_id)
            if len(self._settled) >= self._settle_fleet:
                self._settle_until = exchange.now
            else:
                exchange.outcomes |= {process_id: {} for process_id in queried}

    def _renew_lease(self, exchange: _Exchange, *, leaving: bool) -> None:
        self._last_exchange[exchange.process_id] = exchange.now
        lease = round(exchange.limits.lease_s * SECOND)
        lapsed = {process_id for process_id, last in self._last_exchange.items() if last <= exchange.now - lease}
        for entry in [entry for entry in self._entries.values() if entry.process_id in lapsed]:
            exchange.reclaimed += 1
            self._remove(entry.id, exchange)
        if leaving:
            lapsed.add(exchange.process_id)
            for entry in [entry for entry in self._entries.values() if entry.process_id == exchange.process_id]:
                self._remove(entry.id, exchange)
        for process_id in lapsed:
            del self._last_exchange[process_id]

    def _arrive(self, ticket: Ticket, exchange: _Exchange) -> None:
        known = self._entries.get(ticket.id)
        end = exchange.now + round(ticket.deadline_s * SECOND)
        if known is not None:
            known.end = end  # the deadline may have moved
            if known.state == "granted" and exchange.rejoining and len(self._permits) > exchange.cap:
                # The process missed this grant and used its local scheduler since.
                self._detach(known)
                known.state, known.outcome = "waiting", None
                self._enqueue(known)
            elif known.outcome is not None:
                exchange.deliver(known, known.outcome)
                known.end += GRACE
            return
        entry = _entry(ticket, exchange.process_id, exchange.now, end)
        if end <= exchange.now:
            return
        cached = self._cache.get(entry.dedupe_key, exchange.now) if entry.cache_ttl else None
        if cached is not None:
            exchange.deliver(entry, SharedGuidance(cached, cached=True))
            return
        follows = bool(entry.dedupe_key) and entry.dedupe_key in self._leaders
        if not follows and len(self._queues.get(entry.tenant, ())) >= exchange.limits.max_queue:
            drain = self._grants.time_for(self._waiting(), exchange.now)
            exchange.deliver(entry, TicketRefused((_DEFAULT_RETRY if drain is None else drain) / SECOND))
            return
        entry.seq = self._seq = max(exchange.now, self._seq + 1)
        self._entries[entry.id] = entry
        if follows:
            entry.state = "following"
            insort(self._followers.setdefault(entry.dedupe_key, []), (entry.seq, entry.id))
            return
        self._arrivals.count(1, exchange.now)
        if entry.dedupe_key:
            self._leaders[entry.dedupe_key] = entry.id
        self._enqueue(entry)

    def _enqueue(self, entry: _Entry) -> None:
        if entry.tenant not in self._queues:
            self._queues[entry.tenant] = []
            self._passes[entry.tenant] = max(self._idle.pop(entry.tenant, 0), self._pass)
        insort(self._queues[entry.tenant], (entry.seq, entry.id))

    def _set_pass(self, tenant: str, tenant_pass: int) -> None:
        """Set a tenant's pass; the fair order holds only tenants with waiting tickets."""
        if tenant in self._queues:
            self._passes[tenant] = tenant_pass
            return
        self._passes.pop(tenant, None)
        if tenant_pass > self._pass:
            self._idle[tenant] = tenant_pass

    def _hold(self, ticket: Ticket, exchange: _Exchange) -> None:
        """Record a permit in use, perhaps granted by a local scheduler or by a Redis that has lost it."""
        entry = self._entries.get(ticket.id)
        if entry is None:
            entry = self._entries[ticket.id] = _entry(ticket, exchange.process_id, exchange.now, 0)
        elif entry.state != "granted":
            self._detach(entry)
        if entry.dedupe_key:
            self._leaders.setdefault(entry.dedupe_key, entry.id)
        entry.state = "granted"
        entry.outcome = entry.outcome if isinstance(entry.outcome, Grant) else Grant("held", 0)
        entry.end = exchange.now + round(ticket.deadline_s * SECOND) + GRACE
        self._permits.add(entry.id)

    def _finish(self, ticket_id: str, guidance: str, exchange: _Exchange) -> None:
        entry = self._entries.get(ticket_id)
        if entry is None:
            return
        if entry.dedupe_key and self._leaders.get(entry.dedupe_key) == ticket_id:
            for _, follower_id in self._followers.pop(entry.dedupe_key, []):
                follower = self._entries[follower_id]
                follower.state, follower.outcome = "shared", SharedGuidance(guidance, cached=False)
                follower.end += GRACE
                exchange.deliver(follower, follower.outcome)
        if entry.cache_ttl:
            now, max_bytes = exchange.now, exchange.limits.max_cache_bytes
            self._cache.put(entry.dedupe_key, guidance, now + entry.cache_ttl, max_bytes, now)
        self._remove(ticket_id, exchange)

    def _remove(self, ticket_id: str, exchange: _Exchange) -> None:
        entry = self._entries.pop(ticket_id, None)
        if entry is None:
            return
        self._detach(entry)
        if entry.dedupe_key and self._leaders.get(entry.dedupe_key) == ticket_id:
            del self._leaders[entry.dedupe_key]
            self._promote(entry.dedupe_key, exchange)

    def _detach(self, entry: _Entry) -> None:
        """Remove the entry from the collection of its state."""
        self._permits.discard(entry.id)
        if entry.state == "waiting":
            queue = self._queues[entry.tenant]
            queue.remove((entry.seq, entry.id))
            if not queue:
                del self._queues[entry.tenant]
                self._set_pass(entry.tenant, self._passes[entry.tenant])
        elif entry.state == "following":
            self._unfollow(entry)

    def _unfollow(self, entry: _Entry) -> None:
        followers = self._followers[entry.dedupe_key]
        followers.remove((entry.seq, entry.id))
        if not followers:
            del self._followers[entry.dedupe_key]

    def _promote(self, dedupe_key: str, exchange: _Exchange) -> None:
        """Make the oldest unexpired follower the leader, queued by its own time of arrival."""
        for _, ticket_id in self._followers.get(dedupe_key, ()):
            entry = self._entries[ticket_id]
            if entry.end > exchange.now:
                self._unfollow(entry)
                entry.state = "waiting"
                self._leaders[dedupe_key] = ticket_id
                self._enqueue(entry)
                return

    def _waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    def _open_batches(self, exchange: _Exchange) -> tuple[int | None, int | None]:
        """Open every batch that can open. Return the window and when to apply the rule again."""
        limits, now = exchange.limits, exchange.now
        size = min(limits.max_size, limits.max_in_flight)
        in_order = self._in_fair_order()
        head: deque[_Entry] = deque()
        window = due = None
        while True:
            teacher = TeacherLoad(len(self._permits), exchange.cap, self._free_since)
            if teacher.free_permits <= 0:
                self._free_since = 0
                due = self._settle_until if now < self._settle_until else None
                break
            if not 0 < self._free_since <= now:
                self._free_since = now
                teacher = TeacherLoad(teacher.in_flight, exchange.cap, now)
            head.extend(islice(in_order, size - len(head)))
            if not head:
                due = None
                break
            batch = open_batch(head, teacher, limits, self._arrivals, self._grants, now)
            window, due = batch.window, batch.due
            if not batch.size:
                break
            self._batches += 1
            exchange.opened.append(batch.size)
            self._grants.count(batch.size, now)
            grant = Grant(f"{self._prefix}{self._batches}", batch.size)
            for _ in range(batch.size):
                self._grant(head.popleft(), grant, exchange)
        return window, due

    def _grant(self, entry: _Entry, grant: Grant, exchange: _Exchange) -> None:
        self._detach(entry)
        self._pass = max(self._pass, entry.tenant_pass)
        self._set_pass(entry.tenant, entry.tenant_pass + entry.stride)
        entry.state, entry.outcome = "granted", grant
        entry.end += GRACE
        self._permits.add(entry.id)
        exchange.deliver(entry, grant)

    def _in_fair_order(self) -> Iterator[_Entry]:
        """Yield the waiting tickets in the order of permits. Tenants with equal passes alternate, by name first."""
        names = sorted((tenant_pass, tenant) for tenant, tenant_pass in self._passes.items())
        ranks = count()
        tenants = [(tenant_pass, next(ranks), iter(list(self._queues[tenant]))) for tenant_pass, tenant in names]
        while tenants:
            tenant_pass, _, tickets = heapq.heappop(tenants)
            for _, ticket_id in islice(tickets, 1):
                entry = self._entries[ticket_id]
                heapq.heappush(tenants, (tenant_pass + entry.stride, next(ranks), tickets))
                entry.tenant_pass = tenant_pass
                yield entry


def _entry(ticket: Ticket, process_id: str, now: int, end: int) -> _Entry:
    """Return the entry of a ticket that arrives now; `seq` is set when it is queued."""
    max_wait, cache_ttl = round(ticket.max_wait_s * SECOND), round(ticket.cache_ttl_s * SECOND)
    identity = (ticket.id, process_id, ticket.tenant, stride(ticket.weight), ticket.prompt_tokens)
    return _Entry(*identity, max_wait, now, 0, ticket.dedupe_key, cache_ttl, end)


def stride(weight: float) -> int:
    """Return how far a grant advances the pass of a tenant with this weight."""
    return max(1, round(_STRIDE / weight))
