"""Stored responses of tenants whose policy enables them. Saving a response never fails its answer."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from gateway.errors import NotFound, Overloaded, PreviousResponseNotFound, StoreUnavailable
from gateway.runtime.fair_share import FairSemaphore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.pipeline.admission import Slots
    from gateway.pipeline.redis_responses import RedisResponses, StoredResponse
    from gateway.policy.schema import TenantPolicy
    from gateway.redis.client import RedisClient
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

_ID = re.compile(r"resp_[A-Za-z0-9_-]{1,100}")
_MAX_SHOWN = 64  # characters of an id in an error
MAX_TRANSFERS = 4
"""Responses that a process reads or writes at once. 64 responses of 1 MB at once block the event loop for 0.3 s."""


@dataclass(frozen=True, slots=True)
class StoredResponses:
    """Save, read and delete the responses of tenants.

    `reads` are slots for Redis connections, shared with reads of receipts. Their holders take turns by tenant. A failed
    call does not open the circuit breaker of Redis: a large value must not stop requests of other tenants from using
    Redis.
    """

    redis: RedisClient
    responses: RedisResponses
    reads: Slots
    metrics: Metrics
    turns: FairSemaphore = field(default_factory=lambda: FairSemaphore(MAX_TRANSFERS))

    async def find(self, policy: TenantPolicy, response_id: str) -> StoredResponse | None:
        """Return a response, or None if the tenant has none with this id. Raises Overloaded, StoreUnavailable."""
        if not _may_exist(policy, response_id):
            return None
        async with self._connection(policy):
            return await self.responses.load(policy.tenant, response_id)

    async def previous(self, policy: TenantPolicy, response_id: str) -> StoredResponse:
        """Return the response that a request follows.

        Raises PreviousResponseNotFound, Overloaded, StoreUnavailable.
        """
        if (found := await self.find(policy, response_id)) is not None:
            return found
        advice = "It expired, was deleted, was not stored or is not complete"
        if policy.stored_responses is None:
            advice = "This gateway stores no responses"
        raise PreviousResponseNotFound(
            f"Previous response with id '{response_id[:_MAX_SHOWN]}' not found. {advice}: send the whole conversation "
            "in 'input'.",
            param="previous_response_id",
        )

    async def get(self, policy: TenantPolicy, response_id: str) -> StoredResponse:
        """Return a response. Raises NotFound, Overloaded, StoreUnavailable."""
        if (found := await self.find(policy, response_id)) is None:
            raise _not_found(response_id)
        return found

    async def delete(self, policy: TenantPolicy, response_id: str) -> None:
        """Delete a response. Raises NotFound, Overloaded, StoreUnavailable."""
        deleted = False
        if _may_exist(policy, response_id):
            async with self._connection(policy):
                deleted = await self.responses.delete(policy.tenant, response_id)
        if not deleted:
            raise _not_found(response_id)

    async def save(self, policy: TenantPolicy, response_id: str, stored: StoredResponse) -> bool:
        """Store a response if possible. Return whether it is stored."""
        rule = policy.stored_responses
        if rule is None:
            return False
        try:
            async with self._connection(policy):
                result: str = await self.responses.save(policy.tenant, response_id, stored, rule)
        except (StoreUnavailable, Overloaded) as error:
            result = error.label
        self.metrics.stored_responses.labels(self.metrics.series.tenant(policy.tenant), result).inc()
        if result != "stored":
            log.warning("response_not_stored", tenant=policy.tenant, response=response_id, reason=result)
        return result == "stored"

    @asynccontextmanager
    async def _connection(self, policy: TenantPolicy) -> AsyncIterator[None]:
        """Wait for the tenant's turn, and hold a slot for a Redis connection. Raises Overloaded, StoreUnavailable."""
        self._require_redis()
        with self.reads.hold(policy.tenant, policy.weight):
            async with self.turns.hold(policy.tenant):
                self._require_redis()
                try:
                    yield
                except (RedisError, OSError) as error:
                    raise _unavailable() from error

    def _require_redis(self) -> None:
        if not self.redis.up:
            raise _unavailable()


def _may_exist(policy: TenantPolicy, response_id: str) -> bool:
    return policy.stored_responses is not None and _ID.fullmatch(response_id) is not None


def _not_found(response_id: str) -> NotFound:
    return NotFound(f"Response with id '{response_id[:_MAX_SHOWN]}' not found.")


def _unavailable() -> StoreUnavailable:
    return StoreUnavailable("Stored responses cannot be read while Redis is down. Try again.")
