"""While a backup reads, nobody adds receipts up or takes them out of outboxes: sums and outboxes stay as they are.

Requests go on, and their receipts wait. It takes the lease of who adds up; where it dies, that one goes on after it.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from gateway.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from gateway.redis_keys import RedisKeys

_LEASE_MS = 5_000
_SAY_EVERY_S = 0.25
# Whoever added up hears of it within half a second, and may be in the middle of a round then.
_SETTLES_S = 1.5


@asynccontextmanager
async def nobody_adds_up(redis: Redis, keys: RedisKeys, owner: str) -> AsyncIterator[None]:
    """Args:
    owner: a name that no process has.

    Raises RedisError and OSError.
    """
    lease, tasks = keys.ledger().lease, Tasks()
    await redis.set(lease, owner, px=_LEASE_MS)
    tasks.keep("pause", _say(redis, lease, owner))
    try:
        await asyncio.sleep(_SETTLES_S)
        yield
    finally:
        await tasks.close()
        held: Any = await redis.get(lease)
        if held == owner.encode():
            await redis.delete(lease)


async def _say(redis: Redis, lease: str, owner: str) -> None:
    while True:
        await asyncio.sleep(_SAY_EVERY_S)
        await redis.set(lease, owner, px=_LEASE_MS)
