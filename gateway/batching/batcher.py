"""What a request awaits before it calls the teacher: its turn on the fleet's board, or, without Redis, on its own."""

from __future__ import annotations

import asyncio
import math
import secrets
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import structlog
from msgspec import structs
from redis.exceptions import RedisError

from gateway.batching.board import Scheduler
from gateway.batching.membership import Membership
from gateway.batching.meter import ThroughputMeter
from gateway.batching.redis_board import RedisScheduler, hear_wakeups
from gateway.batching.ticket import (
    Grant,
    SchedulerDecision,
    SchedulerUpdate,
    SharedGuidance,
    TicketBroken,
    TicketRefused,
)
from gateway.batching.turn import PermitWaiter
from gateway.batching.view import SchedulerView, own_view
from gateway.batching.window import SECOND
from gateway.redis.client import ReconnectBackoff

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from gateway.batching.ticket import Outcome, TeacherLimits, Ticket
    from gateway.batching.view import QueueView
    from gateway.redis.client import RedisClient
    from gateway.redis.keys import RedisKeys
    from gateway.runtime.tasks import BackgroundTasks
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

# Each process is heard of this often, and tells everything anew: whatever was lost (a wake-up, a reply, Redis's memory)
# costs a ticket no more time than this. `JUMP` and `GRACE` of the board are twice as long.
_HEARTBEAT_S = 1.0
_HEARTBEATS_A_LEASE = 4
# While Redis is away, how soon the process sees that it is back; after the loop broke, how soon it goes on.
_REST_S = 0.25
# An exchange that Redis refuses, though it answers otherwise, is tried again after this; then after twice as long.
_REST_AFTER_FAILURE_S = 1.0
# A wake-up is under way for no longer.
_WAKEUP_S = 0.25

# A timer of uvloop's may come so much before its time.
_CLOCK_S = 0.001

# In memory guidance is looked through in whole, so little of it is kept.
_OWN_CACHE_BYTES = 1_000_000

OnFailure = Literal["degrade", "reject"]


