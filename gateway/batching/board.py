"""One teacher's queue in memory: fair shares, permits, flights. What a process decides by while Redis is away.

`board.lua` is the same board in Redis, for the whole fleet; read the two side by side. Pure: times are whole
microseconds on one clock, handed in as `now`.

Fair shares: stride scheduling (Waldspurger and Weihl, 1995). Each tenant has a pass; whoever has the lowest gets the
next permit and moves its pass on by a stride, which is the shorter the greater its weight. A tenant that comes to an
empty queue of its own starts at the pass of the last permit: it neither saves up turns nor makes up for others.

Flights: of the tickets with the same work one leads and is queued, the others follow and get what it fetched. When a
leader leaves without, the oldest follower takes its place in the queue.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from dataclasses import dataclass, field
from itertools import count, islice
from typing import TYPE_CHECKING, Literal

from gateway.batching.ticket import Grant, SchedulerDecision, SharedGuidance, TicketRefused
from gateway.batching.window import SECOND, EventRate, TeacherLoad, open_batch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.batching.ticket import Outcome, SchedulerUpdate, TeacherLimits, Ticket

# A permit is returned at its deadline; it must not lapse before, nor when the clock is set forward by less than a jump.
GRACE = 2 * SECOND
# Every process is heard of each second. Time beyond this between two exchanges did not pass: the clock was set, or the
# board stood still.
JUMP = 2 * SECOND
# After an outage the processes come back one by one. Until each has told what it holds, or so long, nothing is granted.
SETTLE = 2 * SECOND
# When nothing was granted lately, there is no rate to compute from.
_RETRY_BLIND = 10 * SECOND
_STRIDE = 10_000
# What a kept guidance takes beside its text, roughly.
_CACHE_OVERHEAD = 100
_MOST_ENDED = 20
_MOST_DROPPED = 1000


@dataclass(slots=True)
class _Entry:
    """A ticket on the board."""

    id: str
    owner: str
    tenant: str
    stride: int
    prompt_tokens: int
    max_wait: int
    since: int
    seq: int  # its place in the order of arrival
    work: str
    cache_ttl: int
    end: int  # when it ends by itself
    state: Literal["waiting", "granted", "following", "shared"] = "waiting"
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class _Candidate:
    entry: _Entry
    turn: int  # its tenant's pass when its turn came

    @property
    def since(self) -> int:
        return self.entry.since

    @property
    def max_wait(self) -> int:
        return self.entry.max_wait

    @property
    def prompt_tokens(self) -> int:
        return self.entry.prompt_tokens


@dataclass(slots=True)
class _Exchange:
    """One exchange under way: who asks, when, and what comes of it."""

    owner: str
    limits: TeacherLimits
    now: int
    returning: bool
    cap: int = 0  # how many permits may be out
    outcomes: dict[str, dict[str, Outcome]] = field(default_factory=dict)  # by owner, by ticket
    opened: list[int] = field(default_factory=list)
    reclaimed: int = 0

    def tell(self, entry: _Entry, outcome: Outcome) -> None:
        self.outcomes.setdefault(entry.owner, {})[entry.id] = outcome


class Scheduler:
    """Args:
    batch_prefix: how its batch ids begin.
    """

    def __init__(self, batch_prefix: str = "b") -> None:
        self._prefix = batch_prefix
        self._entries: dict[str, _Entry] = {}
        self._permits: set[str] = set()
        self._queues: dict[str, list[tuple[int, str]]] = {}  # by tenant: (seq, id)
        self._passes: dict[str, int] = {}  # by tenant that waits
        self._idle: dict[str, int] = {}  # by tenant that does not, where it is ahead of the last permit's
        self._pass = 0  # of the last permit
        self._flights: dict[str, str] = {}  # by work: the leader
        self._followers: dict[str, list[tuple[int, str]]] = {}  # by work: (seq, id)
        self._owners: dict[str, int] = {}  # when each process was last heard of
        self._cache: dict[str, tuple[str, int]] = {}  # by work: guidance, end
        self._cache_bytes = 0
        self._arrivals, self._grants = EventRate(), EventRate()
        self._seq = self._batches = self._room_since = 0
        self._last: int | None = None
        self._settle_until = self._settle_fleet = 0
        self._settled: set[str] = set()  # the processes that have told everything since

    def exchange(
        self, owner: str, news: SchedulerUpdate, limits: TeacherLimits, now: int
    ) -> tuple[SchedulerDecision, dict[str, dict[str, Outcome]]]:
        """Take the news in and decide: what follows for `owner`, and the outcomes of other processes' tickets. A
        process without any is asked to tell everything."""
        here = _Exchange(owner, limits, now, news.returning)
        begins = self._last is None
        if begins or now // SECOND != (self._last or 0) // SECOND:
            # A tenant whose pass is behind starts at the last permit's in any case.
            self._idle = {tenant: own for tenant, own in self._idle.items() if own > self._pass}
        self._mend_time(now)
        self._settle(here, news, begins=begins)
        here.cap = limits.max_in_flight if now >= self._settle_until else 0
        for ticket_id in news.gone:
            self._remove(ticket_id, here)
        for ticket_id, guidance in news.finished:
            self._finish(ticket_id, guidance, here)
        for ticket in news.held:
            self._hold(ticket, here)
        for entry in [entry for entry in self._entries.values() if entry.end <= now]:
            here.reclaimed += entry.state == "granted"
            self._remove(entry.id, here)
        self._hear_of(here, leaving=news.leaving)
        self._arrivals.count(0, now)
        self._grants.count(0, now)
        for ticket in news.arrived:
            self._arrive(ticket, here)
        window, due = self._open_batches(here)
        decision = SchedulerDecision(
            here.outcomes.pop(owner, {}),
            None if due is None else (due - now) / SECOND,
            len(self._owners),
            len(self._permits),
            self._waiting(),
            None if window is None else window / SECOND,
            here.opened,
            here.reclaimed,
        )
        return decision, here.outcomes

    def _mend_time(self, now: int) -> None:
        gap = 0 if self._last is None else now - self._last
        self._last = now
        if not 0 <= gap <= JUMP:
            self._owners = {owner: heard + gap for owner, heard in self._owners.items()}
            for entry in self._entries.values():
                entry.end += gap
            self._room_since += gap if self._room_since else 0
            self._settle_until += gap

    def _settle(self, here: _Exchange, news: SchedulerUpdate, *, begins: bool) -> None:
        """A board that begins, and one to which a process returns, does not know of all calls in flight."""
        asked: list[str] = []
        if (begins or news.returning) and here.now >= self._settle_until:
            self._settle_until, self._settle_fleet = here.now + SETTLE, 0
            self._settled.clear()
            asked = [owner for owner in self._owners if owner != here.owner]
        if here.now < self._settle_until:
            self._settle_fleet = max(self._settle_fleet, news.fleet)
            if news.everything:
                self._settled.add(here.owner)
            if len(self._settled) >= self._settle_fleet:
                self._settle_until = here.now
            else:
                here.outcomes |= {owner: {} for owner in asked}

    def _hear_of(self, here: _Exchange, *, leaving: bool) -> None:
        self._owners[here.owner] = here.now
        lease = round(here.limits.lease_s * SECOND)
        lapsed = {owner for owner, heard in self._owners.items() if heard <= here.now - lease}
        for entry in [entry for entry in self._entries.values() if entry.owner in lapsed]:
            here.reclaimed += 1
            self._remove(entry.id, here)
        if leaving:
            lapsed.add(here.owner)
            for entry in [entry for entry in self._entries.values() if entry.owner == here.owner]:
                self._remove(entry.id, here)
        for owner in lapsed:
            del self._owners[owner]

    def _arrive(self, ticket: Ticket, here: _Exchange) -> None:
        known = self._entries.get(ticket.id)
        end = here.now + round(ticket.deadline_s * SECOND)
        if known is not None:
            known.end = end  # somebody may want it for longer than was told before
            if known.state == "granted" and here.returning and len(self._permits) > here.cap:
                # It never heard of this permit, and has granted others meanwhile.
                self._detach(known)
                known.state, known.outcome = "waiting", None
                self._enqueue(known)
            elif known.outcome is not None:
                here.tell(known, known.outcome)
                known.end += GRACE
            return
        entry = _entry(ticket, here.owner, here.now, end)
        kept = self._cache.get(entry.work) if entry.cache_ttl else None
        if end <= here.now:
            return
        if kept is not None and kept[1] > here.now:
            here.tell(entry, SharedGuidance(kept[0], cached=True))
            return
        follows = bool(entry.work) and entry.work in self._flights
        if not follows and len(self._queues.get(entry.tenant, ())) >= here.limits.max_queue:
            time = self._grants.time_for(self._waiting(), here.now)
            here.tell(entry, TicketRefused((_RETRY_BLIND if time is None else time) / SECOND))
            return
        entry.seq = self._seq = max(here.now, self._seq + 1)
        self._entries[entry.id] = entry
        if follows:
            entry.state = "following"
            insort(self._followers.setdefault(entry.work, []), (entry.seq, entry.id))
            return
        self._arrivals.count(1, here.now)
        if entry.work:
            self._flights[entry.work] = entry.id
        self._enqueue(entry)

    def _enqueue(self, entry: _Entry) -> None:
        if entry.tenant not in self._queues:
            self._queues[entry.tenant] = []
            self._passes[entry.tenant] = max(self._idle.pop(entry.tenant, 0), self._pass)
        insort(self._queues[entry.tenant], (entry.seq, entry.id))

    def _place_tenant(self, tenant: str, own: int) -> None:
        """The fair order holds only tenants that wait."""
        if tenant in self._queues:
            self._passes[tenant] = own
            return
        self._passes.pop(tenant, None)
        if own > self._pass:
            self._idle[tenant] = own

    def _hold(self, ticket: Ticket, here: _Exchange) -> None:
        """A permit in use, perhaps granted by a process that was alone, or by a Redis that has forgotten it."""
        entry = self._entries.get(ticket.id)
        if entry is None:
            entry = self._entries[ticket.id] = _entry(ticket, here.owner, here.now, 0)
        elif entry.state != "granted":
            self._detach(entry)
        if entry.work:
            self._flights.setdefault(entry.work, entry.id)
        entry.state = "granted"
        entry.outcome = entry.outcome if isinstance(entry.outcome, Grant) else Grant("held", 0)
        entry.end = here.now + round(ticket.deadline_s * SECOND) + GRACE
        self._permits.add(entry.id)

    def _finish(self, ticket_id: str, guidance: str, here: _Exchange) -> None:
        entry = self._entries.get(ticket_id)
        if entry is None:
            return
        if entry.work and self._flights.get(entry.work) == ticket_id:
            for _, follower_id in self._followers.pop(entry.work, []):
                follower = self._entries[follower_id]
                follower.state, follower.outcome = "shared", SharedGuidance(guidance, cached=False)
                follower.end += GRACE
                here.tell(follower, follower.outcome)
        if entry.cache_ttl:
            self._keep(entry, guidance, here)
        self._remove(ticket_id, here)

    def _keep(self, entry: _Entry, guidance: str, here: _Exchange) -> None:
        self._drop_kept(entry.work)
        size, most = _size(entry.work, guidance), here.limits.max_cache_bytes
        if size <= most:
            self._cache[entry.work] = guidance, here.now + entry.cache_ttl
            self._cache_bytes += size
        # Those that end first. Of what has ended few at a time: a cache full of it must not hold everything up.
        many = _MOST_DROPPED if self._cache_bytes > most else _MOST_ENDED
        first = heapq.nsmallest(many, ((end, work) for work, (_, end) in self._cache.items()))
        for dropped, (end, work) in enumerate(first):
            may_stay = end > here.now or dropped >= _MOST_ENDED
            if may_stay and self._cache_bytes <= most:
                break
            self._drop_kept(work)

    def _drop_kept(self, work: str) -> None:
        guidance, _ = self._cache.pop(work, (None, 0))
        if guidance is not None:
            self._cache_bytes -= _size(work, guidance)

    def _remove(self, ticket_id: str, here: _Exchange) -> None:
        entry = self._entries.pop(ticket_id, None)
        if entry is None:
            return
        self._detach(entry)
        if entry.work and self._flights.get(entry.work) == ticket_id:
            del self._flights[entry.work]
            self._promote(entry.work, here)

    def _detach(self, entry: _Entry) -> None:
        """Out of wherever its state has put it."""
        self._permits.discard(entry.id)
        if entry.state == "waiting":
            queue = self._queues[entry.tenant]
            queue.remove((entry.seq, entry.id))
            if not queue:
                del self._queues[entry.tenant]
                self._place_tenant(entry.tenant, self._passes[entry.tenant])
        elif entry.state == "following":
            self._unfollow(entry)

    def _unfollow(self, entry: _Entry) -> None:
        followers = self._followers[entry.work]
        followers.remove((entry.seq, entry.id))
        if not followers:
            del self._followers[entry.work]

    def _promote(self, work: str, here: _Exchange) -> None:
        """The oldest follower that is still wanted leads, at the place in the queue that its arrival gives it."""
        for _, ticket_id in self._followers.get(work, ()):
            entry = self._entries[ticket_id]
            if entry.end > here.now:
                self._unfollow(entry)
                entry.state = "waiting"
                self._flights[work] = ticket_id
                self._enqueue(entry)
                return

    def _waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    def _open_batches(self, here: _Exchange) -> tuple[int | None, int | None]:
        """Open every batch that can open; the window in use, and when the rule must be asked again."""
        limits, now = here.limits, here.now
        size = min(limits.max_size, limits.max_in_flight)
        in_order = self._in_fair_order()
        head: deque[_Candidate] = deque()
        window = due = None
        while True:
            teacher = TeacherLoad(len(self._permits), here.cap, self._room_since)
            if teacher.room <= 0:
                self._room_since = 0
                due = self._settle_until if now < self._settle_until else None
                break
            if not 0 < self._room_since <= now:
                self._room_since = now
                teacher = TeacherLoad(teacher.in_flight, here.cap, now)
            head.extend(islice(in_order, size - len(head)))
            if not head:
                due = None
                break
            opening = open_batch(head, teacher, limits, self._arrivals, self._grants, now)
            window, due = opening.window, opening.due
            if not opening.size:
                break
            self._batches += 1
            here.opened.append(opening.size)
            self._grants.count(opening.size, now)
            grant = Grant(f"{self._prefix}{self._batches}", opening.size)
            for _ in range(opening.size):
                self._grant(head.popleft(), grant, here)
        return window, due

    def _grant(self, candidate: _Candidate, grant: Grant, here: _Exchange) -> None:
        entry = candidate.entry
        self._detach(entry)
        self._pass = max(self._pass, candidate.turn)
        self._place_tenant(entry.tenant, candidate.turn + entry.stride)
        entry.state, entry.outcome = "granted", grant
        entry.end += GRACE
        self._permits.add(entry.id)
        here.tell(entry, grant)

    def _in_fair_order(self) -> Iterator[_Candidate]:
        """The waiting tickets in the order in which permits are due to them. Among equals, who has waited for a turn
        longer comes first, and at the start the name decides."""
        names = sorted((own, tenant) for tenant, own in self._passes.items())
        places = count()
        turns = [(own, next(places), iter(list(self._queues[tenant]))) for own, tenant in names]
        while turns:
            turn, _, tickets = heapq.heappop(turns)
            for _, ticket_id in islice(tickets, 1):
                entry = self._entries[ticket_id]
                heapq.heappush(turns, (turn + entry.stride, next(places), tickets))
                yield _Candidate(entry, turn)


def _entry(ticket: Ticket, owner: str, now: int, end: int) -> _Entry:
    """Of one that comes now. Its place in the order is given when it takes one."""
    return _Entry(
        ticket.id,
        owner,
        ticket.tenant,
        stride(ticket.weight),
        ticket.prompt_tokens,
        round(ticket.max_wait_s * SECOND),
        now,
        0,
        ticket.work,
        round(ticket.cache_ttl_s * SECOND),
        end,
    )


def stride(weight: float) -> int:
    """How far a permit moves its tenant's pass on."""
    return max(1, round(_STRIDE / weight))


def _size(work: str, guidance: str) -> int:
    return len(work) + len(guidance.encode()) + _CACHE_OVERHEAD
