"""The fleet's scheduler in Redis: one script call per exchange, and the wake-ups it publishes to other processes."""

from __future__ import annotations

import asyncio
from importlib.resources import files
from itertools import chain
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from gateway.batching.scheduler import stride
from gateway.batching.ticket import Grant, SchedulerDecision, SharedGuidance, TicketBroken, TicketRefused
from gateway.batching.window import SECOND

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from redis.asyncio import Redis

    from gateway.batching.ticket import Outcome, SchedulerUpdate, TeacherLimits, Ticket
    from gateway.redis.keys import RedisKeys

    OnWakeup = Callable[[str, Mapping[str, Outcome]], None]

log = structlog.get_logger()

SCRIPT = files("gateway.batching").joinpath("scheduler.lua").read_text()


class RedisScheduler:
    """A teacher's scheduler, shared by all processes on one Redis. The `process_id` is unique in the fleet."""

    def __init__(self, redis: Redis, keys: RedisKeys, process_id: str, teacher: str) -> None:
        self._process_id = process_id
        self._teacher = teacher
        self._keys = list(keys.teacher(teacher))
        self._channel_prefix = keys.wakeups("")
        self._script = redis.register_script(SCRIPT)

    async def exchange(self, update: SchedulerUpdate, limits: TeacherLimits) -> SchedulerDecision:
        """Send an update and return the decision, in one round trip. Raises RedisError."""
        args: list[str | int] = [
            *(self._process_id, self._channel_prefix, self._teacher),
            *(int(update.complete), update.fleet_size, int(update.rejoining), int(update.leaving)),
            *(limits.max_in_flight, limits.max_size, limits.max_prompt_tokens, limits.low_water, limits.max_queue),
            *(limits.max_cache_bytes, _us(limits.lease_s)),
            len(update.released),
            *update.released,
            len(update.finished),
            *chain.from_iterable(update.finished),
        ]
        for tickets in (update.held, update.arrived):
            args.append(len(tickets))
            for ticket in tickets:
                args += _arguments(ticket)
        reply = await self._script(keys=self._keys, args=args)
        next_us, fleet_size, in_flight, waiting, window, reclaimed, unreadable, opened, outcomes = reply
        next_s = None if int(next_us) < 0 else int(next_us) / SECOND
        window_s = None if int(window) < 0 else int(window) / SECOND
        ended = (outcomes[at : at + 4] for at in range(0, len(outcomes), 4))
        by_id = {one.decode(): _outcome(kind, value.decode(), size.decode()) for one, kind, value, size in ended}
        state = (fleet_size, in_flight, waiting, window_s, opened, reclaimed, unreadable)
        return SchedulerDecision(by_id, next_s, *state)


def _arguments(ticket: Ticket) -> tuple[str | int, ...]:
    times = (_us(ticket.max_wait_s), _us(ticket.deadline_s), _us(ticket.cache_ttl_s))
    return ticket.id, ticket.tenant, stride(ticket.weight), ticket.prompt_tokens, *times, ticket.dedupe_key


def _us(seconds: float) -> int:
    return round(seconds * SECOND)


def _outcome(kind: bytes, value: str, size: str) -> Outcome:
    match kind:
        case b"G":
            return Grant(value, int(size))
        case b"S" | b"C":
            return SharedGuidance(value, cached=kind == b"C")
        case b"R":
            return TicketRefused(int(value) / SECOND)
        case b"X":
            return TicketBroken()
    raise ValueError(f"unknown outcome kind {kind!r}")


async def listen_for_wakeups(
    redis: Redis, channel: str, on_wakeup: OnWakeup, on_missed: Callable[[], None], *, reconnect_s: float = 0.5
) -> None:
    """Subscribe to wake-ups until canceled, and reconnect after each failure.

    Args:
        on_wakeup: called as `on_wakeup(teacher, outcomes)`. Empty outcomes request a complete update.
        on_missed: called after each connection and each message that cannot be decoded, since wake-ups may be lost.
    """
    while True:
        try:
            async with redis.pubsub(ignore_subscribe_messages=False) as pubsub:
                await pubsub.subscribe(channel)
                async for message in pubsub.listen():
                    if message["type"] == "subscribe":
                        on_missed()
                    elif message["type"] == "message":
                        _receive(message["data"], on_wakeup, on_missed)
        except (RedisError, OSError) as error:
            log.warning("wakeup_subscription_lost", error=type(error).__name__, retry_in_s=reconnect_s)
        except Exception:
            log.exception("wakeup_handler_failed", retry_in_s=reconnect_s)
        await asyncio.sleep(reconnect_s)


def _receive(data: bytes, on_wakeup: OnWakeup, on_missed: Callable[[], None]) -> None:
    try:
        teacher, outcomes = read_wakeup(data)
    except ValueError:
        log.warning("wakeup_unreadable", size=len(data))
        on_missed()
    else:
        on_wakeup(teacher, outcomes)


def read_wakeup(data: bytes) -> tuple[str, dict[str, Outcome]]:
    """Return the teacher and the outcomes of tickets by id. Raises ValueError."""
    teacher, *lines = data.decode().split("\n")
    parts = (line.split("|", 3) for line in lines)
    return teacher, {ticket_id: _outcome(kind.encode(), value, size) for ticket_id, kind, size, value in parts}
