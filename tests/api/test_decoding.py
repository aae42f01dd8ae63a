from __future__ import annotations

import asyncio
import gc
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import ref

import pytest
from aiohttp import web

from gateway.api.connection import Connection
from gateway.api.decoding import BodyDecoder
from gateway.api.loop_scheduler import LoopScheduler
from gateway.api.runner import Runner
from gateway.errors import InvalidRequest
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIGHT, HEAVY = b"{}", b" " * 300_000


@pytest.fixture
async def scheduler(request: pytest.FixtureRequest) -> LoopScheduler:
    return LoopScheduler(Metrics(), clock=getattr(request, "param", None))


@pytest.fixture
async def connection(scheduler: LoopScheduler) -> AsyncIterator[Connection]:
    runner = Runner(web.Application(), metrics=Metrics(), listener="public", max_connections=8, scheduler=scheduler)
    await runner.setup()
    assert runner.server is not None
    made = runner.server()
    assert isinstance(made, Connection)
    yield made
    await runner.cleanup()


async def test_a_light_body_is_decoded_on_the_event_loop(connection: Connection) -> None:
    """A thread would cost more than it saves."""
    used = await BodyDecoder().decode("acme", [LIGHT], lambda _: threading.current_thread(), connection)
    assert used is threading.current_thread()


async def test_a_large_body_is_decoded_off_the_event_loop(connection: Connection) -> None:
    used = await BodyDecoder().decode("acme", [HEAVY], lambda _: threading.current_thread(), connection)
    assert used is not threading.current_thread()


async def test_a_refusal_comes_through(connection: Connection) -> None:
    def refuse(_: bytes) -> None:
        raise InvalidRequest("No.", param="x")

    for raw in (LIGHT, HEAVY):
        with pytest.raises(InvalidRequest, match="No"):
            await BodyDecoder().decode("acme", [raw], refuse, connection)


async def test_a_refused_body_is_freed_without_a_collection(connection: Connection) -> None:
    """The error refers to frames that hold the body. Collections are rare, so a flood would fill the memory."""
    failed: list[ref[InvalidRequest]] = []

    class Refused(InvalidRequest):
        def __init__(self) -> None:
            super().__init__("No.")
            failed.append(ref(self))

    def refuse(_: bytes) -> None:
        raise Refused

    gc.disable()
    try:
        with suppress(InvalidRequest):
            await BodyDecoder().decode("acme", [HEAVY], refuse, connection)
        async with asyncio.timeout(5):
            while failed[0]() is not None:  # the thread releases it a moment later
                await asyncio.sleep(0.01)
    finally:
        gc.enable()


async def test_parts_are_released_before_they_are_decoded(connection: Connection) -> None:
    """Parts that stay referenced would hold the body in memory twice."""
    parts = [HEAVY, HEAVY]
    sizes = await BodyDecoder().decode("acme", parts, lambda raw: (len(raw), len(parts)), connection)
    assert sizes == (2 * len(HEAVY), 0)


async def test_small_parts_with_many_values_are_decoded_off_the_event_loop(connection: Connection) -> None:
    parts = [b"[", b"1," * 20_000, b"1]"]
    used, raw = await BodyDecoder().decode("acme", parts, lambda raw: (threading.current_thread(), raw), connection)
    assert used is not threading.current_thread()
    assert raw == b"[" + b"1," * 20_000 + b"1]"


async def test_another_tenant_waits_for_one_body_of_a_flood(connection: Connection) -> None:
    """Tenants take turns."""
    decoder, gate, order = BodyDecoder(), threading.Event(), []

    def parse(name: str) -> None:
        gate.wait(10)
        order.append(name)

    async def send(name: str) -> None:
        await decoder.decode(name, [HEAVY], lambda _: parse(name), connection)

    flood = [asyncio.ensure_future(send("acme")) for _ in range(5)]  # noqa: TID251
    await asyncio.sleep(0)
    other = asyncio.ensure_future(send("globex"))  # noqa: TID251
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*flood, other)
    assert order == ["acme", "globex", "acme", "acme", "acme", "acme"]


@pytest.mark.parametrize("scheduler", [lambda: 1000.0], indirect=True)  # the contention lasts
async def test_while_tenants_contend_the_event_loop_has_the_lock_as_long_as_the_decoder(
    scheduler: LoopScheduler, connection: Connection
) -> None:
    """The tenant's next body waits as long as the last one took."""
    decoder, took_s = BodyDecoder(), 0.1
    began: list[float] = []

    def parse(_: bytes) -> None:
        began.append(time.perf_counter())
        time.sleep(took_s)

    for tenant in ("acme", "globex"):
        scheduler.enter(tenant, 1.0)
    assert connection.contended()
    await asyncio.gather(*(decoder.decode("acme", [HEAVY], parse, connection) for _ in range(2)))
    assert began[1] - began[0] >= 2 * took_s * 0.9


async def test_a_caller_that_leaves_keeps_its_turn_until_its_body_is_decoded(connection: Connection) -> None:
    """A tenant that frees its turn early could fill the thread's queue."""
    decoder, gate = BodyDecoder(), threading.Event()
    first = asyncio.ensure_future(decoder.decode("acme", [HEAVY], lambda _: gate.wait(10), connection))  # noqa: TID251
    await asyncio.sleep(0)
    first.cancel()
    second = asyncio.ensure_future(decoder.decode("acme", [HEAVY], lambda _: gate.is_set(), connection))  # noqa: TID251
    done, _ = await asyncio.wait([second], timeout=0.05)
    assert not done
    gate.set()
    assert await second
