"""When a process is ready: not before each engine was looked at once, unless one keeps it waiting."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway.admission import Admission
from gateway.engines.base import EngineState
from gateway.metrics import Metrics
from gateway.web import keys
from gateway.web.probes import readyz


async def ready(*ups: bool | None, ready_by: float = math.inf, draining: bool = False, redis: bool = True) -> Any:
    """Status and word of a process whose engines were last seen so."""
    app = web.Application()
    app.router.add_get("/readyz", readyz)
    app[keys.ADMISSION] = admission = Admission(1, None, Metrics())  # type: ignore[arg-type]
    admission.draining = draining
    app[keys.REDIS] = SimpleNamespace(up=redis)  # type: ignore[assignment]
    engines = {str(number): SimpleNamespace(state=EngineState(up=up)) for number, up in enumerate(ups)}
    app[keys.ENGINES] = engines  # type: ignore[assignment]
    app[keys.READY_BY] = ready_by
    async with TestClient(TestServer(app)) as client, client.get("/readyz") as reply:
        return reply.status, (await reply.text()).strip()


@pytest.mark.parametrize(
    ("ups", "status", "word"),
    [
        ((True, True), 200, "ready"),
        ((True, None), 503, "starting"),
        ((None, False), 503, "starting"),
        ((True, False), 200, "degraded"),
        ((False, False), 200, "degraded"),
    ],
)
async def test_a_process_is_starting_until_each_engine_was_looked_at(
    ups: tuple[bool | None, ...], status: int, word: str
) -> None:
    """An engine that is down was looked at: it keeps nobody from being ready."""
    assert await ready(*ups) == (status, word)


async def test_an_engine_that_does_not_answer_its_first_probe_is_not_waited_for_long() -> None:
    now = asyncio.get_running_loop().time()
    assert await ready(True, None, ready_by=now - 1) == (200, "ready")


async def test_a_process_without_redis_is_degraded_and_one_that_drains_is_not_ready() -> None:
    assert await ready(True, redis=False) == (200, "degraded")
    assert await ready(True, draining=True) == (503, "draining")
