"""Shared fixtures: a real Redis and a pair of real models for the whole run."""

from __future__ import annotations

import functools
import gc
import os
from collections import Counter
from typing import TYPE_CHECKING

import httpx
import httpx._transports.default
import httpx2._transports.default
import hypothesis
import pytest
import pytest_asyncio
import structlog
from xdist.scheduler import LoadFileScheduling

from gateway.local.redis import EmbeddedRedis
from gateway.local.stack import LocalStack
from tests.gateway_process import (
    COMMAND,
    STUDENT_ONLY,
    TEACHER_ONLY,
    GatewayProcess,
    guided,
    local_models,
    running_gateway,
)
from tests.readiness import wait_until_probed
from tests.redis_clients import opened_by_url
from tests.redis_groups import cluster_group

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from xdist.remote import Producer


# Random examples are the same in each run, so that results depend only on the change. The long run generates
# new examples. An example has no deadline, since its time depends on the load of the machine.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("new", deadline=None)
hypothesis.settings.load_profile("new" if os.environ.get("GKT_TESTS") == "full" else "same")


# Clients share one TLS context. Each would read the certificates, which takes 30 ms of CPU time. No server uses TLS.
for _transports in (httpx._transports.default, httpx2._transports.default):
    _transports.create_ssl_context = functools.cache(_transports.create_ssl_context)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Exempt modules and tests from garbage collection, which would search them again and again for seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_xdist_auto_num_workers() -> int:
    """Return the number of cores plus one, since most tests wait for their own processes."""
    return (os.cpu_count() or 1) + 1


class Scheduling(LoadFileScheduling):
    """Run a file on one worker, and the files of a folder that share slow processes."""

    def _split_scope(self, nodeid: str) -> str:
        folder = nodeid.rpartition("/")[0]
        return folder if folder in {"tests/browser", "tests/clients"} else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    return Scheduling(config, log) if config.option.dist == "loadfile" else None


PROCESS_FIXTURES = {"redis_url", "engines", "gateway", "playwright", "chromium"}
TESTS_OF_ID = pytest.StashKey[int]()
PROCESS_NAMES = {"running_gateway", "subprocess", "EmbeddedRedis", "LocalStack", "GatewayProcess"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests that start a process, so that `scripts/test --quick` leaves them out. Count the tests of each id."""
    ids = Counter(item.nodeid for item in items)
    for item in items:
        item.stash[TESTS_OF_ID] = ids[item.nodeid]
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & PROCESS_FIXTURES or PROCESS_NAMES & set(vars(item.getparent(pytest.Module).module)):
            item.add_marker("process")
    if hasattr(config, "workerinput"):
        # Long tests first, so that no worker has one left at the end of the run. The soak is the last of these: for 20
        # minutes it needs CPU time that tests of leases and failovers would lack.
        first = {item.path for item in items if item.get_closest_marker("process")}
        items.sort(key=lambda item: (item.path not in first, item.path.name == "test_soak.py"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test that shares its id: of tests with one id, only one runs where there are several workers."""
    if (tests := item.stash[TESTS_OF_ID]) > 1:
        pytest.fail(f"{tests} tests have this id")


SMALL_MODEL = "smollm2-135m-instruct"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def redis_url() -> AsyncIterator[str]:
    """A real Redis, empty at the start of the run; with GKT_TEST_REDIS=cluster a cluster of six nodes."""
    if os.environ.get("GKT_TEST_REDIS") == "cluster":
        async with cluster_group() as group:
            with opened_by_url():
                yield group.url
        return
    async with EmbeddedRedis() as redis:
        yield redis.url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engines(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalStack]:
    """A teacher and a student, each llama.cpp's server with the 135M model."""
    async with LocalStack(
        teacher=SMALL_MODEL, student=SMALL_MODEL, parallel=12, slot_tokens=1024, log_folder=tmp_path_factory.mktemp("e")
    ) as stack:
        yield stack


@pytest.fixture(autouse=True)
def log_of_this_process() -> Iterator[None]:
    """Fail a test that leaves the log of this process changed: later tests would find no lines in it."""
    before = structlog.get_config()
    processors = list(before["processors"])
    yield
    after = structlog.get_config()
    is_same = after == before and list(after["processors"]) == processors
    assert is_same, "set up the log in a process of the test, or patch set_up_logs"


@pytest.fixture(scope="session")
def gateway(engines: LocalStack, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Run a gateway process with the real engines, whose continuation mode was probed."""
    folder: Path = tmp_path_factory.mktemp("gateway")
    with running_gateway(
        folder,
        entry=COMMAND,
        redis_url=redis_url,
        models=local_models(engines),
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
