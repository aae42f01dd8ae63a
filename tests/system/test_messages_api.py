"""Anthropic's unmodified SDK against a gateway between fake engines."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import anthropic
import httpx
import orjson
import pytest
from aiohttp import web
from anthropic import Anthropic

from tests.fake_texts import begin_events, event
from tests.fakes import FakeEngine, chunk, reply, says
from tests.gateway_process import KEY, OTHER_KEY, STUDENT_ONLY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.fakes import Handler

BEGINS, REST = "Because the air", " scatters blue light."
TEACHERS = f"{BEGINS} scat"
ASKED: list[Any] = [{"role": "user", "content": "Why is the sky blue?"}]
TOOL: Any = {"name": "add", "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
CACHED: Any = {"type": "ephemeral"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


@dataclass
class World:
    teacher: FakeEngine
    student: FakeEngine
    gateway: GatewayProcess
    clients: ExitStack

    def client(self, **options: Any) -> Anthropic:
        """Return a client that is closed at the end."""
        options = {"api_key": KEY, "max_retries": 0, **options}
        return self.clients.enter_context(Anthropic(base_url=self.gateway.url, **options))

    def post(
        self, path: str = "/v1/messages", headers: Mapping[str, str | bytes] | None = None, **body: Any
    ) -> httpx.Response:
        sent = {"model": "chat-student", "max_tokens": 20, "messages": ASKED, **body}
        headers = {"x-api-key": KEY} if headers is None else headers
        return httpx.post(f"{self.gateway.url}{path}", headers=headers, json=sent, timeout=20)


@pytest.fixture(scope="module")
def running(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("messages")
    with ExitStack() as stack:
        teacher = stack.enter_context(FakeEngine(says("")).running())
        student = stack.enter_context(FakeEngine(says(""), owned_by="vllm").running())
        calm = {"breaker": {"failures": 1000}}
        gateway = stack.enter_context(
            running_gateway(
                folder,
                redis_url=redis_url,
                redis={"prefix": folder.name},
                models=[
                    model("big", "openai", f"{teacher.url}/v1", model="x", continuation="none", **calm),
                    model("small", "openai", f"{student.url}/v1", model="x", continuation="vllm", echo=False, **calm),
                ],
                routes=[guided("chat", tokens=6), {**STUDENT_ONLY, "retries": {"num_retries": 0}}],
                tenants={"globex": {"limits": {"rpm_limit": 2, "tpm_limit": 100_000}}},
            )
        )
        wait_until_looked_at(gateway.admin_url)
        yield World(teacher, student, gateway, stack)


@pytest.fixture
def world(running: World) -> World:
    running.teacher.behave, running.student.behave = says(TEACHERS, "length"), says(REST)
    running.teacher.requests.clear()
    running.student.requests.clear()
    return running


def raises(status: int, **headers: str) -> Handler:
    async def behave(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "No."}}, status=status, headers=headers)

    return behave


def writes(*chunks: dict[str, Any], usage: dict[str, Any] | None = None) -> Handler:
    """Return a handler that streams these chunks. Without usage the connection breaks after them."""

    async def behave(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = await begin_events(request)
        for one in chunks:
            await response.write(event(one))
        if usage is None:
            assert request.transport is not None
            request.transport.abort()
            return response
        await response.write(event({**chunk({}), "choices": [], "usage": usage}))
        await response.write(b"data: [DONE]\n\n")
        return response

    return behave


def replies(**choice: Any) -> Handler:
    async def behave(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        answer = reply("")
        answer["choices"][0] |= choice
        return web.json_response(answer)

    return behave


def test_a_guided_message_and_its_receipt(world: World) -> None:
    raw = world.client().messages.with_raw_response.create(model="chat", max_tokens=20, messages=ASKED)
    message = raw.parse()
    assert [block.model_dump(include={"type", "text"}) for block in message.content] == [
        {"type": "text", "text": BEGINS + REST}
    ]
    assert (message.stop_reason, message.role, message.model) == ("end_turn", "assistant", "chat")
    assert message.usage.output_tokens > 0
    request_id = raw.headers["request-id"]
    assert message.id == f"msg_{request_id}"
    assert raw.headers["x-request-id"] == request_id
    assert raw.headers["x-gkt-mode"] == "guided"
    assert "openai-version" not in raw.headers
    receipt = world.gateway.wait_for_log("request", id=request_id)
    assert (receipt["tenant"], receipt["mode"]) == ("acme", "guided")


def test_a_guided_stream(world: World) -> None:
    with world.client().messages.stream(model="chat", max_tokens=20, messages=ASKED) as stream:
        texts = list(stream.text_stream)
        message = stream.get_final_message()
    assert "".join(texts) == BEGINS + REST
    assert len(texts) > 1
    assert message.stop_reason == "end_turn"
    assert message.usage.input_tokens == 10 - 3  # the engine counts the three tokens of guidance as its prompt
    assert message.usage.output_tokens > 0
    raw = world.post(model="chat", stream=True)
    assert raw.headers["content-type"].startswith("text/event-stream")
    last = orjson.loads(raw.text.split("event: message_delta\ndata: ")[1].partition("\n")[0])
    assert last["gkt"]["mode"] == "guided"
    assert raw.text.endswith('event: message_stop\ndata: {"type":"message_stop"}\n\n')


def test_a_loop_of_tools(world: World) -> None:
    """The engine gets OpenAI's form of tools, calls and results. The client gets Anthropic's."""
    client = world.client()
    world.student.behave = replies(message={"role": "assistant", "content": None, "tool_calls": [CALL]},
                                   finish_reason="tool_calls")  # fmt: skip
    first = client.messages.create(model="chat-student", max_tokens=20, messages=ASKED, tools=[TOOL])
    assert first.stop_reason == "tool_use"
    call: Any = first.content[0]
    assert (call.type, call.id, call.name, call.input) == ("tool_use", "call_1", "add", {"a": 1})
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "2"}
    history: list[Any] = [
        *ASKED,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    world.student.behave = says(REST)
    second = client.messages.create(model="chat-student", max_tokens=20, messages=history, tools=[TOOL])
    assert second.stop_reason == "end_turn"
    sent = world.student.requests[-1]
    assert sent["tools"] == [{"type": "function", "function": {"name": "add", "parameters": TOOL["input_schema"]}}]
    assert sent["messages"][1:] == [
        {"role": "assistant", "content": None,
         "tool_calls": [{**CALL, "function": {"name": "add", "arguments": '{"a":1}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    ]  # fmt: skip


def test_a_streamed_call_of_a_tool(world: World) -> None:
    parts = [{"index": 0, **CALL, "function": {"name": "add", "arguments": ""}},
             {"index": 0, "function": {"arguments": '{"a": 1}'}}]  # fmt: skip
    world.student.behave = writes(
        *(chunk({"tool_calls": [part]}) for part in parts),
        chunk({}, "tool_calls"),
        usage={"prompt_tokens": 30, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 20}},
    )
    with world.client().messages.stream(model="chat-student", max_tokens=20, messages=ASKED, tools=[TOOL]) as stream:
        message = stream.get_final_message()
    call: Any = message.content[0]
    assert (call.id, call.input, message.stop_reason) == ("call_1", {"a": 1}, "tool_use")
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (10, 20)


def test_reasoning_is_shown_if_it_is_requested(world: World) -> None:
    world.student.behave = writes(
        chunk({"reasoning_content": "Ray"}),
        chunk({"content": "Blue."}, "stop"),
        usage={"prompt_tokens": 3, "completion_tokens": 4},
    )
    for thinking, types in (({"type": "adaptive"}, ["thinking", "text"]), ({"type": "disabled"}, ["text"])):
        with world.client().messages.stream(
            model="chat-student", max_tokens=20, messages=ASKED, extra_body={"thinking": thinking}
        ) as stream:
            assert [block.type for block in stream.get_final_message().content] == types


def test_the_stop_sequence_that_the_engine_reports(world: World) -> None:
    stops = [f"<{number}>" for number in range(9)]
    world.student.behave = replies(message={"role": "assistant", "content": "B"}, stop_reason="<7>")
    message = world.client().messages.create(model="chat-student", max_tokens=20, messages=ASKED, stop_sequences=stops)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "<7>")
    assert world.student.requests[-1]["stop"] == stops


def test_an_assistants_message_at_the_end_is_continued(world: World) -> None:
    """The engine gets its own flags for this, and the answer begins where the message ends."""
    begun = [*ASKED, {"role": "assistant", "content": [{"type": "text", "text": BEGINS}]}]
    message = world.client().messages.create(model="chat", max_tokens=20, messages=begun)
    assert [block.text for block in message.content if block.type == "text"] == [REST]
    sent = world.student.requests[-1]
    assert sent["messages"][-1] == {"role": "assistant", "content": BEGINS}
    assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)
    assert world.teacher.requests == []


def test_fields_of_anthropics_models_do_not_reach_other_engines(world: World) -> None:
    """vLLM reads top_k and reasoning of earlier turns, but neither marks for the cache nor signatures."""
    history: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "Why?", "cache_control": CACHED}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Ray", "signature": "s"},
                                          {"type": "text", "text": "Blue."}]},
        *ASKED,
    ]  # fmt: skip
    world.client().messages.create(
        model="chat-student", max_tokens=20, messages=history, tools=[{**TOOL, "cache_control": CACHED}],
        system=[{"type": "text", "text": "Be brief.", "cache_control": CACHED}],
        extra_headers={"anthropic-beta": "context-1m-2025-08-07"}, service_tier="auto",
        extra_body={"context_management": {"edits": []}, "new": 1, "thinking": {"type": "enabled"}, "top_k": 40},
    )  # fmt: skip
    sent = world.student.requests[-1]
    function = {"name": "add", "parameters": TOOL["input_schema"]}
    assert {name: value for name, value in sent.items() if name not in ("model", "max_tokens")} == {
        "top_k": 40,
        "tools": [{"type": "function", "function": function}],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
            {"role": "assistant", "content": "Blue.", "reasoning_content": "Ray"},
            *ASKED,
        ],
    }
    assert not any(name.lower().startswith("anthropic") for name in world.student.headers[-1])


def test_a_tool_of_claude_needs_claude(world: World) -> None:
    bash: Any = {"type": "bash_20250124", "name": "bash"}
    with pytest.raises(anthropic.BadRequestError) as refused:
        world.client().messages.create(model="chat-student", max_tokens=20, messages=ASKED, tools=[bash])
    assert "'tools[0].type'" in refused.value.message


def test_errors_have_the_sdks_classes(world: World) -> None:
    client, other = world.client(), world.client(api_key="gk-wrong")
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (client, anthropic.BadRequestError, {"max_tokens": 0}, "invalid_request_error"),
        (client, anthropic.NotFoundError, {"model": "none"}, "not_found_error"),
        (other, anthropic.AuthenticationError, {}, "authentication_error"),
    ]
    for one, kind, fields, name in cases:
        with pytest.raises(kind) as refused:
            one.messages.create(**{"model": "chat-student", "max_tokens": 20, "messages": ASKED, **fields})
        error: Any = refused.value
        assert (error.body["type"], error.body["error"]["type"]) == ("error", name)
        assert error.request_id == error.body["request_id"] == error.response.headers["request-id"]
        assert error.response.headers["x-should-retry"] == "false"


def test_errors_before_a_handler_have_anthropics_format(world: World) -> None:
    url = world.gateway.url
    for reply_, status, kind in (
        (httpx.get(f"{url}/v1/messages", headers={"x-api-key": KEY}), 405, "invalid_request_error"),
        (httpx.post(f"{url}/v1/messages/batches", headers={"x-api-key": KEY}), 404, "not_found_error"),
        (world.post(headers={"x-api-key": KEY, "Expect": "x"}), 417, "invalid_request_error"),
        (world.post(headers={"x-api-key": KEY, "X-Client-Request-Id": "a" * 600}), 400, "invalid_request_error"),
        (world.post(headers={"x-api-key": KEY, "anthropic-beta": "a" * 3000}), 400, "invalid_request_error"),
    ):
        assert reply_.status_code == status, reply_.text
        body = reply_.json()
        assert (body["type"], body["error"]["type"]) == ("error", kind)
        assert body["request_id"] == reply_.headers["request-id"]
    assert httpx.post(f"{url}/v1/messages-of-others").json()["error"]["code"] == "not_found"


def test_the_sdk_retries_an_overloaded_engine(world: World) -> None:
    """The status is Anthropic's 529, and the second attempt succeeds."""
    calls: list[int] = []

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        calls.append(1)
        return await (raises(503) if len(calls) == 1 else says(REST))(request, body)

    world.student.behave = behave
    message = world.client(max_retries=1).messages.create(model="chat-student", max_tokens=20, messages=ASKED)
    assert message.stop_reason == "end_turn"
    assert len(calls) == 2
    world.student.behave = raises(503)
    with pytest.raises(anthropic.APIStatusError) as refused:
        world.client().messages.create(model="chat-student", max_tokens=20, messages=ASKED)
    assert refused.value.status_code == 529
    assert refused.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]


