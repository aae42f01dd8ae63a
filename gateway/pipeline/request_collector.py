"""Collect requests of routes whose policy consents, after their answers were sent. A failure affects no answer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from gateway.quality.request_line import Uncollectable, request_line
from gateway.runtime.fair_share import FairSemaphore

if TYPE_CHECKING:
    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.policy.route_rules import CollectRule
    from gateway.protocol.requests import CompletionRequest
    from gateway.quality.request_sample import RedisSamples
    from gateway.redis.client import RedisClient
    from gateway.runtime.tasks import BackgroundTasks

MAX_PENDING = 256
"""Requests that a process may hold until they are written. They are dropped beyond it."""
MAX_PENDING_PER_TENANT = 16
_MAX_WRITES = 4


@dataclass(frozen=True, slots=True)
class RequestCollector:
    """Draw requests into the samples of their routes. Dropped requests are counted with the route's next one."""

    samples: RedisSamples
    client: RedisClient
    tasks: BackgroundTasks
    _turns: FairSemaphore = field(default_factory=lambda: FairSemaphore(_MAX_WRITES), init=False)
    _pending: Counter[str] = field(default_factory=Counter, init=False)
    _dropped: Counter[tuple[str, str]] = field(default_factory=Counter, init=False)

    def start(self, builder: ReceiptBuilder, request: CompletionRequest, rule: CollectRule) -> None:
        """Start to collect a request that was answered."""
        tenant = builder.tenant
        full = self._pending.total() >= MAX_PENDING or self._pending[tenant] >= MAX_PENDING_PER_TENANT
        if full or not self.client.up:
            self._dropped[tenant, builder.route] += 1
            return
        self._pending[tenant] += 1
        task = self.tasks.spawn(f"{builder.id}-collect", self._add(builder, request, rule))
        task.add_done_callback(lambda _: self._release(tenant))

    def _release(self, tenant: str) -> None:
        self._pending[tenant] -= 1
        if not self._pending[tenant]:
            del self._pending[tenant]

    async def _add(self, builder: ReceiptBuilder, request: CompletionRequest, rule: CollectRule) -> None:
        tenant, route, request_id = builder.tenant, builder.route, builder.id
        content, reason = b"", ""
        try:
            content = request_line(request, route, request_id, builder.created)
        except Uncollectable as error:
            reason = error.reason
        # A body may have megabytes. Only the bounded line waits for Redis.
        del builder, request
        async with self._turns.hold(tenant):
            dropped = self._dropped.pop((tenant, route), 0)
            try:
                await self.samples.add(tenant, route, rule, request_id, content, reason=reason, dropped=dropped)
            except (RedisError, OSError):
                # The circuit breaker of Redis ignores this: a large value must not affect requests.
                self._dropped[tenant, route] += dropped + 1
