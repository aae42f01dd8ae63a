"""The quality sampler compares only answers that were guided to the end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.fakes import begin_events, chunk, event, says
from tests.gateway_process import KEY
from tests.quality_world import World, fails, goes_on, opens, running_world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web


@pytest.fixture(scope="module")
def running(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("guardsamples"), redis_url) as world:
        yield world


@pytest.fixture
def world(running: World) -> World:
    """Reset the engines to answer."""
    running.teacher.behave = opens("One two three four five")
    running.student.behave = goes_on(" four five", "One six")
    running.judge.behave = says("0.75")
    for engine in (running.teacher, running.student, running.judge):
        engine.requests.clear()
    return running


@pytest.mark.long
def test_a_route_without_a_rule_and_an_answer_without_guidance_have_no_guard(world: World) -> None:
    before = world.counted()
    plain = world.ask("chat-none")
    tools = world.ask("chat", tools=[{"type": "function", "function": {"name": "f"}}])
    several = world.ask("chat", n=2)
    world.teacher.behave = fails
    alone = world.ask("chat")
    assert alone.headers["x-gkt-mode"] == "student"
    world.teacher.behave = opens("One")
    world.compared("made")
    for answer in (plain, tools, several, alone):
        assert answer.status_code == 200
        assert world.runs_beside(answer) == []
    assert world.counted() == before | {"made": before["made"] + 1}


@pytest.mark.parametrize("stream", [False, True])
def test_empty_guidance_has_no_sample(world: World, *, stream: bool) -> None:
    before = world.counted()
    world.teacher.behave = says("Certainly! Let's break this down:", "length")
    dropped = world.ask("chat-direct", stream=stream)
    served = world.gateway.wait_for_log("request", id=dropped.headers["x-request-id"])
    assert (served["mode"], served["unguided"]) == ("student", "guidance_boilerplate")
    world.teacher.behave = says("One two three four", "length")
    kept = world.compared("made", "chat-direct", stream=stream)
    assert world.runs_beside(dropped) == []
    assert sorted(world.runs_beside(kept)) == ["student", "teacher"]
    assert world.counted() == before | {"made": before["made"] + 1}


def test_a_stream_that_its_student_breaks_off_has_no_guard(world: World) -> None:
    async def breaks(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begin_events(request)
        await response.write(event(chunk({"content": " four"})))
        return response  # and no end

    good, world.student.behave = world.student.behave, breaks
    before = world.counted()
    broken = world.ask(stream=True)
    assert '"error"' in broken.text
    assert world.gateway.wait_for_log("request", id=broken.headers["x-request-id"])["status"] != "ok"
    world.student.behave = good
    world.compared("made")
    assert world.runs_beside(broken) == []
    assert world.counted() == before | {"made": before["made"] + 1}


def test_a_caller_that_leaves_midway_has_no_guard(world: World) -> None:
    async def on_and_on(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begin_events(request)
        while True:  # until it is hung up on
            await response.write(event(chunk({"content": " four"})))
            await asyncio.sleep(0.01)

    world.student.behave = on_and_on
    before = world.counted()
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 50}
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.stream("POST", f"{world.gateway.url}/v1/chat/completions", headers=headers, json=body) as answer:
        next(answer.iter_lines())
        request_id = answer.headers["x-request-id"]
    assert world.gateway.wait_for_log("request", id=request_id)["status"] == "client_gone"
    assert world.counted() == before
    assert not any(line.get("shadow_of") == request_id for line in world.gateway.log)
