"""Turns with tools over the three APIs: the gateway chooses between the teacher and the student."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web

from tests.fakes import FakeEngine, reply, says
from tests.gateway_process import KEY, UNREACHED, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fakes import Handler

PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
QUESTION = "How many rows?"
BY_TEACHER, BY_STUDENT = "Drei, sagt er.", "Trois, dit-il."
APIS = pytest.mark.parametrize("api", ["chat", "responses", "messages"])
STREAMS = pytest.mark.parametrize("stream", [False, True])


def with_probability(probability: float) -> Handler:
    """Return a student that writes a text, and reports the probability of its first token where that is requested."""
    answers = says(BY_STUDENT)

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("logprobs"):
            return await answers(request, body)
        assert not body.get("stream"), "llama.cpp rejects log-probabilities in a stream with tools"
        asked = reply("The", "length")
        asked["choices"][0]["logprobs"] = {"content": [{"token": "The", "logprob": math.log(probability)}]}
        return web.json_response(asked)

    return behave


async def fails(*_: object) -> web.StreamResponse:
    return web.json_response({"error": {"message": "out of memory"}}, status=500)


class World:
    def __init__(self, teacher: FakeEngine, student: FakeEngine, gateway: GatewayProcess) -> None:
        self.teacher, self.student, self.gateway = teacher, student, gateway

    def post(self, api: str, *, later: bool, failed: bool = False, stream: bool = False, model: str = "chat") -> Any:
        """Send the first turn of a loop, or a later one. Return the response with its text read."""
        path, body = _BODIES[api](later, failed)
        body |= {"model": model, "stream": stream}
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.post(f"{self.gateway.url}{path}", headers=headers, json=body, timeout=60)

    def receipt(self, response: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {KEY}"}
        path = f"/v1/receipts/{response.headers['x-request-id']}"
        give_up = time.monotonic() + 10
        while (found := httpx.get(f"{self.gateway.url}{path}", headers=headers, timeout=60)).status_code == 404:
            assert time.monotonic() < give_up, "no receipt"
            time.sleep(0.02)
        receipt: dict[str, Any] = found.json()
        return receipt

    def metric(self, reason: str) -> float:
        text = httpx.get(f"{self.gateway.admin_url}/metrics", timeout=60).text
        lines = [line for line in text.splitlines() if line.startswith("gkt_unguided_total") and f'"{reason}"' in line]
        return sum(float(line.split()[-1]) for line in lines)


def _chat(later: bool, failed: bool) -> tuple[str, dict[str, Any]]:
    call = {"id": "call_1", "type": "function", "function": {"name": "count", "arguments": "{}"}}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "Error: no table" if failed else "3"}
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    messages += [{"role": "assistant", "content": None, "tool_calls": [call]}, result] if later else []
    tools = [{"type": "function", "function": {"name": "count", "parameters": PARAMETERS}}]
    return "/v1/chat/completions", {"messages": messages, "tools": tools}


def _responses(later: bool, failed: bool) -> tuple[str, dict[str, Any]]:
    items: list[Any] = [{"role": "user", "content": QUESTION}]
    items += [
        {"type": "function_call", "call_id": "call_1", "name": "count", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "Error: no table" if failed else "3"},
    ] if later else []  # fmt: skip
    tools = [{"type": "function", "name": "count", "parameters": PARAMETERS}]
    return "/v1/responses", {"input": items, "tools": tools, "store": False}


def _messages(later: bool, failed: bool) -> tuple[str, dict[str, Any]]:
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": "3", "is_error": failed}
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    messages += [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "call_1", "name": "count", "input": {}}]},
        {"role": "user", "content": [result, {"type": "text", "text": "<system-reminder>Be brief.</system-reminder>"}]},
    ] if later else []  # fmt: skip
    return "/v1/messages", {"messages": messages, "tools": [{"name": "count", "input_schema": PARAMETERS}],
                            "max_tokens": 50}  # fmt: skip


_BODIES = {"chat": _chat, "responses": _responses, "messages": _messages}


@pytest.fixture(scope="module")
def running(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with (
        FakeEngine(says(BY_TEACHER)).running() as teacher,
        FakeEngine(with_probability(0.95)).running() as student,
        running_gateway(
            tmp_path_factory.mktemp("switch"),
            redis_url=redis_url,
            models=[
                model("big", "openai", f"{teacher.url}/v1", breaker={"failures": 1000}, continuation="none"),
                model("small", "openai", f"{student.url}/v1", breaker={"failures": 1000}, continuation="none"),
            ],
            routes=[
                guided(tools="switch") | {"retries": {"num_retries": 0}},
                guided("chat-strict", tools="switch", on_failure="reject") | {"retries": {"num_retries": 0}},
            ],
            tenants=UNREACHED,
        ) as gateway,
    ):
        wait_until_looked_at(gateway.admin_url)
        yield World(teacher, student, gateway)


@pytest.fixture
def world(running: World) -> World:
    running.teacher.behave, running.student.behave = says(BY_TEACHER), with_probability(0.95)
    running.teacher.requests.clear()
    running.student.requests.clear()
    return running


@APIS
@STREAMS
def test_each_turn_has_one_engine_and_one_receipt_with_the_reason(world: World, api: str, *, stream: bool) -> None:
    for later, failed, probability, mode, reason in (
        (False, False, 0.95, "teacher", "switch_first_turn"),
        (True, True, 0.95, "teacher", "switch_tool_error"),
        (True, False, 0.95, "student", "switch_confident"),
        (True, False, 0.4, "teacher", "switch_unsure"),
    ):
        world.student.behave = with_probability(probability)
        before = world.metric(reason)
        response = world.post(api, later=later, failed=failed, stream=stream)
        assert response.status_code == 200, response.text
        own, other = (BY_TEACHER, BY_STUDENT) if mode == "teacher" else (BY_STUDENT, BY_TEACHER)
        assert own.split()[0] in response.text
        assert other.split()[0] not in response.text
        assert '"token"' not in response.text, "log-probabilities that the caller did not request"
        assert (response.headers["x-gkt-mode"], response.headers["x-gkt-unguided"]) == (mode, reason)
        receipt = world.receipt(response)
        assert (receipt["mode"], receipt["unguided"], receipt["status"]) == (mode, reason, "ok")
        asked = reason in {"switch_confident", "switch_unsure"}
        assert receipt.get("student_probability") == (probability if asked else None)
        assert response.headers.get("x-gkt-student-probability") == (str(probability) if asked else None)
        assert ("warmup" in receipt, receipt["attempts"]) == (asked, [])
        assert world.metric(reason) == before + 1


@APIS
@STREAMS
def test_the_student_or_an_error_replaces_a_teacher_that_fails(world: World, api: str, *, stream: bool) -> None:
    world.teacher.behave = fails
    response = world.post(api, later=False, stream=stream)
    assert (response.status_code, response.headers["x-gkt-unguided"]) == (200, "teacher_failed")
    assert BY_STUDENT.split()[0] in response.text
    receipt = world.receipt(response)
    assert (receipt["mode"], receipt["teacher"], len(receipt["attempts"])) == ("student", None, 1)
    strict = world.post(api, later=False, stream=stream, model="chat-strict")
    assert (strict.status_code, "teacher_failed" in strict.text) == (503, True)
    assert world.receipt(strict)["status"] == "guidance_unavailable"


def test_the_callers_own_log_probabilities_come_from_the_engine_that_answers(world: World) -> None:
    path, body = _chat(later=False, failed=False)
    body |= {"model": "chat", "logprobs": True}
    headers = {"Authorization": f"Bearer {KEY}"}
    answer = httpx.post(f"{world.gateway.url}{path}", headers=headers, json=body, timeout=60).json()
    assert answer["choices"][0]["logprobs"]["content"][0]["token"] == "Drei,"
    assert world.student.requests == []
