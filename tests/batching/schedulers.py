"""Both boards on one clock that the test sets: the pure one, and the script on a real Redis."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from msgspec.structs import replace

from gateway.batching.redis_scheduler import SCRIPT, RedisScheduler, read_wakeup
from gateway.batching.scheduler import Scheduler
from gateway.batching.window import SECOND

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from redis.asyncio import Redis

    from gateway.batching.ticket import Outcome, SchedulerDecision, SchedulerUpdate, TeacherLimits
    from gateway.redis.keys import RedisKeys

_T = TypeVar("_T")
Woken = dict[str, dict[str, "Outcome"]]


class AnyScheduler(Protocol):
    """The interface of both schedulers. Times are in microseconds."""

    async def exchange(
        self, process_id: str, update: SchedulerUpdate, limits: TeacherLimits, now: int
    ) -> tuple[SchedulerDecision, Woken]: ...

    async def clear(self) -> None:
        """Forget everything."""
        ...

    async def left(self) -> dict[str, int]:
        """Return the remaining entries of tickets by kind, without zeros."""
        ...

    async def keeps(self) -> int:
        """Return the number of cached texts."""
        ...


class MemoryScheduler:
    """The pure board."""

    def __init__(self) -> None:
        self.scheduler = Scheduler()

    async def exchange(
        self, process_id: str, update: SchedulerUpdate, limits: TeacherLimits, now: int
    ) -> tuple[SchedulerDecision, Woken]:
        return self.scheduler.exchange(process_id, update, limits, now)

    async def clear(self) -> None:
        self.scheduler = Scheduler()

    async def left(self) -> dict[str, int]:
        scheduler = self.scheduler
        kept = {
            "tickets": len(scheduler._entries),
            "permits": len(scheduler._permits),
            "queues": sum(map(len, scheduler._queues.values())),
            "flights": len(scheduler._leaders),
            "followers": len(scheduler._followers),
        }
        return {kind: many for kind, many in kept.items() if many}

    async def keeps(self) -> int:
        return len(self.scheduler._cache)


class ScriptScheduler:
    """The script, with the clock and the wake-ups in the test's hands; all else is as it runs in production."""

    def __init__(self, redis: Redis, keys: RedisKeys) -> None:
        self._redis = redis
        self._keys = keys
        self._clock, self._woken = f"{keys.prefix}:clock", f"{keys.prefix}:woken"
        text = SCRIPT
        for real, ours in (
            ("redis.call('TIME')", f"redis.call('HMGET', '{self._clock}', 's', 'us')"),
            ("redis.call('PUBLISH', channel .. holder, ", f"redis.call('RPUSH', '{self._woken}', holder .. '\\n' .. "),
        ):
            assert text.count(real) == 1, f"{real} is not what the script says"
            text = text.replace(real, ours)
        self._script = redis.register_script(text)

    async def exchange(
        self, process_id: str, update: SchedulerUpdate, limits: TeacherLimits, now: int
    ) -> tuple[SchedulerDecision, Woken]:
        scheduler = RedisScheduler(self._redis, self._keys, process_id, "big")
        scheduler._script = self._script
        await self._redis.hset(self._clock, mapping={"s": now // SECOND, "us": now % SECOND})
        decision = await scheduler.exchange(update, limits)
        woken: Woken = {}
        for message in await self._redis.lpop(self._woken, 10_000) or []:
            holder, _, rest = message.partition(b"\n")
            teacher, outcomes = read_wakeup(rest)
            assert teacher == "big"
            woken.setdefault(holder.decode(), {}).update(outcomes)
        return replace(decision, opened=list(decision.opened)), woken

    async def clear(self) -> None:
        names = [*self._keys.teacher("big"), self._clock, self._woken]
        await self._redis.delete(*names)

    async def left(self) -> dict[str, int]:
        names = self._keys.teacher("big")
        kept = {
            "tickets": await self._redis.hlen(names.tickets) + await self._redis.zcard(names.ends),
            "permits": await self._redis.scard(names.permits),
            "queues": await self._redis.zcard(names.queue),
            "flights": await self._redis.hlen(names.flights),
            "followers": await self._redis.zcard(names.followers),
        }
        return {kind: many for kind, many in kept.items() if many}

    async def keeps(self) -> int:
        return int(await self._redis.hlen(self._keys.teacher("big").cache))


class BlockingScheduler:
    """A board on a loop of its own, where time is real. Who asks it stands still meanwhile."""

    def __init__(self, scheduler: AnyScheduler, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduler = scheduler
        self._loop = loop

    async def exchange(
        self, process_id: str, update: SchedulerUpdate, limits: TeacherLimits, now: int
    ) -> tuple[SchedulerDecision, Woken]:
        return self._wait(self._scheduler.exchange(process_id, update, limits, now))

    async def clear(self) -> None:
        self._wait(self._scheduler.clear())

    async def left(self) -> dict[str, int]:
        return self._wait(self._scheduler.left())

    async def keeps(self) -> int:
        return self._wait(self._scheduler.keeps())

    def _wait(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)
