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
    from collections.abc import AsyncIterator, Callable

UP = {"model_id": "org/model", "max_concurrent_requests": 128}
DOWN = None
FAST = ProbeInterval(look_every_s=0.01, first_retry_s=0.01, last_retry_s=0.02)


class Watched:
    """An engine that answers its probes by a script (the last entry for ever), and the watch over it."""

    def __init__(self, script: list[Any]) -> None:
        self.script = script
        self.seen: list[float] = []
        self.metrics = Metrics()
        self.engine: TGIEngine

    async def answer(self, _: web.Request) -> web.StreamResponse:
        said = self.script[min(len(self.seen), len(self.script) - 1)]
        self.seen.append(time.perf_counter())
        if said is DOWN:
            return web.json_response({"error": "loading"}, status=503)
        return web.json_response(said)

    async def until(self, count: int) -> None:
        """Wait until so many probes have come."""
        async with asyncio.timeout(5):
            while len(self.seen) < count:
                await asyncio.sleep(0.002)

    async def probes(self, count: int) -> None:
        """Wait until so many probes were answered, and the next one has come: then what the last one told is known."""
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
    at_once: asyncio.Event | None = None,
    saw: Callable[[str, bool], None] | None = None,
) -> AsyncIterator[Watched]:
    watched = Watched(list(script))
    tasks = BackgroundTasks()
    async with serving({"/info": watched.answer}) as fake, engine_http(fake.url) as http:
        watched.engine = TGIEngine(NAME, http, max_concurrency=200)
        assert watched.engine.state.up is None
        try:
            tasks.keep("watch", watch(watched.engine, watched.metrics, pace, at_once, saw))
            yield watched
        finally:
            await tasks.close()


async def test_an_engine_that_answers_is_up() -> None:
    """State and metric say so."""
    async with watching(UP) as watched:
        await watched.probes(1)
        assert watched.engine.state.up is True
        assert watched.engine.state.detail == "answers"
        assert watched.up == 1


async def test_of_an_engine_that_was_not_called_yet_nobody_says_that_it_answers() -> None:
    """Where a look would cost money, none is taken."""
    async with watching(UP) as watched:
        watched.engine.state.called = False
        await watched.probes(3)
        assert (watched.engine.state.up, watched.engine.state.detail) == (True, "not called yet")


async def test_who_keeps_the_hours_hears_of_every_probe() -> None:
    """Whether it found the engine up or not."""
    heard: list[tuple[str, bool]] = []
    async with watching(UP, DOWN, UP, saw=lambda engine, up: heard.append((engine, up))) as watched:
        await watched.probes(3)
    assert heard[:3] == [(NAME, True), (NAME, False), (NAME, True)]


async def test_an_engine_that_does_not_answer_is_down_and_says_why() -> None:
    """The detail is the error's message, and the watch goes on."""
    async with watching(DOWN) as watched:
        await watched.probes(3)
        assert watched.engine.state.up is False
        assert watched.engine.state.detail == "Engine 'the-engine' answered 503: loading"
        assert watched.up == 0


async def test_an_engine_that_comes_back_is_up_again() -> None:
    """Each change is logged once, with its direction."""
    with capture_logs() as logs:
        async with watching(DOWN, DOWN, UP, UP, DOWN, UP) as watched:
            await watched.probes(8)
            assert watched.engine.state.up is True
            assert watched.up == 1
    changes = [(log["up"], log["log_level"]) for log in logs if log["event"] == "engine"]
    assert changes == [(False, "warning"), (True, "info"), (False, "warning"), (True, "info")]
    assert {log["engine"] for log in logs} == {NAME}


async def test_a_warning_is_logged_once_while_it_lasts() -> None:
    """Not with every probe; again when it went away and came back."""
    with capture_logs() as logs:
        async with watching(UP, UP, UP, {"model_id": "x"}, UP, UP) as watched:
            await watched.probes(6)
    warned = [log["warning"] for log in logs if log["event"] == "engine_differs"]
    assert warned == ["max_concurrency 200 is above the server's max_concurrent_requests 128: 128 is used"] * 2


async def test_an_engine_is_looked_at_at_once_when_that_is_asked_for() -> None:
    """As after an edit that gives it another part to play."""
    at_once = asyncio.Event()
    async with watching(UP, pace=ProbeInterval(look_every_s=3600), at_once=at_once) as watched:
        for looks in (2, 3):
            await watched.until(looks - 1)
            at_once.set()
            await watched.until(looks)


async def test_an_engine_that_is_down_is_looked_at_ever_less_often() -> None:
    """The pauses double from the first to the last, and no further; sleeping is never shorter than it says."""
    async with watching(DOWN, pace=ProbeInterval(look_every_s=60, first_retry_s=0.02, last_retry_s=0.08)) as watched:
        await watched.probes(7)
    pauses = [later - earlier for earlier, later in pairwise(watched.seen)]
    assert [pause >= least for pause, least in zip(pauses, [0.02, 0.04, 0.08, 0.08, 0.08], strict=False)] == [True] * 5
    assert sum(pauses) < 0.02 * (2**7 - 1)


async def test_an_engine_that_is_up_is_looked_at_at_its_own_pace() -> None:
    """And one that went down after that is retried from the first pause on."""
    async with watching(UP, *[DOWN] * 5, UP, DOWN, pace=ProbeInterval(0.1, 0.01, 60)) as watched:
        await watched.probes(8)
    pauses = [later - earlier for earlier, later in pairwise(watched.seen)]
    assert pauses[0] >= 0.1
    assert pauses[5] >= 0.16
    assert pauses[6] >= 0.1
    assert pauses[7] < 0.3


async def test_a_watch_survives_what_nobody_expected() -> None:
    """Nobody else would see the engine come back."""
    async with watching(UP) as watched:
        await watched.probes(1)
        probe = watched.engine.probe

        async def broken() -> None:
            raise RuntimeError("a mistake of ours")

        watched.engine.probe = broken  # type: ignore[method-assign]
        with capture_logs() as logs:
            while watched.engine.state.up:
                await asyncio.sleep(0.01)
        assert any(line["event"] == "probe_broke" for line in logs)
        watched.engine.probe = probe  # type: ignore[method-assign]
        async with asyncio.timeout(5):
            while not watched.engine.state.up:
                await asyncio.sleep(0.01)


async def test_a_watch_that_is_cancelled_ends() -> None:
    """At shutdown nothing is left behind."""
    async with watching(UP) as watched:
        await watched.probes(1)
        watching_task = next(task for task in asyncio.all_tasks() if task.get_name() == "watch")
    assert watching_task.cancelled()


def test_the_pace_of_production_is_gentle() -> None:
    """An engine is not probed more than twice a second, and found again within ten seconds of its return."""
    pace = ProbeInterval()
    assert (pace.look_every_s, pace.first_retry_s, pace.last_retry_s) == (30, 0.5, pytest.approx(10))