class TeacherQueue:
    """The tickets of this process for one teacher, and the loop that exchanges them with the fleet's board.

    News gathers while an exchange is under way, so that under load one round trip serves many requests. While Redis is
    away the process decides on a board of its own, under its share of the cap.
    """

    def __init__(
        self,
        redis: RedisClient,
        keys: RedisKeys,
        *,
        owner: str,
        teacher: str,
        limits: Callable[[], TeacherLimits],
        on_failure: OnFailure,
        metrics: Metrics,
    ) -> None:
        self._redis = redis
        self._board = RedisScheduler(redis.commands, keys, owner, teacher)
        self._board_view = SchedulerView(redis.commands, keys, teacher)
        self._owner = owner
        self._teacher = teacher
        self._limits = limits
        self._on_failure = on_failure
        self._meter = ThroughputMeter(metrics, teacher)
        self._turns: dict[str, PermitWaiter] = {}  # in order of arrival
        self._untold: dict[str, PermitWaiter] = {}  # of which the board has something to learn
        self._gone: list[str] = []
        self._finished: list[tuple[str, str]] = []
        self._owed: list[str] = []  # gone while Redis was away, and it may still count them
        self._news = asyncio.Event()
        self._unsure = False  # the board may have forgotten, or said something unheard
        self._returning = False  # decided alone, and has not told the fleet yet
        self._tell_all_at = 0.0
        self._alone: Scheduler | None = None  # the board in use while Redis is away
        self._rest = ReconnectBackoff(_REST_AFTER_FAILURE_S)
        self._exchanging = asyncio.Lock()
        self._trusts_wakeups_at = 0.0
        self._membership = Membership()
        self._leaving = False

    def turn(self, ticket: Ticket, deadline: float | None = None) -> PermitWaiter:
        """`async with queue.turn(ticket) as turn`: wait until the ticket's turn has come, as `turn.outcome` says.

        Inside, a permit is held if that is a Grant; it is returned on leaving, whatever happens inside. The caller
        bounds the wait by the ticket's deadline: leaving by cancellation withdraws the ticket.

        Args:
            deadline: the ticket's, on the loop's clock, where it began to run before now.

        Raises:
            StoreUnavailable: Redis is away and the configuration says `reject`.
            QueueFull: too many tickets of this tenant wait already.
            TicketUnreadable: what the board kept of it cannot be read.
            TimeoutError: its turn came after its deadline.
        """
        return PermitWaiter(self, ticket, deadline)

    @property
    def processes(self) -> int:
        """The processes of the fleet, as last known."""
        return self._membership.all

    @property
    def joined_s(self) -> float:
        """When the process joined the fleet, on the clock of the event loop; infinite: not yet."""
        return self._membership.joined_s

    def enter(self, turn: PermitWaiter) -> None:
        assert turn.ticket.id not in self._turns, "two tickets with one id"
        self._turns[turn.ticket.id] = turn
        self._untold[turn.ticket.id] = turn
        self._news.set()

    def wait_longer(self, turn: PermitWaiter, deadline: float) -> None:
        """Move the turn's deadline; the board learns it before it lets the ticket end, or takes its permit back."""
        if turn.deadline < self._tell_all_at:
            self._untold[turn.ticket.id] = turn
            self._news.set()
        turn.deadline = deadline

    def give_up(self, turn: PermitWaiter) -> None:
        """The caller left before it had what it waited for: at its deadline, or earlier by itself."""
        self._meter.ended("expired" if turn.deadline <= _now() + _CLOCK_S else "withdrawn")
        self.leave(turn, None)

    def leave(self, turn: PermitWaiter, guidance: str | None) -> None:
        """The turn is over; `guidance` is what was fetched in it, for those who wait for the same."""
        ticket_id = turn.ticket.id
        del self._turns[ticket_id]
        if self._alone is not None:
            if turn.told:
                self._owed.append(ticket_id)
        elif not turn.told:
            return
        if guidance is None:
            self._gone.append(ticket_id)
        else:
            self._finished.append((ticket_id, guidance))
        self._news.set()

    def deliver(self, outcomes: Mapping[str, Outcome]) -> None:
        """Wake the requests whose turn it is; a permit nobody waits for any more goes straight back."""
        for ticket_id, outcome in outcomes.items():
            turn = self._turns.get(ticket_id)
            if turn is None:
                self._gone.append(ticket_id)
                self._news.set()
            elif not turn.waiting.done():
                if self._alone is None and _forgotten(outcome):
                    turn.told = False
                turn.waiting.set_result(outcome)
                if isinstance(outcome, TicketRefused):
                    self._meter.ended("refused")

    def hear(self, outcomes: Mapping[str, Outcome]) -> None:
        """What a wake-up says. Of a permit given while this process was alone the board may think otherwise by now."""
        if not outcomes:  # the board wants to know everything
            self.recheck()
        if _now() < self._trusts_wakeups_at:
            outcomes = {ticket_id: one for ticket_id, one in outcomes.items() if not isinstance(one, Grant)}
            self.recheck()
        self.deliver(outcomes)

    def recheck(self) -> None:
        """Wake-ups may have been lost, or Redis begun anew: tell it everything, and ask what became of it."""
        self._unsure = True
        self._news.set()

    async def look(self) -> QueueView:
        """How the teacher stands over the fleet; where Redis does not tell, what this process knows of itself."""
        limits = self._limits()
        why = "Redis is away"
        if self._redis.up:
            try:
                return await self._board_view.look(limits)
            except (RedisError, OSError) as error:
                why = f"Redis did not tell: {type(error).__name__}"
        cap = (
            limits.max_in_flight
            if self._alone is None
            else self._membership.share(limits.max_in_flight, limits.lease_s, _now())
        )
        return own_view(self._turns.values(), self._owner, cap, _now(), why)

    async def leave_fleet(self) -> None:
        """Tell the board that this process stops, so that nobody waits for its lease to lapse."""
        self._leaving = True
        # A board that has forgotten everything may hear of this first: it then waits for the others of the fleet.
        news = SchedulerUpdate(everything=True, fleet=self._membership.fleet, leaving=True)
        async with self._exchanging:  # one that comes after it would bring the process back
            # Also while Redis seems away: it may yet hear of tickets that were told before. And once more if that
            # fails: nobody says it later, and the others would wait for the lease.
            for _ in range(2):
                with suppress(RedisError, OSError):
                    await self._board.exchange(news, self._limits())
                    return

    async def run(self) -> None:
        """Exchange news for decisions, for ever. Whatever fails, the loop lives on: every later request needs it."""
        next_look_s: float | None = 0.0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(next_look_s):
                    await self._news.wait()
            self._news.clear()
            try:
                next_look_s = await self._look()
            except Exception:
                log.exception("exchange_broke", teacher=self._teacher, retry_in_s=_REST_S)
                await asyncio.sleep(_REST_S)
                self.recheck()

    async def _look(self) -> float:
        """Ask, deliver, and say when to look again at the latest."""
        limits = self._limits()
        everything = self._unsure or _now() >= self._tell_all_at
        async with self._exchanging:
            if self._leaving:
                return _HEARTBEAT_S
            may_ask = self._redis.up and _now() >= self._rest.until
            decision = await self._ask_fleet(limits) if may_ask else None
        if decision is None:
            decision = self._ask_own(limits)
        self.deliver(decision.outcomes)
        self._meter.count(decision, limits)
        if everything:
            now = _now()
            ages = (now - turn.entered for turn in self._turns.values() if not turn.waiting.done())
            self._meter.show(decision, limits, oldest_s=max(ages, default=0.0))
        latest_s = _REST_S if self._alone is not None else max(0.0, self._tell_all_at - _now())
        return latest_s if decision.next_look_s is None else min(latest_s, decision.next_look_s)

    async def _ask_fleet(self, limits: TeacherLimits) -> SchedulerDecision | None:
        """The fleet's decision; None when Redis fails."""
        alone, self._alone = self._alone, None
        of_own_board = self._gone, self._finished
        if alone is not None:
            self._gone, self._finished, self._owed = self._owed, [], []
            self._returning = self._unsure = True
        news = self._take_news(limits, of_fleet=True)
        try:
            decision = await self._board.exchange(news, limits)
        except Exception as error:
            self._redis.failed(error)
            self._rest.begin(_now())
            if not isinstance(error, RedisError | OSError):
                log.exception("exchange_broke", teacher=self._teacher)
            if alone is None:
                self._gone[:0], self._finished[:0] = news.gone, news.finished
                self._go_alone(type(error).__name__)
            else:
                self._stay_alone(alone, owed=news.gone)
                # What ended since the own board was last asked: it has yet to hear of that, or the permits stay out.
                self._gone[:0], self._finished[:0] = of_own_board
            return None
        if alone is not None:
            log.info("fleet_rejoined", teacher=self._teacher)
        if news.returning:
            self._trusts_wakeups_at = _now() + _WAKEUP_S
        self._membership.saw(decision.fleet, limits.lease_s, _now(), decision.beside)
        return decision

    def _ask_own(self, limits: TeacherLimits) -> SchedulerDecision:
        """A decision over this process's tickets alone."""
        if self._alone is None:
            self._go_alone("breaker")
        assert self._alone is not None
        if self._on_failure == "reject":
            for turn in self._turns.values():
                turn.refuse_without_store()
            self._untold, self._gone, self._finished = {}, [], []
            return SchedulerDecision()
        news = structs.replace(self._take_news(limits, of_fleet=False), fleet=1)
        own = replace(
            limits,
            max_in_flight=self._membership.share(limits.max_in_flight, limits.lease_s, _now()),
            max_cache_bytes=min(limits.max_cache_bytes, _OWN_CACHE_BYTES),
        )
        decision, _ = self._alone.exchange(self._owner, news, own, round(_now() * SECOND))
        return decision

    def _go_alone(self, why: str) -> None:
        self._trusts_wakeups_at = math.inf
        self._membership.go_alone(sum(turn.holds_permit for turn in self._turns.values()), _now())
        # Batches of processes that are alone must not share an id.
        self._stay_alone(Scheduler(f"local-{secrets.token_hex(4)}-"))
        log.warning(
            "fleet_left", teacher=self._teacher, why=why, processes=self._membership.fleet, then=self._on_failure
        )

    def _stay_alone(self, board: Scheduler, *, owed: Collection[str] = ()) -> None:
        self._alone, self._unsure = board, True
        self._owed += [*owed, *self._gone, *(ticket_id for ticket_id, _ in self._finished)]

    def _take_news(self, limits: TeacherLimits, *, of_fleet: bool) -> SchedulerUpdate:
        now = _now()
        everything = self._unsure or now >= self._tell_all_at
        if everything:
            told = list(self._turns.values())
            self._tell_all_at = now + min(_HEARTBEAT_S, limits.lease_s / _HEARTBEATS_A_LEASE)
        else:
            told = [turn for name, turn in self._untold.items() if name in self._turns]
        arrived = [turn for turn in told if not turn.waiting.done()]
        held = [turn for turn in told if turn.holds_permit]
        for turn in arrived:
            self._membership.asked(turn.deadline - turn.entered, limits.lease_s, now)
        for turn in (*arrived, *held):
            turn.told = turn.told or of_fleet
        news = SchedulerUpdate(
            arrived=[turn.left(now) for turn in arrived],
            gone=self._gone,
            finished=self._finished,
            held=[turn.left(now) for turn in held],
            everything=everything,
            fleet=self._membership.fleet,
            returning=self._returning,
        )
        self._untold, self._gone, self._finished = {}, [], []
        self._unsure = self._returning = False
        return news


