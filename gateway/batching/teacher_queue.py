"""The tickets of one process for one teacher: a permit of the fleet, or of a local scheduler without Redis."""

from __future__ import annotations

import asyncio
import math
import secrets
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import structlog
from msgspec import structs
from redis.exceptions import RedisError

from gateway.batching.membership import Membership
from gateway.batching.permit_waiter import PermitWaiter
from gateway.batching.redis_scheduler import RedisScheduler
from gateway.batching.scheduler import Scheduler
from gateway.batching.throughput_meter import ThroughputMeter
from gateway.batching.ticket import (
    Grant,
    SchedulerDecision,
    SchedulerUpdate,
    SharedGuidance,
    TicketBroken,
    TicketRefused,
)
from gateway.batching.view import SchedulerView, local_view
from gateway.batching.window import SECOND
from gateway.redis.client import ReconnectBackoff

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from gateway.batching.ticket import Outcome, TeacherLimits, Ticket
    from gateway.batching.view import QueueView
    from gateway.redis.client import RedisClient
    from gateway.redis.keys import RedisKeys
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

_HEARTBEATS_PER_LEASE = 4
# The longest delivery time of a wake-up.
_WAKEUP_DELAY_S = 0.25
# A uvloop timer may fire early by this much.
_TIMER_ERROR_S = 0.001
# The local scheduler scans its whole cache, so the cache is small.
_LOCAL_CACHE_BYTES = 1_000_000

OnFailure = Literal["degrade", "reject"]


class QueueTimes(NamedTuple):
    """Intervals of a teacher's queue."""

    # Each process sends a complete update this often, so a lost wake-up, reply or Redis memory delays a ticket no
    # longer. `JUMP` and `GRACE` of the scheduler are twice the default.
    heartbeat_s: float = 1.0
    # How often a process without Redis checks whether Redis is back; also the pause after an error in the loop.
    retry_s: float = 0.25
    # The pause after Redis rejects an exchange while it answers other commands. Each failure doubles it.
    failure_backoff_s: float = 1.0
    # While the teacher has capacity to spare, returned permits wait this long for the exchange of a later ticket.
    linger_s: float = 0.005


