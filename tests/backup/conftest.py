"""Fixtures: a Redis for restores, and a PostgreSQL for the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from gateway.local.redis import EmbeddedRedis
from tests.backup.deployment import Deployment
from tests.postgres import running_postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.postgres import Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def empty_redis_url() -> AsyncIterator[str]:
    """A second Redis to restore to. Each test has its own prefix."""
    async with EmbeddedRedis() as redis:
        yield redis.url


@pytest.fixture
def deployment(tmp_path: Path, redis_url: str) -> Deployment:
    return Deployment(tmp_path / "deployment", redis_url)


@pytest.fixture
def empty_deployment(tmp_path: Path, empty_redis_url: str) -> Deployment:
    """An empty deployment."""
    return Deployment(tmp_path / "empty_deployment", empty_redis_url)
