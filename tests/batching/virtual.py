"""A board in virtual time, behind a network that fails. virtual_fleet.py has the processes that use it.

Nothing waits for real: when nobody can run, the clock moves to the next timer. So a schedule of twenty seconds takes
milliseconds, and the same schedule always goes the same way.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.batching.window import SECOND
from gateway.runtime.tasks import BackgroundTasks
from tests.batching.schedulers import MemoryScheduler

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.batching.teacher_queue import TeacherQueue
    from gateway.batching.ticket import Outcome, SchedulerDecision, SchedulerUpdate, TeacherLimits
    from tests.batching.schedulers import AnyScheduler

START_US = 1_795_000_000 * SECOND
COMMAND_S = 0.2  # how long a process waits for Redis
LOOK_S = 0.5  # interval of attempts to reconnect, and duration of a subscription
HEARTBEAT_S = 1.0
# Whatever runs takes some time. A timer may be early by less than a nanosecond, and who then waits for the rest would
# spin for ever on a clock that stands still.
_TICK_S = 1e-12


class _NoWaiting(selectors.DefaultSelector):
    """Instead of waiting, lets time pass."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everybody waits for ever"
        self.loop.now += max(_TICK_S, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock moves only when there is nothing to do."""

    def __init__(self) -> None:
        self.now = 0.0
        selector = _NoWaiting()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def loop_time() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Network:
    """Delays of up to so many seconds in each direction, and a probability of loss."""

    seed: int = 0
    delay_s: float = 0.0
    commands_lost: float = 0.0
    replies_lost: float = 0.0
    wakeups_lost: float = 0.0


class Server:
    """A board as processes reach it: over a network, on a machine that can be gone, stand still, or set its clock."""

    def __init__(self, scheduler: AnyScheduler, network: Network) -> None:
        self.scheduler = scheduler
        self.network = network
        self.chance = random.Random(network.seed)
        self.tasks = BackgroundTasks()
        self.subscribers: dict[str, TeacherQueue] = {}
        self.ahead_us = START_US  # of the true clock
        self.up = True
        self.reliable_until = 0.0
        self.paused = False
        self.refuses = False  # every script, while it answers otherwise
        self.back_at = -1000.0
        self.life = 0  # a new one after each restart or break of the connections
        self._stuck: list[asyncio.Future[None]] = []
        self.opened: list[tuple[float, int]] = []
        self.said_goodbye: set[str] = set()
        self.unused: dict[str, dict[str, float]] = {}  # by process: permits that it does not use, and since when
        self.wrong: list[str] = []

    @property
    def answers(self) -> bool:
        return self.up and not self.paused

    async def exchange(self, process_id: str, update: SchedulerUpdate, limits: TeacherLimits) -> SchedulerDecision:
        """As redis-py has it: one more try when the connection broke, and a bound on the time."""
        try:
            return await self._try(process_id, update, limits)
        except RedisConnectionError:
            return await self._try(process_id, update, limits)

    async def _try(self, process_id: str, update: SchedulerUpdate, limits: TeacherLimits) -> SchedulerDecision:
        life = self.life
        await self._travel()
        if not self.up or life != self.life:
            raise RedisConnectionError
        if self.refuses:
            raise ResponseError
        if self._loses(self.network.commands_lost):
            await asyncio.sleep(COMMAND_S)
            raise RedisTimeoutError
        if self.paused:
            await self._stand(process_id, update, limits)
        decision = await self._execute(process_id, update, limits)
        if self._loses(self.network.replies_lost):
            await asyncio.sleep(COMMAND_S)
            raise RedisTimeoutError
        await self._travel()
        if life != self.life:
            raise RedisConnectionError
        return decision

    async def _stand(self, process_id: str, update: SchedulerUpdate, limits: TeacherLimits) -> None:
        """The command lies in the server's socket. If its sender gives up, it is executed all the same."""
        runs = asyncio.get_running_loop().create_future()
        self._stuck.append(runs)
        try:
            async with asyncio.timeout(COMMAND_S):
                await asyncio.shield(runs)
        except TimeoutError:
            life = self.life

            async def late() -> None:
                await runs
                if life == self.life:
                    await self._execute(process_id, update, limits)

            self.tasks.spawn("late", late())
            raise RedisTimeoutError from None

    async def _execute(self, process_id: str, update: SchedulerUpdate, limits: TeacherLimits) -> SchedulerDecision:
        decision, woken = await self.scheduler.exchange(process_id, update, limits, self.clock())
        self.opened += [(loop_time(), size) for size in decision.opened]
        if update.leaving:
            self.said_goodbye.add(process_id)
        if update.complete and isinstance(self.scheduler, MemoryScheduler):
            self._see_permits(process_id, {ticket.id for ticket in update.held}.union(decision.outcomes))
        for holder, outcomes in woken.items():
            if not self._loses(self.network.wakeups_lost):
                self.tasks.spawn("wake-up", self._wake(holder, outcomes))
        return decision

    def _see_permits(self, process_id: str, used: set[str]) -> None:
        """A process tells everything once a second: a permit that nobody uses is back by the second time."""
        scheduler, before = self.scheduler.scheduler, self.unused.get(process_id, {})  # type: ignore[attr-defined]
        unused = [
            one for one in scheduler._permits if scheduler._entries[one].process_id == process_id and one not in used
        ]
        self.unused[process_id] = {one: before.get(one, loop_time()) for one in unused}
        for one, since in self.unused[process_id].items():
            if since <= loop_time() - 0.9 * HEARTBEAT_S:
                self.wrong.append(f"{loop_time():.6f}: nobody uses the permit of {one}")

    async def _wake(self, holder: str, outcomes: Mapping[str, Outcome]) -> None:
        queue, life = self.subscribers.get(holder), self.life
        await self._travel()
        if queue is not None and self.subscribers.get(holder) is queue and life == self.life:
            queue.on_wakeup(outcomes)

    async def _travel(self) -> None:
        if self.network.delay_s:
            await asyncio.sleep(self.chance.random() * self.network.delay_s)

    def _loses(self, often: float) -> bool:
        return loop_time() >= self.reliable_until and bool(often) and self.chance.random() < often

    def clock(self) -> int:
        return round(loop_time() * SECOND) + self.ahead_us

    def break_connections(self) -> None:
        self.life += 1
        self.subscribers.clear()

    async def pause(self, seconds: float, *, clock_too: bool) -> None:
        self.paused = True
        await asyncio.sleep(seconds)
        self.ahead_us -= round(seconds * SECOND) * clock_too
        stuck, self._stuck = self._stuck, []
        self.paused = False
        self.back_at = loop_time()
        for runs in stuck:
            if not runs.done():
                runs.set_result(None)

    async def refuse(self, seconds: float) -> None:
        self.refuses = True
        await asyncio.sleep(seconds)
        self.refuses = False
        self.back_at = loop_time()

    async def go(self, seconds: float, *, empty: bool) -> None:
        """Unreachable for a while; `empty`: it was started anew and has forgotten everything."""
        self.up = False
        self.break_connections()
        await asyncio.sleep(seconds)
        if empty:
            await self.scheduler.clear()
        self.up = True
        self.back_at = loop_time()
