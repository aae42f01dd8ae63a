"""More parallel requests than an engine takes: the gateway queues them, and no caller gets an error."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web

from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, OTHER_KEY, TEACHER_ONLY, GatewayProcess, model, running_gateway
from tests.readiness import wait_until_up

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 4
_TAKES_S = 0.2


@dataclass
class Limited:
    """An engine that rejects calls above its limit, as TGI does, and records the callers in order of their calls.

    It delays all answers while `free` is not set.
    """

    in_flight: int = 0
    most: int = 0
    callers: list[str] = field(default_factory=list)
    free: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if self.in_flight >= LIMIT:
            return web.json_response({"error": "Model is overloaded", "error_type": "overloaded"}, status=429)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        if "messages" in body:
            self.callers.append(body["messages"][0]["content"])
        try:
            while not self.free.is_set():
                await asyncio.sleep(0.01)
            await asyncio.sleep(_TAKES_S)
            return await says("Well.")(request, body)
        finally:
            self.in_flight -= 1


@dataclass
class World:
    engine: Limited
    gateway: GatewayProcess

    def ask(self, content: str, route: str = "limited", key: str = KEY, **more: Any) -> httpx.Response:
        body = {"model": route, "messages": [{"role": "user", "content": content}]} | more
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.post(f"{self.gateway.url}/v1/chat/completions", headers=headers, json=body, timeout=30)

    def wait_until_waiting(self, calls: int) -> None:
        """Wait until exactly so many calls wait for a slot, and the engine has as many others as it takes."""
        give_up = time.monotonic() + 25
        while (seen := (self._waiting(), self.engine.in_flight)) != (calls, LIMIT):
            assert time.monotonic() < give_up, seen
            time.sleep(0.05)

    def _waiting(self) -> float:
        lines = httpx.get(f"{self.gateway.admin_url}/metrics").text.splitlines()
        (line,) = [line for line in lines if line.startswith('gkt_engine_waiting{engine="small"}')]
        return float(line.split()[-1])


@pytest.fixture(scope="module")
def world(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    limited = Limited()
    limited.free.set()
    with ExitStack() as stack:
        engine = stack.enter_context(FakeEngine(limited).running())
        other = stack.enter_context(FakeEngine(says("Well.")).running())
        gateway = stack.enter_context(
            running_gateway(
                tmp_path_factory.mktemp("slots"),
                redis_url=redis_url,
                redis={"prefix": "slots"},
                models=[
                    model("small", "openai", f"{engine.url}/v1", continuation="none", max_concurrency=LIMIT),
                    model("big", "openai", f"{other.url}/v1", continuation="none"),
                ],
                routes=[
                    {"model": "limited", "mode": "student", "student": "small", "baseline": "big"},
                    TEACHER_ONLY | {"model": "limited-teacher", "teacher": "small"},
                ],
            )
        )
        wait_until_up(gateway.admin_url)
        yield World(limited, gateway)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["limited", "limited-teacher"])
def test_more_parallel_requests_than_the_engine_takes_are_all_answered(world: World, route: str, stream: bool) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda n: world.ask(f"q{n}", route, stream=stream), range(20)))
    assert [answer.status_code for answer in answers] == [200] * 20
    assert not any("x-gkt-failed-attempts" in answer.headers for answer in answers)
    assert all('"error"' not in answer.text for answer in answers)
    assert world.engine.most == LIMIT


def test_another_tenant_does_not_wait_for_a_tenants_queue(world: World) -> None:
    """The tenant's call arrives last, and is among the first calls that get a slot."""
    world.engine.callers.clear()
    requests = 10 * LIMIT
    with ThreadPoolExecutor(requests + 1) as pool:
        world.engine.free.clear()
        try:
            flood = [pool.submit(world.ask, "flood") for _ in range(requests)]
            world.wait_until_waiting(requests - LIMIT)
            other = pool.submit(world.ask, "other", key=OTHER_KEY)
            world.wait_until_waiting(requests - LIMIT + 1)
            assert world.engine.callers == ["flood"] * LIMIT
        finally:
            world.engine.free.set()
        assert other.result().status_code == 200
        assert [one.result().status_code for one in flood] == [200] * requests
    assert "other" in world.engine.callers[LIMIT : 2 * LIMIT]
    assert world.engine.most == LIMIT
