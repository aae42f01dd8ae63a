"""`guidance.tools: plan` through a whole gateway: one plan for each task, in every turn and on every API."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web

from gateway.policy.projections import TOOL_PLAN
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, OTHER_KEY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAN, OTHER_PLAN = "1. Call find.\n2. Check the row.", "1. List all rows first."
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}}
FIND = {"name": "find", "description": "Find a row.", "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": FIND}]
SYSTEM = {"role": "system", "content": "Be exact."}


def placed(task: str, plan: str = PLAN) -> str:
    return f"{task}\n\n{TOOL_PLAN.introduction}".replace("{guidance}", plan)


def turn(result: str, call: str = "c1") -> list[dict[str, Any]]:
    called = {"id": call, "type": "function", "function": {"name": "find", "arguments": '{"name": "ham"}'}}
    return [
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": call, "content": result},
    ]


@dataclass
class World:
    gateway: GatewayProcess
    teacher: FakeEngine
    student: FakeEngine

    def post(self, path: str, key: str = KEY, **body: Any) -> httpx.Response:
        reply = httpx.post(
            f"{self.gateway.url}/v1/{path}",
            json={"model": "chat", **body},
            headers={"Authorization": f"Bearer {key}"},
            timeout=60,
        )
        assert reply.status_code == 200, reply.text
        return reply

    def chat(self, *messages: dict[str, Any], **more: Any) -> httpx.Response:
        return self.post("chat/completions", messages=[SYSTEM, *messages], **{"tools": TOOLS, **more})

    def receipt(self, reply: httpx.Response) -> dict[str, Any]:
        return self.gateway.wait_for_log("request", id=reply.headers["x-request-id"])

    @property
    def read_by_student(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = self.student.requests[-1]["messages"]
        return messages


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[World]:
    with ExitStack() as stack:
        teacher = stack.enter_context(FakeEngine(says(PLAN)).running())
        student = stack.enter_context(FakeEngine(says("Done.")).running())
        gateway = stack.enter_context(
            running_gateway(
                tmp_path_factory.mktemp("plans"),
                redis_url=redis_url,
                redis={"prefix": f"p{os.urandom(4).hex()}"},
                models=[
                    model("big", "tgi", teacher.url, breaker={"failures": 1000}),
                    model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False),
                ],
                routes=[
                    guided("chat", tools="plan", tool_plan_tokens=50),
                    guided("context", tools="plan", placement="context", projection="hint"),
                    guided("strict", tools="plan", on_failure="reject"),
                    guided("off"),
                ],
            )
        )
        wait_until_looked_at(gateway.admin_url)
        yield World(gateway, teacher, student)


@pytest.fixture
def world(running: World) -> World:
    running.teacher.behave = says(PLAN)
    running.teacher.requests.clear()
    running.student.requests.clear()
    return running


def test_one_plan_serves_a_task_until_a_call_fails(world: World) -> None:
    task = {"role": "user", "content": "Find the ham."}
    first = world.chat(task)
    assert first.headers["x-gkt-plan"] == "fresh"
    assert first.headers["x-gkt-placement"] == "context"
    assert first.json()["choices"][0]["message"]["content"] == "Done."
    assert world.student.requests[-1]["tools"] == TOOLS
    prompt = world.read_by_student
    assert prompt == [SYSTEM, {"role": "user", "content": placed("Find the ham.")}]
    [asked] = world.teacher.requests
    [message] = asked["messages"]
    assert asked["max_tokens"] == 50
    assert "tools" not in asked
    assert '{"name":"find","description":"Find a row.","parameters":' in message["content"]
    assert "System: Be exact.\nUser: Find the ham.\n" in message["content"]
    receipt = world.receipt(first)
    assert (receipt["mode"], receipt["guidance"]["projection"]) == ("guided", "tool_plan")
    assert (receipt["guidance"]["plan"], receipt["guidance"]["tokens"]) == ("fresh", 50)

    found = turn("one row")
    second = world.chat(task, *found)
    assert (second.headers["x-gkt-plan"], second.headers["x-gkt-shared"]) == ("cached", "cache")
    assert world.read_by_student == [*prompt, *found]
    receipt = world.receipt(second)
    assert (receipt["guidance"]["plan"], receipt["teacher"]["cost_usd"]) == ("cached", "0.000000000000")
    assert len(world.teacher.requests) == 1

    world.teacher.behave = says(OTHER_PLAN)
    failed = [*found, *turn("Error: no such row", "c2")]
    third = world.chat(task, *failed)
    assert third.headers["x-gkt-plan"] == "renewed"
    assert world.read_by_student == [SYSTEM, {"role": "user", "content": placed("Find the ham.", OTHER_PLAN)}, *failed]
    assert len(world.teacher.requests) == 2
    assert "Result: Error: no such row\n" in world.teacher.requests[-1]["messages"][0]["content"]

    later = [*failed, *turn("two rows", "c3")]
    fourth = world.chat(task, *later)
    assert fourth.headers["x-gkt-plan"] == "cached"
    assert world.read_by_student[1]["content"] == placed("Find the ham.", OTHER_PLAN)

    other = [*later, {"role": "assistant", "content": "Done."}, {"role": "user", "content": "Now the tea."}]
    fifth = world.chat(task, *other)
    assert fifth.headers["x-gkt-plan"] == "fresh"
    assert world.read_by_student[1]["content"] == "Find the ham."
    assert world.read_by_student[-1]["content"] == placed("Now the tea.", OTHER_PLAN)


def test_the_plan_of_other_tools_or_another_tenant_is_another(world: World) -> None:
    task = {"role": "user", "content": "Find the salt."}
    assert world.chat(task).headers["x-gkt-plan"] == "fresh"
    other = [{"type": "function", "function": {**FIND, "name": "search"}}]
    assert world.chat(task, tools=other).headers["x-gkt-plan"] == "fresh"
    theirs = world.post("chat/completions", OTHER_KEY, messages=[SYSTEM, task], tools=TOOLS)
    assert theirs.headers["x-gkt-plan"] == "fresh"
    assert world.chat(task, temperature=1.5, max_tokens=9, seed=4).headers["x-gkt-plan"] == "cached"


def test_a_stream_names_the_plan_in_its_headers_and_its_last_chunk(world: World) -> None:
    task = {"role": "user", "content": "Find the oil."}
    reply = world.chat(task, stream=True, stream_options={"include_usage": True})
    assert reply.headers["x-gkt-plan"] == "fresh"
    assert '"plan":"fresh"' in reply.text
    assert PLAN.splitlines()[0] not in reply.text


def test_a_request_without_tools_gets_the_routes_own_guidance(world: World) -> None:
    world.teacher.behave = says("Because of the", "length")
    reply = world.chat({"role": "user", "content": "Why?"}, tools=[])
    assert reply.json()["choices"][0]["message"]["content"].startswith("Because of")
    assert "x-gkt-plan" not in reply.headers
    reply = world.chat({"role": "user", "content": "Why?"}, model="off")
    assert reply.headers["x-gkt-unguided"] == "tools"


def test_a_route_with_placement_context_plans_too(world: World) -> None:
    reply = world.chat({"role": "user", "content": "Find the rice."}, model="context")
    assert reply.headers["x-gkt-plan"] == "fresh"
    assert world.read_by_student[-1]["content"] == placed("Find the rice.")


def test_without_a_plan_the_student_answers_or_the_request_fails(world: World) -> None:
    async def fails(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": "no"}, status=500)

    world.teacher.behave = fails
    task = {"role": "user", "content": "Find the corn."}
    reply = world.chat(task)
    assert reply.headers["x-gkt-unguided"] == "teacher_failed"
    assert "x-gkt-plan" not in reply.headers
    assert world.read_by_student == [SYSTEM, task]
    refused = httpx.post(
        f"{world.gateway.url}/v1/chat/completions",
        json={"model": "strict", "messages": [task], "tools": TOOLS},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=60,
    )
    assert refused.status_code == 503


def test_messages_of_anthropics_api_get_a_plan_that_an_error_renews(world: World) -> None:
    tools = [{"name": "find", "description": "Find a row.", "input_schema": SCHEMA}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Find the milk."}]

    def ask() -> str:
        sent = world.post("messages", system="Be exact.", messages=messages, tools=tools, max_tokens=100)
        return sent.headers["x-gkt-plan"]

    def answer(content: str, call: str, *, is_error: bool = False) -> None:
        use = {"type": "tool_use", "id": call, "name": "find", "input": {"name": "milk"}}
        result = {"type": "tool_result", "tool_use_id": call, "content": content, "is_error": is_error}
        reminder = {"type": "text", "text": "<system-reminder>Be brief.</system-reminder>"}
        messages.extend([{"role": "assistant", "content": [use]}, {"role": "user", "content": [result, reminder]}])

    assert ask() == "fresh"
    assert world.read_by_student == [SYSTEM, {"role": "user", "content": placed("Find the milk.")}]
    answer("one row", "c1")
    assert ask() == "cached"
    assert world.read_by_student[1]["content"] == placed("Find the milk.")
    answer("no such row", "c2", is_error=True)
    assert ask() == "renewed"
    answer("one row", "c3")
    assert ask() == "cached"


def test_items_of_the_responses_api_get_a_plan(world: World) -> None:
    tools = [{"type": "function", "name": "find", "description": "Find a row.", "parameters": SCHEMA}]
    items: list[dict[str, Any]] = [{"role": "user", "content": "Find the eggs."}]

    def ask(*, stream: bool = False) -> str:
        sent = world.post("responses", instructions="Be exact.", input=items, tools=tools, stream=stream)
        return sent.headers["x-gkt-plan"]

    assert ask(stream=True) == "fresh"
    assert world.read_by_student == [SYSTEM, {"role": "user", "content": placed("Find the eggs.")}]
    items += [
        {"type": "function_call", "call_id": "c1", "name": "find", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": '{"error": "no such row"}'},
    ]
    assert ask() == "renewed"
    assert ask() == "cached"


def test_a_device_gets_the_plan_in_its_messages(world: World) -> None:
    messages = [SYSTEM, {"role": "user", "content": "Find the beans."}, *turn("one row")]
    reply = world.post("guidance", messages=messages, tools=TOOLS).json()
    assert (reply["guidance"]["placement"], reply["guidance"]["projection"]) == ("context", "tool_plan")
    assert reply["messages"] == [SYSTEM, {"role": "user", "content": placed("Find the beans.")}, *messages[2:]]
    assert world.student.requests == []