class TeacherQueue:
    """The tickets of this process for one teacher, and the loop that exchanges updates with the fleet's scheduler.

    Updates accumulate during an exchange, so that under load one round trip serves many requests. While Redis is
    unavailable, the process uses a local scheduler within its share of the teacher's limit.
    """

    def __init__(
        self,
        redis: RedisClient,
        keys: RedisKeys,
        *,
        process_id: str,
        teacher: str,
        limits: Callable[[], TeacherLimits],
        on_failure: OnFailure,
        metrics: Metrics,
        times: QueueTimes = QueueTimes(),
    ) -> None:
        self._redis, self._times = redis, times
        self._key = keys.teacher(teacher).queue
        self._scheduler = RedisScheduler(redis.commands, keys, process_id, teacher)
        self._view = SchedulerView(redis.commands, keys, teacher)
        self._process_id, self._teacher, self._limits, self._on_failure = process_id, teacher, limits, on_failure
        self._meter = ThroughputMeter(metrics, teacher)
        self._waiters: dict[str, PermitWaiter] = {}  # in order of arrival
        self._unsent: dict[str, PermitWaiter] = {}  # with changes that the scheduler does not know
        self._released: list[str] = []
        self._finished: list[tuple[str, str]] = []
        self._unconfirmed: list[str] = []  # released while Redis was unavailable; Redis may still count them
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None  # sets `_changed` for returned permits
        self._is_quiet = False  # at the last exchange, no ticket waited and half of the permits were free
        self._needs_resync = False  # the scheduler may have lost data, or a wake-up may be lost
        self._rejoining = False  # used the local scheduler, and the fleet does not know it yet
        self._full_update_at = 0.0
        self._local: Scheduler | None = None  # in use while Redis is unavailable
        self._local_since = 0.0
        self._backoff = ReconnectBackoff(times.failure_backoff_s)
        self._exchange_lock = asyncio.Lock()
        self._wakeups_trusted_at = 0.0
        self.membership = Membership()
        self._leaving = False

    def acquire(self, ticket: Ticket, deadline: float | None = None) -> PermitWaiter:
        """Wait for a ticket's outcome: `async with queue.acquire(ticket) as waiter`.

        Inside the block, `waiter.outcome` is a Grant, which holds a permit, or shared guidance. Leaving the block
        returns the permit. The caller bounds the wait by the ticket's deadline; cancellation withdraws the ticket.
        `deadline` is on the loop's clock, if the ticket's began to run before now.

        Raises:
            StoreUnavailable: Redis is unavailable and `on_failure` is `reject`.
            PermitUnavailable: Redis is unavailable, and this process had no permit in time.
            QueueFull: too many tickets of this tenant wait.
            TicketUnreadable: the stored ticket cannot be decoded.
            TimeoutError: the permit came after the deadline.
        """
        return PermitWaiter(self, ticket, deadline)

    def enqueue(self, waiter: PermitWaiter) -> None:
        assert waiter.ticket.id not in self._waiters, "two tickets with one id"
        self._waiters[waiter.ticket.id] = waiter
        self._unsent[waiter.ticket.id] = waiter
        self._changed.set()

    def extend_deadline(self, waiter: PermitWaiter, deadline: float) -> None:
        """Move the waiter's deadline, and send it before the scheduler expires the ticket or its permit."""
        if waiter.deadline < self._full_update_at:
            self._unsent[waiter.ticket.id] = waiter
            self._changed.set()
        waiter.deadline = deadline

    def withdraw(self, waiter: PermitWaiter) -> None:
        """Release a waiter that ended before its outcome: at its deadline, or canceled by its caller."""
        self._meter.count_ended("expired" if waiter.deadline <= _now() + _TIMER_ERROR_S else "withdrawn")
        self.release(waiter, None)

    def release(self, waiter: PermitWaiter, guidance: str | None) -> None:
        """Remove a waiter, and return its permit; tickets with the same key receive `guidance`."""
        ticket_id = waiter.ticket.id
        del self._waiters[ticket_id]
        if self._local is not None:
            if waiter.sent:
                self._unconfirmed.append(ticket_id)
        elif not waiter.sent:
            return
        if guidance is None:
            self._released.append(ticket_id)
        else:
            self._finished.append((ticket_id, guidance))
        if not self._is_quiet:
            self._changed.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._times.linger_s, self._changed.set)

    def deliver(self, outcomes: Mapping[str, Outcome]) -> None:
        """Wake the waiters with these outcomes; return a permit at once if its waiter has ended."""
        for ticket_id, outcome in outcomes.items():
            waiter = self._waiters.get(ticket_id)
            if waiter is None:
                self._released.append(ticket_id)
                self._changed.set()
            elif not waiter.future.done():
                is_cached = isinstance(outcome, SharedGuidance) and outcome.cached
                if self._local is None and (is_cached or isinstance(outcome, TicketRefused | TicketBroken)):
                    waiter.sent = False  # the scheduler has removed the ticket
                waiter.future.set_result(outcome)
                if isinstance(outcome, TicketRefused):
                    self._meter.count_ended("refused")

    def on_wakeup(self, outcomes: Mapping[str, Outcome]) -> None:
        """Deliver a wake-up's outcomes. Ignore grants from the time of the local scheduler, which may be revoked."""
        if not outcomes:  # a request for a complete update
            self.resync()
        if _now() < self._wakeups_trusted_at:
            outcomes = {ticket_id: one for ticket_id, one in outcomes.items() if not isinstance(one, Grant)}
            self.resync()
        self.deliver(outcomes)

    def resync(self) -> None:
        """Send a complete update: wake-ups may be lost, or Redis may have restarted empty."""
        self._needs_resync = True
        self._changed.set()

    async def view(self) -> QueueView:
        """Return the state of the teacher over the fleet, or of this process alone if Redis does not answer."""
        limits = self._limits()
        why = "Redis is unavailable"
        if self._redis.is_up(self._key):
            try:
                return await self._view.read(limits)
            except (RedisError, OSError) as error:
                why = f"Redis did not answer: {type(error).__name__}"
        cap = limits.max_in_flight
        if self._local is not None:
            cap = self.membership.share(cap, limits.lease_s, _now())
        return local_view(self._waiters.values(), self._process_id, cap, _now(), why)

    async def leave_fleet(self) -> None:
        """Remove this process from the fleet, so that others need not wait for its lease to expire."""
        self._leaving = True
        # The fleet size is included: a scheduler that lost its data then waits for the other processes.
        update = SchedulerUpdate(complete=True, fleet_size=self.membership.fleet_size, leaving=True)
        async with self._exchange_lock:  # a later exchange would add the process again
            # Redis may know tickets even if it seems unavailable. Try twice, since nothing sends this update later.
            for _ in range(2):
                with suppress(RedisError, OSError):
                    await self._scheduler.exchange(update, self._limits())
                    return

    async def run(self) -> None:
        """Exchange updates for decisions until canceled. The loop survives any error, since every request needs it."""
        next_exchange_s: float | None = 0.0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(next_exchange_s):
                    await self._changed.wait()
            self._changed.clear()
            try:
                next_exchange_s = await self._exchange()
            except Exception:
                log.exception("exchange_failed", teacher=self._teacher, retry_in_s=self._times.retry_s)
                await asyncio.sleep(self._times.retry_s)
                self.resync()

    async def _exchange(self) -> float:
        """Exchange once and deliver the outcomes. Return the longest time until the next exchange."""
        limits = self._limits()
        complete = self._needs_resync or _now() >= self._full_update_at
        async with self._exchange_lock:
            if self._leaving:
                return self._times.heartbeat_s
            use_redis = self._redis.is_up(self._key) and _now() >= self._backoff.until
            decision = await self._exchange_with_fleet(limits) if use_redis else None
        if decision is None:
            decision = self._exchange_locally(limits)
        self._is_quiet = not decision.waiting and 2 * decision.in_flight <= limits.max_in_flight
        self.deliver(decision.outcomes)
        refused_in_s = self._refuse_overdue() if self._local is not None else math.inf
        self._meter.record(decision, limits)
        if complete:
            now = _now()
            ages = (now - waiter.enqueued_at for waiter in self._waiters.values() if not waiter.future.done())
            self._meter.set_gauges(decision, limits, oldest_s=max(ages, default=0.0))
        latest_s = self._times.retry_s if self._local is not None else max(0.0, self._full_update_at - _now())
        latest_s = min(latest_s, refused_in_s)
        return latest_s if decision.next_exchange_s is None else min(latest_s, decision.next_exchange_s)

    async def _exchange_with_fleet(self, limits: TeacherLimits) -> SchedulerDecision | None:
        """Return the fleet's decision, or None if Redis fails."""
        local, self._local = self._local, None
        local_changes = self._released, self._finished
        if local is not None:
            self._released, self._finished, self._unconfirmed = self._unconfirmed, [], []
            self._rejoining = self._needs_resync = True
        update = self._take_update(limits, for_fleet=True)
        try:
            decision = await self._scheduler.exchange(update, limits)
        except Exception as error:
            self._redis.failed(error)
            self._backoff.begin(_now())
            if not isinstance(error, RedisError | OSError):
                log.exception("exchange_failed", teacher=self._teacher)
            if local is None:
                self._released[:0], self._finished[:0] = update.released, update.finished
                self._start_local(type(error).__name__)
            else:
                self._keep_local(local, unconfirmed=update.released)
                # The local scheduler must receive its own releases, or it never grants those permits again.
                self._released[:0], self._finished[:0] = local_changes
            return None
        if local is not None:
            log.info("fleet_rejoined", teacher=self._teacher)
        if update.rejoining:
            self._wakeups_trusted_at = _now() + _WAKEUP_DELAY_S
        self.membership.record_fleet(decision.fleet_size, limits.lease_s, _now())
        return decision

    def _exchange_locally(self, limits: TeacherLimits) -> SchedulerDecision:
        if self._local is None:
            self._start_local("breaker")
        assert self._local is not None
        if self._on_failure == "reject":
            for waiter in self._waiters.values():
                waiter.refuse_without_store()
            self._unsent, self._released, self._finished = {}, [], []
            return SchedulerDecision()
        update = structs.replace(self._take_update(limits, for_fleet=False), fleet_size=1)
        local_limits = replace(
            limits,
            max_in_flight=self.membership.share(limits.max_in_flight, limits.lease_s, _now()),
            max_cache_bytes=min(limits.max_cache_bytes, _LOCAL_CACHE_BYTES),
        )
        decision, _ = self._local.exchange(self._process_id, update, local_limits, round(_now() * SECOND))
        return decision

    def _refuse_overdue(self) -> float:
        """End waits that were too long without Redis. Return the seconds until the next one ends.

        Other processes may hold all permits until their deadlines. A ticket waits for `max_wait` from the start of the
        outage, or for `max_wait` and the timeout of Redis from its arrival, whichever ends later.
        """
        now, first = _now(), math.inf
        for waiter in self._waiters.values():
            if waiter.future.done():
                continue
            until = waiter.ticket.max_wait_s + max(self._local_since, waiter.enqueued_at + self._redis.timeout_s)
            if until > now:
                first = min(first, until)
            else:
                waiter.refuse_without_permit()
                self._meter.count_ended("refused")
        return first - now

    def _start_local(self, why: str) -> None:
        self._local_since = _now()
        self._wakeups_trusted_at = math.inf
        self.membership.record_outage(sum(waiter.holds_permit for waiter in self._waiters.values()), _now())
        # Batch ids must be unique among local schedulers.
        self._keep_local(Scheduler(f"local-{secrets.token_hex(4)}-"))
        size = self.membership.fleet_size
        log.warning("fleet_left", teacher=self._teacher, why=why, processes=size, then=self._on_failure)

    def _keep_local(self, scheduler: Scheduler, *, unconfirmed: Collection[str] = ()) -> None:
        self._local, self._needs_resync = scheduler, True
        self._unconfirmed += [*unconfirmed, *self._released, *(ticket_id for ticket_id, _ in self._finished)]

    def _take_update(self, limits: TeacherLimits, *, for_fleet: bool) -> SchedulerUpdate:
        """Return the changes since the last update, or a complete update when one is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = _now()
        complete = self._needs_resync or now >= self._full_update_at
        if complete:
            waiters = list(self._waiters.values())
            self._full_update_at = now + min(self._times.heartbeat_s, limits.lease_s / _HEARTBEATS_PER_LEASE)
        else:
            waiters = [waiter for ticket_id, waiter in self._unsent.items() if ticket_id in self._waiters]
        arrived = [waiter for waiter in waiters if not waiter.future.done()]
        held = [waiter for waiter in waiters if waiter.holds_permit]
        for waiter in arrived:
            self.membership.record_deadline(waiter.deadline - waiter.enqueued_at, limits.lease_s, now)
        for waiter in (*arrived, *held):
            waiter.sent = waiter.sent or for_fleet
        update = SchedulerUpdate(
            arrived=[waiter.remaining_ticket(now) for waiter in arrived],
            released=self._released,
            finished=self._finished,
            held=[waiter.remaining_ticket(now) for waiter in held],
            complete=complete,
            fleet_size=self.membership.fleet_size,
            rejoining=self._rejoining,
        )
        self._unsent, self._released, self._finished = {}, [], []
        self._needs_resync = self._rejoining = False
        return update


def _now() -> float:
    return asyncio.get_running_loop().time()