def _forgotten(outcome: Outcome) -> bool:
    """Whether the board knows nothing more of a ticket with this outcome."""
    return isinstance(outcome, TicketRefused | TicketBroken) or (isinstance(outcome, SharedGuidance) and outcome.cached)


def _now() -> float:
    return asyncio.get_running_loop().time()


class Batcher:
    """Every teacher's queue in this process.

    Args:
        owner: this process's id; no other process has it.
        limits: what each teacher takes, asked anew at each exchange, since engines tell their limits late.
    """

    def __init__(
        self,
        redis: RedisClient,
        keys: RedisKeys,
        *,
        owner: str,
        limits: Mapping[str, Callable[[], TeacherLimits]],
        on_failure: OnFailure,
        metrics: Metrics,
    ) -> None:
        self._listening = redis.listening
        self._channel = keys.wakeups(owner)
        self._queues = {
            teacher: TeacherQueue(
                redis,
                keys,
                owner=owner,
                teacher=teacher,
                limits=limit,
                on_failure=on_failure,
                metrics=metrics,
            )
            for teacher, limit in limits.items()
        }

    def queue(self, teacher: str) -> TeacherQueue:
        return self._queues[teacher]

    async def look(self, teachers: Collection[str]) -> dict[str, QueueView]:
        """How each of these teachers stands. It takes no longer than Redis may take for one command."""
        queues = {name: queue for name, queue in self._queues.items() if name in teachers}
        return dict(zip(queues, await asyncio.gather(*(queue.look() for queue in queues.values())), strict=True))

    def processes(self) -> int:
        """The most gateway processes that any board had of late, this one included."""
        return max((queue.processes for queue in self._queues.values()), default=1)

    def joined_s(self) -> float:
        """Return when the process joined the fleet, on the clock of the event loop; infinite: not yet."""
        return min((queue.joined_s for queue in self._queues.values()), default=math.inf)

    def start(self, tasks: BackgroundTasks) -> None:
        for teacher, queue in self._queues.items():
            tasks.keep(f"batches:{teacher}", queue.run())
        tasks.keep("wakeups", hear_wakeups(self._listening, self._channel, self._told, self._missed))

    async def stop(self) -> None:
        """Leave the fleet. Only when no request waits any more."""
        for queue in self._queues.values():
            await queue.leave_fleet()

    def _told(self, teacher: str, outcomes: Mapping[str, Outcome]) -> None:
        if teacher in self._queues:
            self._queues[teacher].hear(outcomes)

    def _missed(self) -> None:
        for queue in self._queues.values():
            queue.recheck()
