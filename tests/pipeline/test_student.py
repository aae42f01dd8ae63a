"""Students that do not continue the guidance as requested."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
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
_numbers = itertools.count()


@dataclass
class World:
    """A gateway between a teacher that gives guidance and a fake student."""

    student: FakeEngine
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
        teacher = stack.enter_context(FakeEngine(says(SHOWN + " begins", "length")).running())
        student = stack.enter_context(FakeEngine(says(REST)).running())
        gateway = stack.enter_context(
            running_gateway(
                tmp_path_factory.mktemp("finishing"),
                redis_url=redis_url,
                redis={"prefix": "finishing"},
                models=[
                    model("big", "tgi", teacher.url),
                    model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False),
                ],
                routes=[guided(tokens=6), guided("chat-context", tokens=6, placement="context")],
            )
        )
        wait_until_up(gateway.admin_url)  # the gateway's probe calls the student too
        yield World(student, gateway)


@pytest.fixture
def world(running: World) -> World:
    running.student.behave = says(REST)
    running.student.requests.clear()
    return running


def events(answer: httpx.Response) -> list[Any]:
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [orjson.loads(line) for line in data if line != "[DONE]"]


def text_of(answer: httpx.Response) -> str:
    if answer.headers["Content-Type"].startswith("application/json"):
        return str(answer.json()["choices"][0]["message"]["content"])
    choices = [choice for each in events(answer) for choice in each["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def repeats_when_asked(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Repeat the prefix as vLLM and llama.cpp do for `echo`."""
    last = body["messages"][-1]
    repeated = last["content"] if body.get("echo") is True and last["role"] == "assistant" else ""
    return await says(repeated + REST)(request, body)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("echo", [True, False, None, "yes"])
def test_a_requested_echo_does_not_show_the_guidance_twice(world: World, stream: bool, echo: object) -> None:
    """The repeated message is the gateway's. `echo: false` in config.yaml is the engine's default."""
    world.student.behave = repeats_when_asked
    answer = world.ask(stream=stream, echo=echo)
    assert text_of(answer) == SHOWN + REST
    assert world.student.requests[0]["echo"] == echo


@pytest.mark.parametrize("stream", [False, True])
def test_without_usage_every_choice_is_estimated(world: World, stream: bool) -> None:
    """With n > 1 the student generated more than the first choice."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        fields = {"role": "assistant", "content": "one two three four"}
        choices = [
            {"index": index, "finish_reason": "stop", "delta" if stream else "message": fields} for index in range(3)
        ]
        if not stream:
            return web.json_response({"choices": choices})
        response = await begin_events(request)
        await response.write(event({"choices": choices}) + b"data: [DONE]\n\n")
        return response

    world.student.behave = behave
    share = world.receipt(world.ask(n=3, stream=stream))["student"]
    assert share["estimated"]
    assert 12 <= share["output_tokens"] < 3 * 12, "an upper bound, of all three"


STORY = " ".join(f"In {year} the ship {year * 7919} sailed to port {year * 104729}." for year in range(1800, 2000))
LOOP = "The captain looked at the sea, and the sea looked at the captain. " * 24


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("answers", "rule"),
    [
        ([(STORY[:400], "stop")] * 3, None),
        ([(LOOP, "stop"), (STORY, "stop")], "repeats"),
        ([("Yes.", "stop"), (STORY[:400], "length")], "at_limit"),
        ([(STORY[:400], "length"), ("Yes.", "stop")], "at_limit"),
    ],
    ids=["equal", "one repeats", "second at its limit", "first at its limit"],
)
def test_each_of_several_answers_is_checked_for_its_length(
    world: World, answers: list[tuple[str, str]], rule: str | None, *, stream: bool
) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 4000, "total_tokens": 4010}

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        choices = [
            {"index": index, "finish_reason": finish, "delta" if stream else "message": {"content": text}}
            for index, (text, finish) in enumerate(answers)
        ]
        if not stream:
            return web.json_response({"choices": choices, "usage": usage})
        response = await begin_events(request)
        for choice in choices:
            await response.write(event({"choices": [choice]}))
        await response.write(event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
        return response

    world.student.behave = behave
    receipt = world.receipt(world.ask(n=len(answers), stream=stream))
    assert receipt.get("length_rule") == rule
    assert receipt["finish_reason"] == ("length" if rule == "at_limit" else "stop")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_content": "one two three four"},
        {"tool_calls": [{"index": 0, "id": "1", "function": {"name": "one", "arguments": " two three four"}}]},
        {"function_call": {"name": "one", "arguments": " two three four"}},
        {"refusal": "one two three four"},
    ],
)
def test_without_usage_all_generated_text_is_estimated(world: World, fields: dict[str, Any], *, stream: bool) -> None:
    """A caller that disconnects at the end of a tool call must not get it for free."""
    choice = {"index": 0, "finish_reason": "stop", "delta" if stream else "message": {"role": "assistant", **fields}}

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not stream:
            return web.json_response({"choices": [choice]})
        response = await begin_events(request)
        await response.write(event({"choices": [choice]}) + b"data: [DONE]\n\n")
        return response

    world.student.behave = behave
    tools = [{"type": "function", "function": {"name": "one"}}]
    share = world.receipt(world.ask(tools=tools, stream=stream))["student"]
    assert share["estimated"]
    assert 4 <= share["output_tokens"] < 3 * 4, "an upper bound on all of it"


NO_PREFILL = "Assistant response prefill is incompatible with enable_thinking."


def rejects(message: str, *, always: bool = False, code: int = 400) -> Any:
    """Return a student that rejects requests with a prefix, or all requests."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if always or body["messages"][-1]["role"] == "assistant":
            return web.json_response({"error": {"message": message}}, status=code)
        return await says(REST)(request, body)

    return behave


