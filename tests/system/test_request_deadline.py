"""Attempts that are silent and then fail: together they last no longer than one call may."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web

from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, GatewayProcess, model, running_gateway
from tests.readiness import wait_until_up

if TYPE_CHECKING:
    from collections.abc import Iterator

TOTAL_S = 3.0
_SILENT_S = 0.1
_HANG_S = 30.0


async def drops(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
    """Close the connection after some silence."""
    await asyncio.sleep(_SILENT_S)
    assert request.transport is not None
    request.transport.abort()
    return web.StreamResponse()


@dataclass
class World:
    engine: FakeEngine
    gateway: GatewayProcess

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.post(f"{self.gateway.url}/v1/{path}", headers=headers, json=body, timeout=30)


@pytest.fixture(scope="module")
def world(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    timeouts = {"connect": "1s", "first_token": "3s", "total": "3s"}
    patient = {"num_retries": 10, "backoff": "10ms"}
    with ExitStack() as stack:
        engine = stack.enter_context(FakeEngine(drops, drops).running())
        gateway = stack.enter_context(
            running_gateway(
                tmp_path_factory.mktemp("deadline"),
                redis_url=redis_url,
                redis={"prefix": "deadline"},
                models=[
                    model(name, "openai", f"{engine.url}/v1", continuation="none", breaker={"failures": 1000}, **more)
                    for name, more in {"small": {"timeouts": timeouts}, "big": {}}.items()
                ],
                routes=[
                    {"model": "chat", "mode": "student", "student": "small", "baseline": "big", "retries": patient},
                    {"model": "vectors", "mode": "embeddings", "student": "small", "retries": patient},
                ],
            )
        )
        wait_until_up(gateway.admin_url)
        yield World(engine, gateway)


@pytest.mark.parametrize("kind", ["json", "stream", "embeddings"])
def test_all_attempts_together_last_no_longer_than_one_call_may(
    world: World, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two attempts fail, the third one is ended, and no other one starts."""
    world.engine.requests.clear()

    async def drops_twice(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        """Close the connection of the first two requests. Hang on later ones."""
        if len(world.engine.requests) <= 2:
            return await drops(request, body)
        await asyncio.sleep(_HANG_S)
        return web.StreamResponse()

    monkeypatch.setattr(world.engine, "behave", drops_twice)
    monkeypatch.setattr(world.engine, "embed", drops_twice)
    chat = {"model": "chat", "messages": [{"role": "user", "content": "Why?"}], "stream": kind == "stream"}
    started = time.monotonic()
    if kind == "embeddings":
        answer = world.post("embeddings", {"model": "vectors", "input": "Why?"})
    else:
        answer = world.post("chat/completions", chat)
    took_s = time.monotonic() - started
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "engine_timeout")
    assert "the request's deadline of 3 s" in answer.json()["error"]["message"]
    assert len(world.engine.requests) == 3
    assert TOTAL_S <= took_s + 0.1 < _HANG_S / 2
    receipt = world.gateway.wait_for_log("request", id=answer.headers["x-request-id"])
    assert [attempt["error"] for attempt in receipt["attempts"]] == ["engine_unreachable"] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_retry_that_is_answered_in_time_is_not_ended(world: World, stream: bool) -> None:
    calls = 0

    async def drops_once(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        return await (drops if calls == 1 else says("Well."))(request, body)

    world.engine.behave = drops_once
    try:
        chat = {"model": "chat", "messages": [{"role": "user", "content": "Why?"}], "stream": stream}
        answer = world.post("chat/completions", chat)
    finally:
        world.engine.behave = drops
    assert (answer.status_code, answer.headers["x-gkt-failed-attempts"]) == (200, "1")
    assert '"error"' not in answer.text
