"""The batching part of a gateway process: connections, tasks and tickets. Several processes share one Redis."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from gateway.batching.batcher import Batcher
from gateway.batching.teacher_queue import QueueTimes
from gateway.batching.ticket import Grant, TeacherLimits, Ticket
from gateway.redis.client import RedisClient
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from redis.asyncio import Redis

    from gateway.batching.teacher_queue import OnFailure, TeacherQueue
    from gateway.redis.keys import RedisKeys

REDIS_TIMEOUT_S = 5.0  # where Redis answers: a busy machine must not take a process out of its fleet
HASTY_S = 0.2  # with a blocked Redis
LONG_S = 600.0
_names = itertools.count()


def ticket(*, wait_s: float = 0.0, deadline_s: float = LONG_S, **more: Any) -> Ticket:
    return Ticket(f"ticket-{next(_names)}", "acme", 10, wait_s, deadline_s, **more)


class Meter:
    """Counts the calls in flight, over all that share it."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0

    async def call(self, queue: TeacherQueue, takes_s: float, one: Ticket | None = None) -> Grant:
        """Run a guided request: wait for the permit, and call the teacher for `takes_s`."""
        async with asyncio.timeout(10), queue.acquire(ticket() if one is None else one) as waiter:
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                await asyncio.sleep(takes_s)
            finally:
                self.now -= 1
            assert isinstance(waiter.outcome, Grant)
            return waiter.outcome


@asynccontextmanager
async def process(
    url: str,
    keys: RedisKeys,
    limits: TeacherLimits | Callable[[], TeacherLimits],
    *,
    process_id: str = "ann",
    on_failure: OnFailure = "degrade",
    redis_timeout_s: float = REDIS_TIMEOUT_S,
    times: QueueTimes = QueueTimes(),
    metrics: Metrics | None = None,
) -> AsyncIterator[TeacherQueue]:
    """A running batcher for one teacher, subscribed and known to the fleet."""
    metrics = metrics or Metrics()
    client = RedisClient(url, timeout_s=redis_timeout_s, metrics=metrics)
    tasks = BackgroundTasks()
    batcher = Batcher(
        client,
        keys,
        process_id=process_id,
        limits={"big": limits if callable(limits) else lambda: limits},
        on_failure=on_failure,
        metrics=metrics,
        times=times,
    )
    batcher.start(tasks)
    tasks.keep("redis", client.watch())
    try:
        await until(lambda: _subscribed(client.commands, keys.wakeups(process_id)))
        yield batcher.queue("big")
    finally:
        await tasks.close()
        await client.close()


async def _subscribed(redis: Redis, channel: str) -> bool:
    ((_, listeners),) = await redis.pubsub_numsub(channel)
    return bool(listeners)


async def until(true: Callable[[], object], limit_s: float = 5.0) -> None:
    """Wait until `true` says so; it may be a coroutine function."""
    withdraw = time.monotonic() + limit_s
    while True:
        result = true()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return
        assert time.monotonic() < withdraw, f"not within {limit_s:g} s"
        await asyncio.sleep(0.005)


async def nothing_left(redis: Redis, keys: RedisKeys, *queues: TeacherQueue, limit_s: float = 5.0) -> None:
    """Wait until no ticket and no permit is left, in Redis or in memory."""
    names = keys.teacher("big")

    async def none() -> bool:
        counts = (await redis.zcard(names.queue), await redis.hlen(names.tickets), await redis.scard(names.permits))
        return counts == (0, 0, 0) and not any(queue._waiters or queue._released or queue._unsent for queue in queues)

    await until(none, limit_s)