def test_an_error_after_the_head_ends_the_stream(world: World) -> None:
    world.student.behave = writes(chunk({"content": "Blue"}), chunk({"content": " as"}))
    stream = world.client().messages.create(model="chat-student", max_tokens=20, messages=ASKED, stream=True)
    with pytest.raises(anthropic.APIStatusError) as refused:
        list(stream)
    body: Any = refused.value.body
    assert body["error"]["type"] == "api_error"
    raw = world.post(stream=True).text
    events = [line.removeprefix("event: ") for line in raw.split("\n") if line.startswith("event: ")]
    assert events[0] == "message_start"
    assert events[-1] == "error"
    assert "message_stop" not in events


def test_the_receipt_of_a_stream_that_cannot_be_written_has_the_error(world: World) -> None:
    """Not a disconnect of the caller. Anthropic's format has no place for more arguments of a call that ended."""
    parts = [(0, "{}"), (1, "{}"), (0, "}")]
    world.student.behave = writes(
        *(
            chunk(
                {"tool_calls": [{"index": index, "id": f"call_{index}", "function": {"name": "f", "arguments": text}}]}
            )
            for index, text in parts
        ),
        chunk({}, "tool_calls"),
        usage={"prompt_tokens": 3, "completion_tokens": 4},
    )
    raw = world.post(stream=True)
    assert raw.text.count("event: error") == 1
    receipt = world.gateway.wait_for_log("request", id=raw.headers["request-id"])
    assert receipt["status"] == "engine_protocol_error"


