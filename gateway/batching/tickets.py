"""The fleet's queue in Redis: the decision script, and the wake-ups it sends to other processes."""

from __future__ import annotations

import asyncio
from importlib.resources import files
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from gateway.batching.window import Decision, Grant, Limits, News

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from redis.asyncio import Redis

    from gateway.redis_keys import RedisKeys

log = structlog.get_logger()

# A process that has not exchanged for this long is not counted when the cap is shared out.
_FLEET_WINDOW_S = 60
_RECONNECT_S = 0.5


class RedisBoard:
    """One teacher's queue over all processes on one Redis.

    Args:
        owner: this process's id; no other process has it.
        teacher: the configured model name.
    """

    def __init__(self, redis: Redis, keys: RedisKeys, owner: str, teacher: str) -> None:
        self._owner = owner
        self._teacher = teacher
        self._keys = keys.teacher(teacher).as_list()
        self._channel_prefix = keys.wakeups("")
        self._script = redis.register_script(files("gateway.batching").joinpath("tickets.lua").read_text())

    async def exchange(self, news: News, limits: Limits) -> Decision:
        """Tell the news, get the decision, in one round trip. Raises RedisError."""
        args: list[str | int] = [
            self._owner,
            self._channel_prefix,
            self._teacher,
            limits.max_in_flight,
            limits.max_size,
            limits.max_prompt_tokens,
            _FLEET_WINDOW_S * 1_000_000,
            len(news.gone),
            *news.gone,
            len(news.held),
        ]
        for ticket in news.held:
            args += [ticket.id, _us(ticket.deadline_s)]
        args.append(len(news.arrived))
        for ticket in news.arrived:
            args += [ticket.id, ticket.prompt_tokens, _us(ticket.max_wait_s), _us(ticket.deadline_s)]
        next_look_us, fleet, flat = await self._script(keys=self._keys, args=args)
        said = [part.decode() for part in flat]
        grants = {said[i]: Grant(said[i + 1], int(said[i + 2])) for i in range(0, len(said), 3)}
        look_us = int(next_look_us)
        return Decision(grants, None if look_us < 0 else look_us / 1_000_000, int(fleet))


def _us(seconds: float) -> int:
    return round(seconds * 1_000_000)


async def hear_wakeups(
    redis: Redis,
    channel: str,
    granted: Callable[[str, Mapping[str, Grant]], None],
    resubscribed: Callable[[], None],
) -> None:
    """Listen for ever: call `granted(teacher, grants)` for each wake-up.

    `resubscribed` is called after each (re)connection: what was sent before it may have been lost. Nothing ends the
    loop but cancellation.
    """
    while True:
        try:
            async with redis.pubsub(ignore_subscribe_messages=False) as pubsub:
                await pubsub.subscribe(channel)
                async for message in pubsub.listen():
                    if message["type"] == "subscribe":
                        resubscribed()
                    elif message["type"] == "message":
                        granted(*_read_wakeup(message["data"]))
        except (RedisError, OSError) as error:
            log.warning("wakeups_lost", error=type(error).__name__, retry_in_s=_RECONNECT_S)
        except Exception:
            # Such as a message that is none of ours. Connecting anew asks again what became of every ticket.
            log.exception("wakeups_failed", retry_in_s=_RECONNECT_S)
        await asyncio.sleep(_RECONNECT_S)


def _read_wakeup(data: bytes) -> tuple[str, dict[str, Grant]]:
    teacher, *lines = data.decode().split("\n")
    grants: dict[str, Grant] = {}
    for line in lines:
        ticket_id, batch_id, size = line.split("|")
        grants[ticket_id] = Grant(batch_id, int(size))
    return teacher, grants
