from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest_asyncio

from gateway.local.stack import LocalStack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

MODEL = "smollm2-135m-instruct"
SLOT_TOKENS = 512


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalStack]:
    """Run one student for all tests."""
    folder: Path = tmp_path_factory.mktemp("stack")
    async with LocalStack(
        student=MODEL,
        parallel=4,
        slot_tokens=SLOT_TOKENS,
        log_folder=folder,
    ) as running:
        yield running


@pytest_asyncio.fixture
async def student(stack: LocalStack) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(stack.student.url) as session:
        yield session
