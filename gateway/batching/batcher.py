"""The queues of all teachers in this process."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING

from gateway.batching.redis_scheduler import listen_for_wakeups
from gateway.batching.teacher_queue import QueueTimes, TeacherQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from gateway.batching.teacher_queue import OnFailure
    from gateway.batching.ticket import Outcome, TeacherLimits
    from gateway.batching.view import QueueView
    from gateway.redis.client import RedisClient
    from gateway.redis.keys import RedisKeys
    from gateway.runtime.tasks import BackgroundTasks
    from gateway.telemetry.metrics import Metrics


class Batcher:
    """Every teacher's queue in this process. `limits` is called at each exchange: engines report their limits late."""

    def __init__(
        self,
        redis: RedisClient,
        keys: RedisKeys,
        *,
        process_id: str,  # unique in the fleet
        limits: Mapping[str, Callable[[], TeacherLimits]],
        on_failure: OnFailure,
        metrics: Metrics,
        times: QueueTimes = QueueTimes(),
    ) -> None:
        self._subscriber = redis.listening
        self._channel = keys.wakeups(process_id)
        create = partial(
            TeacherQueue, redis, keys, process_id=process_id, on_failure=on_failure, metrics=metrics, times=times
        )
        self._queues = {name: create(teacher=name, limits=read) for name, read in limits.items()}

    def queue(self, teacher: str) -> TeacherQueue:
        return self._queues[teacher]

    async def views(self, teachers: Collection[str]) -> dict[str, QueueView]:
        """Return the queue state of these teachers, within the time limit of one Redis command."""
        queues = {name: queue for name, queue in self._queues.items() if name in teachers}
        return dict(zip(queues, await asyncio.gather(*(queue.view() for queue in queues.values())), strict=True))

    def processes(self) -> int:
        """Return the largest recent number of gateway processes on any scheduler, this one included."""
        return max((queue.membership.fleet_size for queue in self._queues.values()), default=1)

    def joined_s(self) -> float:
        """Return when the process joined the fleet, on the clock of the event loop; infinite: not yet."""
        return min((queue.membership.joined_s for queue in self._queues.values()), default=math.inf)

    def start(self, tasks: BackgroundTasks) -> None:
        for teacher, queue in self._queues.items():
            tasks.keep(f"batches:{teacher}", queue.run())
        tasks.keep("wakeups", listen_for_wakeups(self._subscriber, self._channel, self._on_wakeup, self._on_missed))

    async def stop(self) -> None:
        """Leave the fleet. Call it when no request waits."""
        for queue in self._queues.values():
            await queue.leave_fleet()

    def _on_wakeup(self, teacher: str, outcomes: Mapping[str, Outcome]) -> None:
        if teacher in self._queues:
            self._queues[teacher].on_wakeup(outcomes)

    def _on_missed(self) -> None:
        for queue in self._queues.values():
            queue.resync()
