"""Shared fixtures: a real Redis and a pair of real models for the whole run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import httpx
import hypothesis
import pytest
import pytest_asyncio

from gateway.local.redis import EmbeddedRedis
from gateway.local.stack import LocalStack
from tests.gateway_process import (
    STUDENT_ONLY,
    TEACHER_ONLY,
    GatewayProcess,
    guided,
    model,
    running_gateway,
)
from tests.readiness import wait_until_probed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


# Random examples are the same in each run, so that results depend only on the change. The long run generates
# new examples. An example has no deadline, since its time depends on the load of the machine.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("new", deadline=None)
hypothesis.settings.load_profile("new" if os.environ.get("GKT_TESTS") == "full" else "same")


def pytest_xdist_auto_num_workers() -> int:
    """Return the number of cores plus one, since most tests wait for their own processes."""
    return (os.cpu_count() or 1) + 1


PROCESS_FIXTURES = {"redis_url", "engines", "gateway", "playwright", "chromium"}
PROCESS_NAMES = {"running_gateway", "subprocess", "EmbeddedRedis", "LocalStack", "GatewayProcess"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that start a process, so that `scripts/test --quick` leaves them out."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & PROCESS_FIXTURES or PROCESS_NAMES & set(vars(item.getparent(pytest.Module).module)):
            item.add_marker("process")


SMALL_MODEL = "smollm2-135m-instruct"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def redis_url() -> AsyncIterator[str]:
    """A real Redis, empty at the start of the run."""
    async with EmbeddedRedis() as redis:
        yield redis.url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engines(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalStack]:
    """A teacher that speaks TGI's protocol and a student that speaks OpenAI's; the 135M model plays both."""
    async with LocalStack(
        teacher=SMALL_MODEL, student=SMALL_MODEL, parallel=12, slot_tokens=1024, log_folder=tmp_path_factory.mktemp("e")
    ) as stack:
        yield stack


@pytest.fixture(scope="session")
def gateway(engines: LocalStack, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Run a gateway process with the real engines, whose continuation mode was probed."""
    folder: Path = tmp_path_factory.mktemp("gateway")
    with running_gateway(
        folder,
        redis_url=redis_url,
        models=[model("big", "tgi", engines.teacher.url), model("small", "openai", engines.student.url + "/v1")],
        routes=[
            guided(),
            guided("chat-concise", projection="concise"),
            guided("chat-hint", projection="hint"),
            guided("chat-context", placement="context"),
            STUDENT_ONLY,
            TEACHER_ONLY,
        ],
    ) as process:
        wait_until_probed(process.admin_url)
        yield process


@pytest.fixture
def http(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    """A plain HTTP client on the gateway, without a key."""
    with httpx.Client(base_url=gateway.url, timeout=60) as client:
        yield client
