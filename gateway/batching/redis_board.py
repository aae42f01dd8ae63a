"""The fleet's board in Redis: one script call per exchange, and the wake-ups it sends to other processes."""

from __future__ import annotations

import asyncio
from importlib.resources import files
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from gateway.batching.board import stride
from gateway.batching.ticket import Grant, SchedulerDecision, SharedGuidance, TicketBroken, TicketRefused
from gateway.batching.window import SECOND

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from redis.asyncio import Redis

    from gateway.batching.ticket import Outcome, SchedulerUpdate, TeacherLimits, Ticket
    from gateway.redis.keys import RedisKeys

log = structlog.get_logger()

_RECONNECT_S = 0.5

SCRIPT = files("gateway.batching").joinpath("board.lua").read_text()


class RedisScheduler:
    """One teacher's board, shared by all processes on one Redis.

    Args:
        owner: this process's id; no other process has it.
        teacher: the configured model name.
    """

    def __init__(self, redis: Redis, keys: RedisKeys, owner: str, teacher: str) -> None:
        self._owner = owner
        self._teacher = teacher
        self._keys = keys.teacher(teacher).as_list()
        self._layout = keys.board
        self._channel_prefix = keys.wakeups("")
        self._script = redis.register_script(SCRIPT)

    async def exchange(self, news: SchedulerUpdate, limits: TeacherLimits) -> SchedulerDecision:
        """Tell the news, get the decision, in one round trip. Raises RedisError."""
        args: list[str | int] = [
            self._owner,
            self._channel_prefix,
            self._teacher,
            int(news.everything),
            news.fleet,
            int(news.returning),
            int(news.leaving),
            limits.max_in_flight,
            limits.max_size,
            limits.max_prompt_tokens,
            limits.low_water,
            limits.max_queue,
            limits.max_cache_bytes,
            _us(limits.lease_s),
            self._layout,
            len(news.gone),
            *news.gone,
            len(news.finished),
        ]
        for finished in news.finished:
            args += finished
        for tickets in (news.held, news.arrived):
            args.append(len(tickets))
            for ticket in tickets:
                args += _arguments(ticket)
        look, fleet, beside, in_flight, waiting, window, reclaimed, broken, opened, told = await self._script(
            keys=self._keys, args=args
        )
        return SchedulerDecision(
            dict(_outcomes(told)),
            None if int(look) < 0 else int(look) / SECOND,
            fleet,
            in_flight,
            waiting,
            None if int(window) < 0 else int(window) / SECOND,
            opened,
            reclaimed,
            broken,
            beside,
        )


def _arguments(ticket: Ticket) -> tuple[str | int, ...]:
    return (
        ticket.id,
        ticket.tenant,
        stride(ticket.weight),
        ticket.prompt_tokens,
        _us(ticket.max_wait_s),
        _us(ticket.deadline_s),
        _us(ticket.cache_ttl_s),
        ticket.work,
    )


def _us(seconds: float) -> int:
    return round(seconds * SECOND)


def _outcomes(told: list[bytes]) -> Iterable[tuple[str, Outcome]]:
    for i in range(0, len(told), 4):
        ticket_id, kind, one, two = told[i : i + 4]
        yield ticket_id.decode(), _outcome(kind, one.decode(), two.decode())


def _outcome(kind: bytes, one: str, two: str) -> Outcome:
    match kind:
        case b"G":
            return Grant(one, int(two))
        case b"S" | b"C":
            return SharedGuidance(one, cached=kind == b"C")
        case b"R":
            return TicketRefused(int(one) / SECOND)
        case b"X":
            return TicketBroken()
    raise ValueError(f"an outcome of kind {kind!r}")


async def hear_wakeups(
    redis: Redis,
    channel: str,
    told: Callable[[str, Mapping[str, Outcome]], None],
    missed: Callable[[], None],
) -> None:
    """Listen for ever: call `told(teacher, outcomes)` for each wake-up. One without outcomes asks for everything.

    `missed` is called after each (re)connection, and after a message that cannot be read: what was sent may have been
    lost. Nothing ends the loop but cancellation.
    """
    while True:
        try:
            async with redis.pubsub(ignore_subscribe_messages=False) as pubsub:
                await pubsub.subscribe(channel)
                async for message in pubsub.listen():
                    if message["type"] == "subscribe":
                        missed()
                    elif message["type"] == "message":
                        _hear(message["data"], told, missed)
        except (RedisError, OSError) as error:
            log.warning("wakeups_lost", error=type(error).__name__, retry_in_s=_RECONNECT_S)
        except Exception:
            log.exception("wakeups_failed", retry_in_s=_RECONNECT_S)
        await asyncio.sleep(_RECONNECT_S)


def _hear(data: bytes, told: Callable[[str, Mapping[str, Outcome]], None], missed: Callable[[], None]) -> None:
    try:
        teacher, outcomes = _read_wakeup(data)
    except ValueError:
        log.warning("wakeup_unreadable", size=len(data))
        missed()
    else:
        told(teacher, outcomes)


def _read_wakeup(data: bytes) -> tuple[str, dict[str, Outcome]]:
    teacher, *lines = data.decode().split("\n")
    outcomes: dict[str, Outcome] = {}
    for line in lines:
        ticket_id, kind, two, one = line.split("|", 3)
        outcomes[ticket_id] = _outcome(kind.encode(), one, two)
    return teacher, outcomes