def test_a_key_may_come_in_either_header_but_not_two(world: World) -> None:
    bearer = {"Authorization": f"Bearer {KEY}"}
    for headers in (
        {"x-api-key": KEY},
        bearer,
        {**bearer, "x-api-key": KEY},
        {"x-api-key": KEY, "Authorization": "Basic a"},
    ):
        assert world.post(headers=headers).status_code == 200, headers
    models = httpx.get(f"{world.gateway.url}/v1/models", headers={"x-api-key": KEY})
    assert models.status_code == 200
    for headers, words in (
        ({**bearer, "x-api-key": OTHER_KEY}, "different keys"),
        ({"x-api-key": ""}, "x-api-key is empty"),
        ({}, "There is no API key"),
        ({**bearer, "x-api-key": ""}, "x-api-key is empty"),
    ):
        refused = world.post(headers=headers)
        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        assert words in refused.json()["error"]["message"]
    for headers in ({"x-api-key": b"\xff", "Authorization": f"Bearer {KEY}"},
                    {"x-api-key": KEY, "Authorization": b"Bearer \xff"},
                    {"x-api-key": b"\xff", "Authorization": b"Bearer \xff"}):  # fmt: skip
        assert world.post(headers=headers).status_code == 401, headers
    twice = httpx.post(f"{world.gateway.url}/v1/messages", headers=[("x-api-key", KEY), ("x-api-key", KEY)], json={})
    assert "2 x-api-key headers" in twice.json()["error"]["message"]


