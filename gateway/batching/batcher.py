"""What a request awaits before it calls the teacher: a permit."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import structlog
from redis.exceptions import RedisError

from gateway.batching.tickets import RedisBoard, hear_wakeups
from gateway.batching.window import Decision, Grant, Limits, News, Ticket, Waiting, decide
from gateway.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from redis.asyncio import Redis

    from gateway.redis_keys import RedisKeys
    from gateway.tasks import Tasks

log = structlog.get_logger()

# After Redis failed, this long passes before it is asked again: a slow Redis must not slow every request.
_REDIS_REST_S = 1.0
# While tickets wait, they are told anew this often: whatever was lost (a wake-up, a process that would have looked,
# Redis's memory) costs a ticket no more time than this.
_TELL_AGAIN_S = 1.0

OnFailure = Literal["degrade", "reject"]


@dataclass(slots=True, eq=False)
class _Held:
    """A ticket of this process: waiting while `granted` is not done, then in flight until it is gone."""

    ticket: Ticket
    entered: float
    granted: asyncio.Future[Grant]
    told: bool = False  # Redis may know it, so it must hear when it is gone

    def left(self, now: float) -> Ticket:
        """The ticket with the time it has left."""
        ticket = self.ticket
        waited_s = now - self.entered
        left_s = max(0.0, ticket.max_wait_s - waited_s)
        return Ticket(ticket.id, ticket.prompt_tokens, left_s, ticket.deadline_s - waited_s)


class TeacherQueue:
    """The tickets of this process for one teacher, and the loop that exchanges them with the fleet.

    News gathers while an exchange is under way, so that under load one round trip serves many requests. While Redis is
    away the process decides by itself, over its own tickets and under its share of the cap.
    """

    def __init__(self, board: RedisBoard, limits: Callable[[], Limits], on_failure: OnFailure, teacher: str) -> None:
        self._board = board
        self._limits = limits
        self._on_failure = on_failure
        self._teacher = teacher
        self._held: dict[str, _Held] = {}  # in order of arrival
        self._arrived: list[_Held] = []  # not told yet
        self._gone: list[str] = []  # what Redis may still count; kept until it was told
        self._news = asyncio.Event()
        self._unsure = False  # Redis may have forgotten, or said something unheard
        self._tell_all_at = 0.0
        self._alone = False  # Redis is away
        self._ask_redis_at = 0.0
        self._fleet = 1
        self._batches_alone = 0
        self._nonce = secrets.token_hex(4)  # batches of processes that are alone must not share an id

    @asynccontextmanager
    async def permit(self, ticket: Ticket) -> AsyncIterator[Grant]:
        """Wait for the grant, hold the permit inside the block, return it on leaving, whatever happens inside.

        The caller bounds the wait and the work by the ticket's deadline: leaving by cancellation withdraws the ticket,
        and a permit that is still held a second after the deadline lapses.

        Raises:
            StoreUnavailable: Redis is away and the configuration says `reject`.
        """
        assert ticket.id not in self._held, "two tickets with one id"
        loop = asyncio.get_running_loop()
        held = _Held(ticket, loop.time(), loop.create_future())
        self._held[ticket.id] = held
        self._arrived.append(held)
        self._news.set()
        try:
            yield await held.granted
        finally:
            del self._held[ticket.id]
            if held.told:
                self._gone.append(ticket.id)
            self._news.set()

    def deliver(self, grants: Mapping[str, Grant]) -> None:
        """Wake the requests whose tickets were granted; a permit nobody waits for any more goes straight back."""
        for ticket_id, grant in grants.items():
            held = self._held.get(ticket_id)
            if held is None:
                self._gone.append(ticket_id)
                self._news.set()
            elif not held.granted.done():
                held.granted.set_result(grant)

    def recheck(self) -> None:
        """Wake-ups may have been lost, or Redis begun anew: tell it everything, and ask what became of it."""
        self._unsure = True
        self._news.set()

    async def run(self) -> None:
        """Exchange news for decisions, for ever. Whatever fails, the loop lives on: every later request needs it."""
        next_look_s: float | None = None
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(next_look_s):
                    await self._news.wait()
            self._news.clear()
            try:
                next_look_s = await self._look()
            except Exception:
                log.exception("exchange_broke", teacher=self._teacher, retry_in_s=_REDIS_REST_S)
                await asyncio.sleep(_REDIS_REST_S)
                self.recheck()

    async def _look(self) -> float | None:
        """Ask, deliver, and say when to look again; None: when there is news."""
        decision = await self._ask_fleet() if _now() >= self._ask_redis_at else None
        if decision is None:
            decision = self._decide_alone()
        self.deliver(decision.grants)
        next_look_s = decision.next_look_s
        if self._alone:
            next_look_s = _sooner(next_look_s, _REDIS_REST_S)
        elif any(not held.granted.done() for held in self._held.values()):
            next_look_s = _sooner(next_look_s, _TELL_AGAIN_S)
        return next_look_s

    async def _ask_fleet(self) -> Decision | None:
        """The fleet's decision; None while Redis is away."""
        try:
            if self._alone:
                # First ask without leaving a ticket that a Redis that stays away would have to be told to forget.
                await self._tell(News(gone=self._take_gone()))
                self._alone, self._unsure = False, True
                log.info("redis_back", teacher=self._teacher)
            decision = await self._tell(self._take_news())
        except Exception as error:
            self._ask_redis_at = _now() + _REDIS_REST_S
            if not self._alone:
                expected = isinstance(error, RedisError | OSError)
                kind = type(error).__name__
                log.warning(
                    "redis_away", teacher=self._teacher, error=kind, then=self._on_failure, exc_info=not expected
                )
            self._alone = True
            return None
        self._fleet = max(1, decision.fleet)
        return decision

    async def _tell(self, news: News) -> Decision:
        try:
            return await self._board.exchange(news, self._limits())
        except BaseException:
            self._gone[:0] = news.gone
            raise

    def _take_news(self) -> News:
        now = _now()
        if self._unsure or now >= self._tell_all_at:
            waiting = [held for held in self._held.values() if not held.granted.done()]
            in_flight = [held for held in self._held.values() if held.granted.done()]
            self._unsure, self._tell_all_at = False, now + _TELL_AGAIN_S
        else:
            waiting = [held for held in self._arrived if self._held.get(held.ticket.id) is held]
            in_flight = []
        self._arrived = []
        for held in (*waiting, *in_flight):
            held.told = True
        return News([held.left(now) for held in waiting], self._take_gone(), [held.left(now) for held in in_flight])

    def _take_gone(self) -> list[str]:
        gone, self._gone = self._gone, []
        return gone

    def _decide_alone(self) -> Decision:
        self._arrived = []
        waiting = [held for held in self._held.values() if not held.granted.done()]
        if self._on_failure == "reject":
            for held in waiting:
                held.granted.set_exception(StoreUnavailable("Redis is away, and guidance needs it here. Try again."))
            return Decision({}, None)
        limits, now = self._limits(), _now()
        share = Limits(max(1, limits.max_in_flight // self._fleet), limits.max_size, limits.max_prompt_tokens)
        queue = [
            Waiting(
                held.ticket.id,
                held.ticket.prompt_tokens,
                held.entered + held.ticket.max_wait_s,
                held.entered + held.ticket.deadline_s,
            )
            for held in waiting
        ]
        batches, due = decide(queue, len(self._held) - len(waiting), share, now)
        grants: dict[str, Grant] = {}
        for batch in batches:
            self._batches_alone += 1
            grant = Grant(f"local-{self._nonce}-{self._batches_alone}", len(batch))
            grants |= {ticket.id: grant for ticket in batch}
        return Decision(grants, None if due is None else max(0.0, due - now))


def _now() -> float:
    return asyncio.get_running_loop().time()


def _sooner(next_look_s: float | None, limit_s: float) -> float:
    return limit_s if next_look_s is None else min(next_look_s, limit_s)


class Batcher:
    """Every teacher's queue in this process.

    Args:
        redis: for the exchanges.
        listening: for the wake-ups; its reads block.
        owner: this process's id; no other process has it.
        limits: what each teacher takes, asked anew at each exchange, since engines tell their limits late.
    """

    def __init__(
        self,
        redis: Redis,
        listening: Redis,
        keys: RedisKeys,
        *,
        owner: str,
        limits: Mapping[str, Callable[[], Limits]],
        on_failure: OnFailure,
    ) -> None:
        self._listening = listening
        self._channel = keys.wakeups(owner)
        self._queues = {
            teacher: TeacherQueue(RedisBoard(redis, keys, owner, teacher), limit, on_failure, teacher)
            for teacher, limit in limits.items()
        }

    def queue(self, teacher: str) -> TeacherQueue:
        return self._queues[teacher]

    def start(self, tasks: Tasks) -> None:
        for teacher, queue in self._queues.items():
            tasks.keep(f"batches:{teacher}", queue.run())
        tasks.keep("wakeups", hear_wakeups(self._listening, self._channel, self._granted, self._resubscribed))

    def _granted(self, teacher: str, grants: Mapping[str, Grant]) -> None:
        if teacher in self._queues:
            self._queues[teacher].deliver(grants)

    def _resubscribed(self) -> None:
        for queue in self._queues.values():
            queue.recheck()
