"""Store the feedback of callers on their requests in Redis, and post it to the usage database through an outbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.quality.comparison import SCALE
from gateway.redis.keys import OUTCOMES
from gateway.redis.script import RedisScript

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from gateway.quality.outcome import Outcome
    from gateway.redis.keys import RedisKeys


class FeedbackStore:
    """Store one score for each request. All methods raise RedisError and OSError.

    `ttl_s` is the time for which Redis keeps a receipt. A score is kept twice as long, so that no second score of a
    request is stored while its receipt exists.
    """

    def __init__(self, redis: Redis, keys: RedisKeys, ttl_s: float) -> None:
        self._redis, self._keys = redis, keys
        self._ttl_s = max(1, round(2 * ttl_s))
        self._script = RedisScript(redis, "gateway.quality", "feedback.lua")

    async def add(self, outcome: Outcome) -> float:
        """Store the score of a request unless it has one. Return the stored score, from 0 to 1."""
        keys = [self._keys.feedback(outcome.tenant, outcome.id), self._keys.outbox(OUTCOMES)]
        (held,) = await self._script.run([(keys, (outcome.score, self._ttl_s, outcome.to_json()))])
        return int(held) / SCALE

    async def score(self, tenant: str, receipt_id: str) -> float | None:
        """Return the score of a request, from 0 to 1; None without one, or after its time in Redis."""
        held = await self._redis.get(self._keys.feedback(tenant, receipt_id))
        return None if held is None else int(held) / SCALE
