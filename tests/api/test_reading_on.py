"""Handlers that continue after their caller disconnected, on a real socket."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from gateway.api import disconnects, keys
from gateway.api.runner import Runner
from gateway.pipeline.completion import RequestState
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MOST = 2


@dataclass
class Stage:
    """A handler that waits for `released`, and the outcomes of its requests."""

    seconds: float
    begun: int = 0
    ended: list[str] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    def read_on_s(self, _: Any) -> float:
        """Replace the function of disconnects.py."""
        return self.seconds

    async def handle(self, request: web.Request) -> web.Response:
        request[keys.INFO] = keys.RequestInfo("req_1", 0.0, state=RequestState())
        self.begun += 1
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("whole")
        return web.Response()

    async def leave(self) -> None:
        """Send a request, and disconnect when the handler has it."""
        before = self.begun
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while self.begun == before:
            await asyncio.sleep(0.001)
        writer.close()
        await writer.wait_closed()

    async def have_ended(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.ended) < count:
                await asyncio.sleep(0.001)


@asynccontextmanager
async def staged(seconds: float) -> AsyncIterator[Stage]:
    stage = Stage(seconds)
    app = web.Application()
    app.router.add_get("/", stage.handle)
    runner = Runner(app, metrics=Metrics(), listener="public", max_connections=100, max_detached=MOST,
                    access_log=None, handler_cancellation=True, shutdown_timeout=0.1)  # fmt: skip
    await runner.setup()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(disconnects, "read_on_s", stage.read_on_s)
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            stage.port = runner.addresses[0][1]
            yield stage
        finally:
            await runner.cleanup()


async def test_a_detached_handler_ends_by_itself() -> None:
    async with staged(60.0) as stage:
        await stage.leave()
        await asyncio.sleep(0.02)
        assert stage.ended == []
        stage.released.set()
        await stage.have_ended(1)
    assert stage.ended == ["whole"]


@pytest.mark.parametrize("seconds", [0.0, 0.05])
async def test_a_handler_is_cancelled_when_its_time_is_over(seconds: float) -> None:
    """A handler without extra time is canceled at once."""
    async with staged(seconds) as stage:
        await stage.leave()
        await stage.have_ended(1)
    assert stage.ended == ["cancelled"]


async def test_the_number_of_detached_handlers_is_limited() -> None:
    """A handler that ends releases its slot."""
    async with staged(60.0) as stage:
        for _ in range(MOST + 1):
            await stage.leave()
        await stage.have_ended(1)
        assert stage.ended == ["cancelled"]
        stage.released.set()
        await stage.have_ended(MOST + 1)
        assert stage.ended == ["cancelled", *["whole"] * MOST]
        stage.released.clear()
        await asyncio.sleep(0.02)
        await stage.leave()
        await asyncio.sleep(0.02)
        assert len(stage.ended) == MOST + 1
        stage.released.set()
        await stage.have_ended(MOST + 2)
    assert stage.ended[-1] == "whole"
