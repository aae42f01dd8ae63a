"""The gateway's own queues, turns and flights on a virtual server, the requests they serve, and what must hold."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from gateway.batching.single_flight import SingleFlight
from gateway.batching.teacher_queue import QueueTimes, TeacherQueue
from gateway.engines.base import TeacherReply
from gateway.errors import EngineFailed, PermitUnavailable, QueueFull
from gateway.redis.keys import RedisKeys
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.batching.virtual import COMMAND_S, LOOK_S, loop_time

if TYPE_CHECKING:
    from gateway.batching.ticket import Grant, SchedulerDecision, SchedulerUpdate, TeacherLimits, Ticket
    from tests.batching.virtual import Server


METRICS = Metrics()
LONGEST_CALL_S = 5.0


class _Link:
    """The parts of RedisClient and RedisScheduler that a queue uses."""

    def __init__(self, server: Server, process_id: str) -> None:
        self._server, self._process_id = server, process_id
        self.up = True
        self.unheard = False  # its goodbye failed
        self.alone_since: float | None = None
        self.commands = self
        self.timeout_s = COMMAND_S

    def register_script(self, _: str) -> None:
        return None

    def is_up(self, _: str) -> bool:
        return self.up

    def failed(self, error: Exception) -> None:
        self.up = self.up and isinstance(error, ResponseError)

    async def exchange(self, update: SchedulerUpdate, limits: TeacherLimits) -> SchedulerDecision:
        self.unheard = update.leaving
        decision = await self._server.exchange(self._process_id, update, limits)
        self.unheard, self.alone_since = False, None
        return decision

    async def watch(self) -> None:
        while True:
            if self._server.paused:
                await asyncio.sleep(COMMAND_S)
            self.up = self._server.answers
            await asyncio.sleep(LOOK_S)


@dataclass(frozen=True)
class Wish:
    """A request: arrival, ticket, duration of the teacher's call, and disconnect."""

    at: float
    ticket: Ticket
    takes_s: float
    fails: bool = False
    hangs_up_after_s: float | None = None


@dataclass
class Story:
    """The events of the whole fleet."""

    limits: TeacherLimits
    lossless: bool  # nothing is lost between a process and Redis but in an outage, which meets all
    in_flight: int = 0
    most: int = 0
    processes: list[Process] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)  # by the ticket in whose name they were made
    sent: list[tuple[float, str]] = field(default_factory=list)  # the same in order, and when
    fetched: set[str] = field(default_factory=set)  # what calls brought
    ends: dict[str, list[str]] = field(default_factory=dict)  # by ticket, of processes that lived
    wrong: list[str] = field(default_factory=list)
    unheard: bool = False  # a process left, and could not tell

    def begin(self, process: Process, ticket: Ticket, grant: Grant) -> None:
        """A call to the teacher. While all are in the fleet the cap is never passed, nor when all have been alone until
        the calls of before have ended. Who is alone has its share, or what it had. In between a process may be alone
        while the others are not: that adds up."""
        self.in_flight += 1
        process.calls += 1
        self.most = max(self.most, self.in_flight)
        cap, alive = self.limits.max_in_flight, [one for one in self.processes if one.alive]
        since = [one.link.alone_since for one in alive if one.link.alone_since is not None]
        bound = cap + sum(max(one.share, one.held) for one in alive if one.link.alone_since is not None)
        settled_s = max(self.limits.lease_s, LONGEST_CALL_S)
        if self.lossless and len(since) == len(alive) and max(since) + settled_s <= loop_time():
            bound = cap
        self.check(self.in_flight <= bound, f"{self.in_flight} calls in flight of {bound}")
        own = process.may_have(ticket, grant)
        self.check(process.calls <= own, f"{process.calls} calls of {process.process_id}, which may have {own}")

    def end(self, process: Process) -> None:
        self.in_flight -= 1
        process.calls -= 1

    def check(self, true: object, what: str) -> None:
        if not true:
            self.wrong.append(f"{loop_time():.6f}: {what}")


