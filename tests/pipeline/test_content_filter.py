"""Refusals by the content filter of a teacher or a student: the caller gets them, unless the policy says otherwise."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest
from aiohttp import web

from tests.fakes import FakeEngine, begin_events, event, says
from tests.gateway_process import KEY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_up

if TYPE_CHECKING:
    from collections.abc import Iterator

SHOWN = "The answer to your question"
REST = " is here and ends there."
ERROR = {"error": {"message": "The prompt was filtered.", "code": "content_filter", "param": "prompt"}}
_numbers = itertools.count()
STREAMED = pytest.mark.parametrize("stream", [False, True])


async def refuses(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
    return web.json_response(ERROR, status=400)


async def refuses_without_text(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    choice = {"index": 0, "finish_reason": "content_filter"}
    usage = {"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 10}
    if not body.get("stream"):
        message = {"role": "assistant", "content": None}
        return web.json_response({"choices": [choice | {"message": message}], "usage": usage})
    response = await begin_events(request)
    await response.write(event({"choices": [choice | {"delta": {}}], "usage": usage}) + b"data: [DONE]\n\n")
    return response


async def refuses_after_text(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
    """Begin a stream, and end it with an error of the content filter."""
    response = await begin_events(request)
    for word in ("One ", "two ", "three "):
        await response.write(event({"choices": [{"index": 0, "delta": {"content": word}}]}))
    await response.write(event(ERROR))
    return response


@dataclass
class World:
    """A gateway between a teacher and two students."""

    teacher: FakeEngine
    student: FakeEngine
    spare: FakeEngine
    gateway: GatewayProcess

    def ask(self, route: str = "chat", **more: Any) -> httpx.Response:
        question = f"What is number {next(_numbers)}?"  # a new question, because guidance is cached
        return httpx.post(
            f"{self.gateway.url}/v1/chat/completions",
            headers={"Authorization": f"Bearer {KEY}"},
            json={"model": route, "messages": [{"role": "user", "content": question}]} | more,
            timeout=10,
        )

    def receipt(self, answer: httpx.Response) -> dict[str, Any]:
        return self.gateway.wait_for_log("request", id=answer.headers["x-request-id"])


@pytest.fixture(scope="module")
def running(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        teacher, student, spare = (stack.enter_context(FakeEngine(says("")).running()) for _ in range(3))
        students, moves_on = {"student": None, "students": ["small", "spare"]}, {"content_filter": "next_engine"}
        gateway = stack.enter_context(
            running_gateway(
                tmp_path_factory.mktemp("filtered"),
                redis_url=redis_url,
                redis={"prefix": "filtered"},
                models=[
                    model("big", "openai", f"{teacher.url}/v1"),
                    model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False),
                    model("spare", "openai", f"{spare.url}/v1", continuation="trailing", echo=False),
                ],
                routes=[
                    guided(tokens=6) | students,
                    guided("chat-context", tokens=6, placement="context"),
                    guided("chat-next", tokens=6) | students | {"retries": moves_on},
                ],
            )
        )
        wait_until_up(gateway.admin_url)
        yield World(teacher, student, spare, gateway)


@pytest.fixture
def world(running: World) -> World:
    running.teacher.behave, running.student.behave = says(SHOWN + " begins", "length"), says(REST)
    running.spare.behave = says(REST)
    for engine in (running.teacher, running.student, running.spare):
        engine.requests.clear()
    return running


def answered(answer: httpx.Response) -> tuple[str, str]:
    """Return the text of an answer and its finish reason."""
    if answer.headers["Content-Type"].startswith("application/json"):
        choice = answer.json()["choices"][0]
        return choice["message"]["content"], choice["finish_reason"]
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    choices = [choice for each in map(orjson.loads, events) for choice in each["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices), choices[-1]["finish_reason"]


@STREAMED
@pytest.mark.parametrize("route", ["chat", "chat-context"])
def test_a_request_that_the_teachers_filter_rejects_is_the_callers_error(
    world: World, route: str, stream: bool
) -> None:
    world.teacher.behave = refuses
    answer = world.ask(route, stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "content_filter")
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert world.student.requests == []
    receipt = world.receipt(answer)
    assert (receipt["status"], receipt["unguided"]) == ("invalid_request", "teacher_content_filter")


@STREAMED
@pytest.mark.parametrize(
    ("behave", "text"), [(says(SHOWN, "content_filter"), SHOWN), (refuses_without_text, "")], ids=["text", "no text"]
)
def test_text_that_the_teachers_filter_ended_is_the_whole_answer(
    world: World, behave: Any, text: str, stream: bool
) -> None:
    world.teacher.behave = behave
    answer = world.ask(stream=stream)
    assert answer.status_code == 200
    shown, reason = answered(answer)
    assert (text.startswith(shown), bool(shown), reason) == (True, bool(text), "content_filter")
    assert world.student.requests == []
    receipt = world.receipt(answer)
    assert (receipt["status"], receipt["finish_reason"], receipt["student"]) == ("ok", "content_filter", None)
    assert receipt["teacher"]["input_tokens"] > 0


def test_a_hint_that_the_teachers_filter_ended_is_the_callers_error(world: World) -> None:
    """The text of the teacher is no part of the answer, so it cannot end with a finish reason."""
    world.teacher.behave = says(SHOWN, "content_filter")
    answer = world.ask("chat-context")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "content_filter")
    assert world.student.requests == []


def test_guidance_that_the_filter_ends_after_it_was_shown_is_the_whole_answer(world: World) -> None:
    world.teacher.behave = refuses_after_text
    answer = world.ask(stream=True)
    assert answered(answer) == ("One two three", "content_filter")
    assert world.student.requests == []
    assert world.receipt(answer)["teacher"]["output_tokens"] > 0


def test_a_stream_that_the_students_filter_ends_has_its_error(world: World) -> None:
    world.student.behave = refuses_after_text
    answer = world.ask(stream=True)
    last = orjson.loads(answer.text.strip().splitlines()[-1].removeprefix("data: "))
    assert (last["error"]["type"], last["error"]["code"]) == ("invalid_request_error", "content_filter")
    assert world.spare.requests == []


@STREAMED
def test_a_request_that_the_students_filter_rejects_is_the_callers_error(world: World, stream: bool) -> None:
    world.student.behave = refuses
    answer = world.ask(stream=stream)
    assert "content_filter" in answer.text
    assert (len(world.student.requests), world.spare.requests) == (1, [])


@STREAMED
@pytest.mark.parametrize("behave", [refuses, refuses_without_text])
def test_a_policy_can_let_the_student_answer_instead_of_the_teacher(world: World, behave: Any, stream: bool) -> None:
    world.teacher.behave = behave
    answer = world.ask("chat-next", stream=stream)
    assert answered(answer) == (REST, "stop")
    assert answer.headers["x-gkt-unguided"] == "teacher_content_filter"


@STREAMED
def test_a_policy_can_let_the_next_student_answer(world: World, stream: bool) -> None:
    world.student.behave = refuses
    assert answered(world.ask("chat-next", stream=stream)) == (SHOWN + REST, "stop")
    assert len(world.spare.requests) == 1
