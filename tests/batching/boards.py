"""Both boards on one clock that the test sets: the pure one, and the script on a real Redis."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from msgspec.structs import replace

from gateway.batching.board import Scheduler
from gateway.batching.redis_board import SCRIPT, RedisScheduler, _read_wakeup
from gateway.batching.window import SECOND

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from redis.asyncio import Redis

    from gateway.batching.ticket import Outcome, SchedulerDecision, SchedulerUpdate, TeacherLimits
    from gateway.redis.keys import RedisKeys

_T = TypeVar("_T")
Woken = dict[str, dict[str, "Outcome"]]


class AnyBoard(Protocol):
    """What the fleet does on a board at a moment, in microseconds."""

    async def exchange(
        self, owner: str, news: SchedulerUpdate, limits: TeacherLimits, now: int
    ) -> tuple[SchedulerDecision, Woken]: ...

    async def clear(self) -> None:
        """Forget everything."""
        ...

    async def left(self) -> dict[str, int]:
        """What it still keeps of tickets, by kind, where that is not nothing."""
        ...

    async def keeps(self) -> int:
        """How many texts stand in the cache."""
        ...


class MemoryBoard:
    """The pure board."""

    def __init__(self) -> None:
        self.board = Scheduler()

    async def exchange(
        self, owner: str, news: SchedulerUpdate, limits: TeacherLimits, now: int
    ) -> tuple[SchedulerDecision, Woken]:
        return self.board.exchange(owner, news, limits, now)

    async def clear(self) -> None:
        self.board = Scheduler()

    async def left(self) -> dict[str, int]:
        board = self.board
        kept = {
            "tickets": len(board._entries),
            "permits": len(board._permits),
            "queues": sum(map(len, board._queues.values())),
            "flights": len(board._flights),
            "followers": len(board._followers),
        }
        return {kind: many for kind, many in kept.items() if many}

    async def keeps(self) -> int:
        return len(self.board._cache)


class ScriptBoard:
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
        self, owner: str, news: SchedulerUpdate, limits: TeacherLimits, now: int
    ) -> tuple[SchedulerDecision, Woken]:
        board = RedisScheduler(self._redis, self._keys, owner, "big")
        board._script = self._script
        await self._redis.hset(self._clock, mapping={"s": now // SECOND, "us": now % SECOND})
        decision = await board.exchange(news, limits)
        woken: Woken = {}
        for message in await self._redis.lpop(self._woken, 10_000) or []:
            holder, _, rest = message.partition(b"\n")
            teacher, outcomes = _read_wakeup(rest)
            assert teacher == "big"
            woken.setdefault(holder.decode(), {}).update(outcomes)
        return replace(decision, opened=list(decision.opened)), woken

    async def clear(self) -> None:
        names = [*self._keys.teacher("big").as_list(), self._clock, self._woken]
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


class BlockingBoard:
    """A board on a loop of its own, where time is real. Who asks it stands still meanwhile."""

    def __init__(self, board: AnyBoard, loop: asyncio.AbstractEventLoop) -> None:
        self._board = board
        self._loop = loop

    async def exchange(
        self, owner: str, news: SchedulerUpdate, limits: TeacherLimits, now: int
    ) -> tuple[SchedulerDecision, Woken]:
        return self._wait(self._board.exchange(owner, news, limits, now))

    async def clear(self) -> None:
        self._wait(self._board.clear())

    async def left(self) -> dict[str, int]:
        return self._wait(self._board.left())

    async def keeps(self) -> int:
        return self._wait(self._board.keeps())

    def _wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)
