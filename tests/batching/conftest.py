"""A client on the run's Redis, and keys of its own for each test."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from gateway.redis.keys import RedisKeys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
def keys() -> RedisKeys:
    return RedisKeys(f"t{secrets.token_hex(6)}")


@pytest_asyncio.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client
