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
        self._create = partial(
            TeacherQueue, redis, keys, process_id=process_id, on_failure=on_failure, metrics=metrics, times=times
        )
        self._queues = {name: self._create(teacher=name, limits=read) for name, read in limits.items()}
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._tasks: BackgroundTasks

    def queue(self, teacher: str) -> TeacherQueue:
        return self._queues[teacher]

    async def views(self, teachers: Collection[str]) -> dict[str, QueueView]:
        """Return the queue state of these teachers, within the time limit of one Redis command."""
        queues = {name: queue for name, queue in self._queues.items() if name in teachers}
        return dict(zip(queues, await asyncio.gather(*(queue.view() for queue in queues.values())), strict=True))

    def processes(self) -> int:
        """Return the largest recent number of gateway processes on any scheduler, this one included."""
        return max((queue.membership.processes for queue in self._queues.values()), default=1)

    def joined_s(self) -> float:
        """Return when the process joined the fleet, on the clock of the event loop; infinite: not yet."""
        return min((queue.membership.joined_s for queue in self._queues.values()), default=math.inf)

    def start(self, tasks: BackgroundTasks) -> None:
        self._tasks = tasks
        for teacher in self._queues:
            self._run(teacher)
        tasks.keep("wakeups", listen_for_wakeups(self._subscriber, self._channel, self._on_wakeup, self._on_missed))

    def add(self, teacher: str, limits: Callable[[], TeacherLimits]) -> None:
        """Add a teacher after `start`. A teacher that was not removed yet keeps its queue."""
        if teacher not in self._queues:
            queue = self._create(teacher=teacher, limits=limits)
            # Redis may be unavailable, or the queues of all other teachers may be removed before its first reply.
            queue.membership.inherit(self.processes(), self.joined_s(), asyncio.get_running_loop().time())
            self._queues[teacher] = queue
            self._run(teacher)

    async def remove(self, teacher: str) -> None:
        """Remove a teacher, if it is known, and leave its fleet. Call it when no request waits for the teacher."""
        if (queue := self._queues.pop(teacher, None)) is not None:
            try:
                await queue.leave_fleet()
            finally:
                self._loops.pop(teacher).cancel()

    def _run(self, teacher: str) -> None:
        self._loops[teacher] = self._tasks.keep(f"batches:{teacher}", self._queues[teacher].run())

    async def stop(self) -> None:
        """Leave the fleet. Call it when no request waits."""
        for queue in list(self._queues.values()):  # an edit of config.yaml may remove one meanwhile
            await queue.leave_fleet()

    def _on_wakeup(self, teacher: str, outcomes: Mapping[str, Outcome]) -> None:
        if teacher in self._queues:
            self._queues[teacher].on_wakeup(outcomes)

    def _on_missed(self) -> None:
        for queue in self._queues.values():
            queue.resync()