class Process:
    """A gateway: its queue, flights and callers."""

    def __init__(self, server: Server, limits: TeacherLimits, process_id: str, story: Story) -> None:
        self.process_id = process_id
        self.server = server
        self.story = story
        story.processes.append(self)
        self.link = _Link(server, process_id)
        self.queue = TeacherQueue(
            self.link,  # type: ignore[arg-type]
            RedisKeys("virtual"),
            process_id=process_id,
            teacher="big",
            limits=lambda: limits,
            on_failure="degrade",
            metrics=METRICS,
            times=QueueTimes(linger_s=0.0),  # moments are compared, and the delay depends on the other tickets
        )
        self.queue._scheduler = self.link  # type: ignore[assignment]
        self.limits = limits
        self.calls = 0
        self.held = 0  # when it went alone
        self._start_local = self.queue._start_local
        self.queue._start_local = self._note_alone  # type: ignore[method-assign]
        self.tasks = BackgroundTasks()
        self.flights = SingleFlight(self.tasks)
        self.serving = self.alive = True
        self.open = 0
        self.tasks.keep("batches", self.queue.run())
        self.tasks.keep("redis", self.link.watch())
        self.tasks.keep("wake-ups", self._listen())
        self.tasks.keep("own permits", self._count_own())

    def _note_alone(self, why: str) -> None:
        self.link.alone_since = loop_time()
        self.held = sum(waiter.holds_permit for waiter in self.queue._waiters.values())
        self.server.unused.pop(self.process_id, None)
        self._start_local(why)

    @property
    def share(self) -> int:
        return self.limits.max_in_flight // self.queue.membership.fleet_size

    def may_have(self, ticket: Ticket, grant: Grant) -> int:
        """Return the permitted number of own calls at this start."""
        since = self.link.alone_since
        if since is None:
            return self.limits.max_in_flight
        if not grant.batch_id.startswith("local-"):
            return self.held
        others_may_have_more = self.queue.membership.fleet_size > 1 and loop_time() < since + min(
            ticket.deadline_s - 1e-6, self.limits.lease_s
        )
        return min(self.share, self.held) if others_may_have_more else self.share

    async def _count_own(self) -> None:
        """Count calls of a process without Redis."""
        while True:
            await asyncio.sleep(0.1)
            queue = self.queue
            if queue._local is not None and not (queue._changed.is_set() or queue._released or queue._finished):
                held = {one for one, waiter in queue._waiters.items() if waiter.holds_permit}
                lost = queue._local._permits - held
                self.story.check(not lost, f"{self.process_id} is alone and nobody uses the permits of {lost}")

    async def _listen(self) -> None:
        while True:
            if self.server.answers and self.server.subscribers.get(self.process_id) is not self.queue:
                self.server.subscribers[self.process_id] = self.queue
                self.queue.resync()
            await asyncio.sleep(LOOK_S)

    def ask(self, wish: Wish) -> None:
        self.open += 1
        self.tasks.spawn("request", self._request(wish))

    async def _request(self, wish: Wish) -> None:
        ticket = wish.ticket
        request = asyncio.current_task()
        assert request is not None
        loop = asyncio.get_running_loop()
        if wish.hangs_up_after_s is not None:
            loop.call_later(wish.hangs_up_after_s, request.cancel)
        deadline = loop.time() + ticket.deadline_s
        end = "nothing"

        async def call(grant: Grant) -> TeacherReply:
            story = self.story
            story.begin(self, ticket, grant)
            try:
                await asyncio.sleep(wish.takes_s)
            finally:
                story.end(self)
            if wish.fails:
                raise EngineFailed("It failed.", engine="big")
            text = f"{ticket.dedupe_key} by {ticket.id}"
            story.fetched.add(text)
            return TeacherReply(text, "length", None)

        def granted(_: Grant) -> None:
            self.story.calls[ticket.id] += 1
            self.story.sent.append((loop.time(), ticket.id))
            self.story.check(loop.time() <= deadline + 1e-9, f"{ticket.id} was sent after its deadline")

        try:
            async with asyncio.timeout_at(deadline):
                if ticket.dedupe_key:
                    result = await self.flights.join(self.queue, ticket, call, granted, deadline)
                    end = result.shared or "own"
                    text = result.reply.text
                    self.story.check(text in self.story.fetched, f"nobody fetched {text}")
                    self.story.check(text.startswith(f"{ticket.dedupe_key} by "), f"{ticket.id} got {text}")
                else:
                    async with self.queue.acquire(ticket, deadline) as waiter:
                        granted(waiter.outcome)  # type: ignore[arg-type]
                        reply = await call(waiter.outcome)  # type: ignore[arg-type]
                        waiter.finish(reply.text)
                    end = "own"
        except TimeoutError:
            end = "expired"
        except (QueueFull, PermitUnavailable):
            end = "refused"
        except EngineFailed:
            end = "failed"
        except asyncio.CancelledError:
            end = "withdrawn"
        finally:
            self.open -= 1
            if self.alive:
                self.story.ends.setdefault(ticket.id, []).append(end)
                late = loop.time() - deadline
                self.story.check(late < 1e-6, f"{ticket.id} was answered {late:g} s after its deadline")

    def crash(self) -> None:
        """Without a word: nothing it has not sent yet is ever said."""
        self.serving = self.alive = False
        if self.server.subscribers.get(self.process_id) is self.queue:
            del self.server.subscribers[self.process_id]
        for task in (*self.tasks._finite, *self.tasks._loops):
            task.cancel()

    async def leave(self) -> None:
        """As on SIGTERM: refuse what is new, finish what is here, and say so."""
        self.serving = False
        while self.open:
            await asyncio.sleep(0.05)
        if self.alive:
            await self.queue.leave_fleet()
            announced = self.process_id in self.server.said_goodbye
            self.story.check(announced or self.link.unheard, f"{self.process_id} left without a word")
            self.story.unheard = self.story.unheard or self.link.unheard
            self.crash()
