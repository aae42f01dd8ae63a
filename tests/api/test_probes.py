"""Readiness of a process: it waits until each engine was checked once, unless an engine takes too long."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway.accounting.engine_set import EngineSet
from gateway.api import keys
from gateway.api.probes import STARTUP, Readiness, readyz
from gateway.engines.base import EngineState
from gateway.pipeline.admission import Admission
from gateway.telemetry.metrics import Metrics


class Redis:
    """A Redis that answers when `up` allows."""

    def __init__(self, *, up: bool = True) -> None:
        self.up = up
        self.calls = 0

    @property
    def is_whole(self) -> bool:
        return self.up

    async def wait_answered(self) -> None:
        self.calls += 1
        while not self.up:
            await asyncio.sleep(0)


def probed(*ups: bool | None) -> dict[str, Any]:
    """Return engines with this last state."""
    return {str(number): SimpleNamespace(state=EngineState(up=up)) for number, up in enumerate(ups)}


async def started(redis: Redis, engines: dict[str, Any], first_probes_s: float = 10.0) -> Readiness:
    """Run a start until it blocks."""
    startup = Readiness(redis, engines.values())  # type: ignore[arg-type]
    with suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await startup.run(first_probes_s)
    return startup


async def ready(
    *ups: bool | None, draining: bool = False, redis: bool = True, first_probes_s: float = 10.0, up_later: bool = True
) -> Any:
    """Return status and word of a process with this engine state; `up_later`: whether Redis is up after the start."""
    app = web.Application()
    app.router.add_get("/readyz", readyz)
    app[keys.ADMISSION] = admission = Admission(1, None, Metrics())  # type: ignore[arg-type]
    admission.draining = draining
    engines, client = probed(*ups), Redis(up=redis)
    app[keys.ENGINES] = EngineSet(engines)
    app[STARTUP] = await started(client, engines, first_probes_s)
    client.up = client.up and up_later
    app[keys.REDIS] = client  # type: ignore[assignment]
    async with TestClient(TestServer(app)) as caller, caller.get("/readyz") as reply:
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
async def test_a_process_is_starting_until_each_engine_is_probed(
    ups: tuple[bool | None, ...], status: int, word: str
) -> None:
    """An engine that is down was checked, so it does not delay readiness."""
    assert await ready(*ups) == (status, word)


async def test_an_engine_that_does_not_answer_its_first_probe_is_not_waited_for_long() -> None:
    assert await ready(True, None, first_probes_s=0.01) == (200, "ready")


async def test_a_process_is_starting_until_redis_has_answered_after_the_engines_were_probed() -> None:
    """An earlier reply may have preceded work that blocks the loop."""
    assert await ready(True, redis=False) == (503, "starting")
    client, engines = Redis(), probed(True, None)
    await started(client, engines)
    assert client.calls == 0
    engines["1"].state.up = False
    assert (await started(client, engines)).finished.is_set()
    assert client.calls == 1


async def test_a_process_that_lost_redis_is_degraded_and_one_that_drains_is_not_ready() -> None:
    assert await ready(True, up_later=False) == (200, "degraded")
    assert await ready(True, draining=True) == (503, "draining")