def test_limits_have_anthropics_headers(world: World) -> None:
    seen = []
    for _ in range(3):
        answer = world.post(headers={"x-api-key": OTHER_KEY})
        seen.append((answer.status_code, answer.headers.get("anthropic-ratelimit-requests-remaining")))
        assert answer.headers["anthropic-ratelimit-requests-limit"] == "2"
        assert answer.headers["anthropic-ratelimit-tokens-limit"] == "100000"
        assert answer.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
        assert not any(name.startswith("x-ratelimit") for name in answer.headers)
    assert seen == [(200, "1"), (200, "0"), (429, "0")]
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert int(answer.headers["retry-after"]) > 0


def test_a_stream_begins_with_the_count_of_its_prompt(world: World) -> None:
    """The count is that of count_tokens, and calls no engine."""
    fields: Any = {"model": "chat-student", "messages": ASKED, "system": "Be brief and kind.", "tools": [TOOL]}
    counted = world.client().messages.count_tokens(**fields).input_tokens
    with world.client().messages.create(max_tokens=20, stream=True, **fields) as stream:
        [start] = [event for event in stream if event.type == "message_start"]
    assert start.message.usage.input_tokens == counted > 0
    assert len(world.student.requests) == 1


def test_tokens_are_counted_without_a_call(world: World) -> None:
    client = world.client()
    sizes = [
        client.messages.count_tokens(model="chat", messages=ASKED).input_tokens,
        client.messages.count_tokens(model="chat", messages=ASKED, system="Be brief and kind.").input_tokens,
        client.messages.count_tokens(model="chat", messages=ASKED * 20, tools=[TOOL]).input_tokens,
    ]
    assert all(one < other for one, other in pairwise(sizes))
    assert 6 <= sizes[0] <= 60
    assert world.student.requests == world.teacher.requests == []
    refused = world.post("/v1/messages/count_tokens", model="none")
    assert (refused.status_code, refused.json()["error"]["type"]) == (404, "not_found_error")
