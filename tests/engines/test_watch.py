from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from gateway.engines.tgi import TGIEngine
from gateway.engines.watch import ProbeInterval, watch
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.engines.fake_server import NAME, engine_http, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

UP = {"model_id": "org/model", "max_concurrent_requests": 128}
DOWN = None
FAST = ProbeInterval(up_s=0.01, first_retry_s=0.01, max_retry_s=0.02)


class Watched:
    """Yield an engine with a script of its probes (the last entry repeats), and run its watch."""

    def __init__(self, script: list[Any]) -> None:
        self.script = script
        self.seen: list[float] = []
        self.metrics = Metrics()
        self.engine: TGIEngine

    async def answer(self, _: web.Request) -> web.StreamResponse:
        answer = self.script[min(len(self.seen), len(self.script) - 1)]
        self.seen.append(time.perf_counter())
        if answer is DOWN:
            return web.json_response({"error": "loading"}, status=503)
        return web.json_response(answer)

    async def until(self, count: int) -> None:
        """Wait for a number of probes."""
        async with asyncio.timeout(5):
            while len(self.seen) < count:
                await asyncio.sleep(0.002)

    async def probes(self, count: int) -> None:
        """Wait for a number of answered probes and the start of the next one, so that the last result is processed."""
        async with asyncio.timeout(5):
            while len(self.seen) <= count:
                await asyncio.sleep(0.002)

    @property
    def up(self) -> float | None:
        return self.metrics.registry.get_sample_value("gkt_engine_up", {"engine": NAME})


@asynccontextmanager
async def watching(
    *script: Any,
    pace: ProbeInterval = FAST,
    probe_now: asyncio.Event | None = None,
) -> AsyncIterator[Watched]:
    watched = Watched(list(script))
    tasks = BackgroundTasks()
    async with serving({"/info": watched.answer}) as fake, engine_http(fake.url) as http:
        watched.engine = TGIEngine(NAME, http, max_concurrency=200)
        assert watched.engine.state.up is None
        try:
            tasks.keep("watch", watch(watched.engine, watched.metrics, pace, probe_now))
            yield watched
        finally:
            await tasks.close()


async def test_an_engine_that_answers_is_up() -> None:
    """In the state and in the metric."""
    async with watching(UP) as watched:
        await watched.probes(1)
        assert watched.engine.state.up is True
        assert watched.engine.state.detail == "answers"
        assert watched.up == 1


async def test_an_engine_without_calls_has_the_detail_not_called_yet() -> None:
    """An engine with billed calls is not probed."""
    async with watching(UP) as watched:
        watched.engine.state.called = False
        await watched.probes(3)
        assert (watched.engine.state.up, watched.engine.state.detail) == (True, "not called yet")


async def test_an_unresponsive_engine_is_down_with_the_reason() -> None:
    """The detail is the error's message, and probes continue."""
    async with watching(DOWN) as watched:
        await watched.probes(3)
        assert watched.engine.state.up is False
        assert watched.engine.state.detail == "Engine 'the-engine' answered 503: loading"
        assert watched.up == 0


async def test_an_engine_that_comes_back_is_up_again() -> None:
    """Each change is logged once."""
    with capture_logs() as logs:
        async with watching(DOWN, DOWN, UP, UP, DOWN, UP) as watched:
            await watched.probes(8)
            assert watched.engine.state.up is True
            assert watched.up == 1
    changes = [(log["up"], log["log_level"]) for log in logs if log["event"] == "engine"]
    assert changes == [(False, "warning"), (True, "info"), (False, "warning"), (True, "info")]
    assert {log["engine"] for log in logs} == {NAME}


async def test_a_warning_is_logged_once_while_it_lasts() -> None:
    """Again if it disappears and returns."""
    with capture_logs() as logs:
        async with watching(UP, UP, UP, {"model_id": "x"}, UP, UP) as watched:
            await watched.probes(6)
    warned = [log["warning"] for log in logs if log["event"] == "engine_differs"]
    assert warned == ["max_concurrency 200 exceeds the server's max_concurrent_requests 128; 128 is used"] * 2


async def test_an_event_triggers_a_probe_at_once() -> None:
    """A policy change that changes the engine's role sets the event."""
    at_once = asyncio.Event()
    async with watching(UP, pace=ProbeInterval(up_s=3600), probe_now=at_once) as watched:
        for looks in (2, 3):
            await watched.until(looks - 1)
            at_once.set()
            await watched.until(looks)


async def test_an_engine_that_is_down_is_probed_less_and_less_often() -> None:
    """The intervals double up to the maximum. Sleeps are never shorter than requested."""
    async with watching(DOWN, pace=ProbeInterval(up_s=60, first_retry_s=0.02, max_retry_s=0.08)) as watched:
        await watched.probes(7)
    pauses = [later - earlier for earlier, later in pairwise(watched.seen)]
    assert [pause >= least for pause, least in zip(pauses, [0.02, 0.04, 0.08, 0.08, 0.08], strict=False)] == [True] * 5
    assert sum(pauses) < 0.02 * (2**7 - 1)


async def test_an_engine_that_is_up_is_probed_at_its_own_interval() -> None:
    """After a failure the first retry interval applies again."""
    async with watching(UP, *[DOWN] * 5, UP, DOWN, pace=ProbeInterval(0.1, 0.01, 60)) as watched:
        await watched.probes(8)
    pauses = [later - earlier for earlier, later in pairwise(watched.seen)]
    assert pauses[0] >= 0.1
    assert pauses[5] >= 0.16
    assert pauses[6] >= 0.1
    assert pauses[7] < 0.3


async def test_a_watch_survives_an_unexpected_error() -> None:
    """Without the watch, the recovery of the engine would not be noticed."""
    async with watching(UP) as watched:
        await watched.probes(1)
        probe = watched.engine.probe

        async def broken() -> None:
            raise RuntimeError("a mistake of ours")

        watched.engine.probe = broken  # type: ignore[method-assign]
        with capture_logs() as logs:
            while watched.engine.state.up:
                await asyncio.sleep(0.01)
        assert any(line["event"] == "probe_failed" for line in logs)
        watched.engine.probe = probe  # type: ignore[method-assign]
        async with asyncio.timeout(5):
            while not watched.engine.state.up:
                await asyncio.sleep(0.01)


async def test_a_watch_that_is_cancelled_ends() -> None:
    async with watching(UP) as watched:
        await watched.probes(1)
        watching_task = next(task for task in asyncio.all_tasks() if task.get_name() == "watch")
    assert watching_task.cancelled()


def test_the_default_probe_intervals_are_bounded() -> None:
    """At most two probes per second, and at most ten seconds until a recovery is noticed."""
    pace = ProbeInterval()
    assert (pace.up_s, pace.first_retry_s, pace.max_retry_s) == (30, 0.5, pytest.approx(10))