@pytest.mark.parametrize("code", [400, 422])
def test_a_student_that_rejects_the_prefix_answers_without(world: World, code: int) -> None:
    """The caller's request is valid. The caller gets the student's text alone, and the teacher is still charged."""
    world.student.behave = rejects(NO_PREFILL, code=code)
    answer = world.ask(max_tokens=50, top_k=7)
    assert (answer.status_code, text_of(answer)) == (200, REST)
    assert answer.headers["x-gkt-unguided"] == "student_refused_prefix"
    assert answer.headers["x-gkt-mode"] == "student"
    assert answer.json()["usage"] == {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}

    rejected, retried = world.student.requests
    assert retried == {**rejected, "messages": rejected["messages"][:-1], "max_tokens": 50}
    receipt = world.receipt(answer)
    assert (receipt["status"], receipt["mode"]) == ("ok", "student")
    assert receipt["unguided"] == "student_refused_prefix"
    assert receipt["guidance"] is None
    assert Decimal(receipt["teacher"]["cost_usd"]) > 0
    assert (receipt["student"]["input_tokens"], receipt["student"]["output_tokens"]) == (10, 5)
    assert Decimal(receipt["cost_usd"]) == sum(Decimal(receipt[role]["cost_usd"]) for role in ("teacher", "student"))


def test_a_request_rejected_without_the_prefix_too_is_the_callers_error(world: World) -> None:
    """The student is called twice. Only the teacher's call is charged."""
    world.student.behave = rejects("top_k must not be 7", always=True)
    answer = world.ask(top_k=7)
    assert answer.status_code == 400
    assert "top_k must not be 7" in answer.json()["error"]["message"]
    assert len(world.student.requests) == 2
    receipt = world.receipt(answer)
    assert (receipt["status"], receipt["student"]) == ("invalid_request", None)
    assert Decimal(receipt["teacher"]["cost_usd"]) > 0


TOO_LONG = "This model's maximum context length is 50 tokens. However, you requested 60 tokens."


def test_a_request_that_exceeds_the_context_has_that_reason(world: World) -> None:
    """The receipt names the context, and the caller can shorten the request."""
    world.student.behave = rejects(TOO_LONG, always=True)
    answer = world.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    receipt = world.receipt(answer)
    assert (receipt["status"], receipt["unguided"]) == ("invalid_request", "student_context_exceeded")
    assert receipt["student"] is None


def test_a_request_that_fits_without_the_guidance_is_answered_with_that_reason(world: World) -> None:
    world.student.behave = rejects(TOO_LONG)
    answer = world.ask()
    assert (answer.status_code, text_of(answer)) == (200, REST)
    assert answer.headers["x-gkt-unguided"] == "student_context_exceeded"


def test_a_rejected_prefix_ends_a_stream_with_a_server_error(world: World) -> None:
    """The guidance was sent, so no answer without it is possible. The caller cannot correct the request."""
    world.student.behave = rejects(NO_PREFILL)
    answer = world.ask(stream=True)
    *shown, last = events(answer)
    assert "".join(each["choices"][0]["delta"].get("content") or "" for each in shown) == SHOWN
    assert (last["error"]["type"], last["error"]["code"]) == ("server_error", "engine_rejected")
    assert NO_PREFILL in last["error"]["message"]
    assert "[DONE]" not in answer.text
    assert len(world.student.requests) == 1
    receipt = world.receipt(answer)
    assert (receipt["status"], receipt["student"]) == ("engine_rejected", None)
    assert Decimal(receipt["teacher"]["cost_usd"]) > 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("param", "shown"),
    [("top_k", "top_k"), ("messages[1].content", "messages"), ("max_tokens", "max_completion_tokens"),
     ("input_tokens", "messages"), ("made_up", "made_up"), ("stream_options", None)],
)  # fmt: skip
def test_a_rejection_keeps_the_code_and_the_field_of_the_engine(
    world: World, param: str, shown: str | None, stream: bool
) -> None:
    """The field is the caller's: the gateway renames the token limit, adds fields, and places the guidance."""

    async def behave(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        error = {"message": "no", "type": "BadRequestError", "code": "context_length_exceeded", "param": param}
        return web.json_response({"error": error}, status=400)

    world.student.behave = behave
    answer = world.ask("chat-context", top_k=7, max_completion_tokens=90, stream=stream)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", shown)


@pytest.mark.parametrize("stream", [False, True])
def test_a_rejection_without_a_prefix_is_the_callers_error(world: World, stream: bool) -> None:
    """Guidance in the context is no prefix."""
    world.student.behave = rejects("top_k must not be 7", always=True)
    answer = world.ask("chat-context", top_k=7, stream=stream)
    assert (answer.status_code, len(world.student.requests)) == (400, 1)
    assert world.receipt(answer)["status"] == "invalid_request"


def test_a_student_that_rejects_its_key_is_not_retried(world: World) -> None:
    """The error does not concern the prefix."""
    world.student.behave = rejects("Who are you?", always=True, code=401)
    answer = world.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_rejected")
    assert len(world.student.requests) == 1
