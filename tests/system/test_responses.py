"""The unmodified OpenAI SDK calls /v1/responses of a gateway with an engine that scripts its answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pydantic
import pytest
from aiohttp import web
from openai import OpenAI
from openai.types.responses import ResponseFunctionToolCall

from tests.fakes import FakeEngine, begin_events, chunk, event, reply, says
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, guided, model, running_gateway
from tests.protocol.responses.event_grammar import check, events_of

if TYPE_CHECKING:
    from collections.abc import Iterator

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
PATCH: Any = {"type": "custom", "name": "apply_patch", "description": "Patch files."}
FILES: Any = {
    "type": "namespace",
    "name": "mcp__files",
    "description": "Files.",
    "tools": [{**WEATHER, "name": "read"}],
}
CALLS = [
    ("call_1", "weather", '{"city":"Paris"}'),
    ("call_2", "apply_patch", '{"input":"*** Begin Patch\\n\\u00e9"}'),
    ("call_3", "mcp__files__read", "{}"),
]


class Person(pydantic.BaseModel):
    name: str
    born: int


async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Call all tools if there are any, then answer with their outputs. Otherwise do what the last message says."""
    outputs = [message["content"] for message in body["messages"] if message["role"] == "tool"]
    asked = str(body["messages"][-1].get("content"))
    if body.get("tools") and not outputs:
        return await _call_tools(request, stream=bool(body.get("stream")))
    if body["messages"][0]["content"] == "break":  # also if the gateway continues the answer
        return await _break_off(request)
    if asked.startswith("reject "):
        error = {"message": "No.", "type": "invalid_request_error", "param": asked.removeprefix("reject ")}
        return web.json_response({"error": error}, status=400)
    if asked == "think":
        return await _think(request, stream=bool(body.get("stream")))
    if body.get("response_format"):
        return await says('{"name": "Ada", "born": 1815}')(request, body)
    return await says("Outputs: " + ", ".join(outputs) if outputs else "Blue light scatters most.")(request, body)


async def _call_tools(request: web.Request, *, stream: bool) -> web.StreamResponse:
    calls: list[dict[str, Any]] = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for call_id, name, arguments in CALLS
    ]
    if not stream:
        answer = reply("", "tool_calls")
        answer["choices"][0]["message"] = {"role": "assistant", "content": None, "tool_calls": calls}
        return web.json_response(answer)
    response = await begin_events(request)
    for index, call in enumerate(calls):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        first = {**call, "index": index, "function": {"name": name, "arguments": ""}}
        await response.write(event(chunk({"tool_calls": [first]})))
        for at in range(0, len(arguments), 3):
            part = {"index": index, "function": {"arguments": arguments[at : at + 3]}}
            await response.write(event(chunk({"tool_calls": [part]})))
    return await _finish(response, "tool_calls")


async def _think(request: web.Request, *, stream: bool) -> web.StreamResponse:
    if not stream:
        answer = reply("Yes.")
        answer["choices"][0]["message"]["reasoning_content"] = "Hm."
        return web.json_response(answer)
    response = await begin_events(request)
    for delta in ({"reasoning_content": "H"}, {"reasoning_content": "m."}, {"content": "Yes."}):
        await response.write(event(chunk(delta)))
    return await _finish(response, "stop")


async def _break_off(request: web.Request) -> web.StreamResponse:
    response = await begin_events(request)
    await response.write(event(chunk({"content": "Blue"})))
    await response.write(event({"error": {"message": "out of memory", "type": "server_error"}}))
    await response.write_eof()
    return response


async def _finish(response: web.StreamResponse, reason: str) -> web.StreamResponse:
    await response.write(event(chunk({}, reason)))
    await response.write(event({**chunk({}), "choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    with FakeEngine(behave).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def teacher() -> Iterator[FakeEngine]:
    with FakeEngine(says("The sky is blue because air scatters", "length")).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def gate(
    redis_url: str, engine: FakeEngine, teacher: FakeEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    models = [
        model("big", "tgi", teacher.url),
        model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False),
    ]
    folder = tmp_path_factory.mktemp("responses")
    with running_gateway(folder, redis_url=redis_url, models=models, routes=[guided(), STUDENT_ONLY]) as process:
        yield process


@pytest.fixture
def client(gate: GatewayProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gate.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def post(gate: GatewayProcess, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{gate.url}/v1/responses", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)


def test_an_answer_has_guidance_usage_and_a_receipt(client: OpenAI) -> None:
    """As in chat completions. The response's id leads to the receipt."""
    raw = client.responses.with_raw_response.create(model="chat", input="Why is the sky blue?", max_output_tokens=40)
    response = raw.parse()
    assert response.output_text.startswith("The sky is blue because air")
    assert response.output_text.endswith("Blue light scatters most.")
    assert (response.status, response.model, raw.headers["x-gkt-mode"]) == ("completed", "chat", "guided")
    assert response.id == raw.headers["x-request-id"].replace("req_", "resp_")
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    chat = client.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": "Why is the sky blue?"}], max_tokens=40
    )
    assert chat.usage is not None
    assert response.usage.output_tokens == chat.usage.completion_tokens
    assert response.usage.input_tokens == chat.usage.prompt_tokens


def test_a_stream_has_all_events_and_the_facts_of_the_receipt(gate: GatewayProcess, client: OpenAI) -> None:
    """The guidance comes first. The SDK reads the same text."""
    body = {"model": "chat", "input": "Why is the sky blue?", "stream": True}
    answer = post(gate, body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    final = check(events_of(answer.content))
    assert final["gkt"]["mode"] == "guided"
    assert final["usage"]["output_tokens"] > 0
    text = final["output"][0]["content"][0]["text"]
    with client.responses.stream(model="chat", input="Why is the sky blue?") as stream:
        deltas = [one.delta for one in stream if one.type == "response.output_text.delta"]
        response = stream.get_final_response()
    assert "".join(deltas) == response.output_text == text
    assert deltas[0].startswith("The sky is")


@pytest.mark.parametrize("stream", [False, True])
def test_a_loop_of_tools(client: OpenAI, engine: FakeEngine, *, stream: bool) -> None:
    """The client gets the calls of its own tools, and the engine their outputs."""
    tools = [WEATHER, PATCH, FILES]
    turns: list[Any] = [{"role": "developer", "content": "Use tools."}, {"role": "user", "content": "Go."}]
    if stream:
        with client.responses.stream(model="chat-student", input=turns, tools=tools) as events:
            first = events.get_final_response()
    else:
        first = client.responses.create(model="chat-student", input=turns, tools=tools)
    output = [item.to_dict() for item in first.output]
    assert [item["type"] for item in output] == ["function_call", "custom_tool_call", "function_call"]
    call, custom, spaced = output
    assert (call["name"], call["arguments"], call["call_id"]) == ("weather", '{"city":"Paris"}', "call_1")
    assert (custom["name"], custom["input"]) == ("apply_patch", "*** Begin Patch\né")
    assert (spaced["name"], spaced["namespace"]) == ("read", "mcp__files")
    results = [
        {"type": f"{kind}_output", "call_id": call_id, "output": call_id.upper()}
        for kind, call_id in (("function_call", "call_1"), ("custom_tool_call", "call_2"), ("function_call", "call_3"))
    ]
    last = client.responses.create(model="chat-student", input=[*turns, *output, *results], tools=tools)
    assert last.output_text == "Outputs: CALL_1, CALL_2, CALL_3"
    sent = engine.requests[-1]
    assert [message["role"] for message in sent["messages"]] == ["system", "user", "assistant", *["tool"] * 3]
    assert [call["function"]["name"] for call in sent["messages"][2]["tool_calls"]] == [name for _, name, _ in CALLS]
    assert json.loads(sent["messages"][2]["tool_calls"][1]["function"]["arguments"]) == json.loads(CALLS[1][2])


def test_arguments_of_a_call_are_parsed(client: OpenAI) -> None:
    """By the SDK's own helper for tools."""
    tool = openai.pydantic_function_tool(Person, name="weather")
    responses_tool: Any = {"type": "function", **tool["function"]}
    response = client.responses.parse(model="chat-student", input="Go.", tools=[responses_tool])
    call = response.output[0]
    assert isinstance(call, ResponseFunctionToolCall)
    assert call.name == "weather"


def test_an_answer_of_a_given_form(client: OpenAI, engine: FakeEngine) -> None:
    """The engine gets the schema."""
    response = client.responses.parse(model="chat-student", input="Who was she?", text_format=Person)
    assert response.output_parsed == Person(name="Ada", born=1815)
    assert engine.requests[-1]["response_format"]["json_schema"]["strict"] is True


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_returns_with_the_next_request(client: OpenAI, engine: FakeEngine, *, stream: bool) -> None:
    """As the summary that the client requested."""
    fields: Any = {"reasoning": {"summary": "auto", "effort": "low"}, "include": ["reasoning.encrypted_content"]}
    if stream:
        with client.responses.stream(model="chat-student", input="think", **fields) as events:
            deltas = [one.delta for one in events if one.type == "response.reasoning_summary_text.delta"]
            response = events.get_final_response()
        assert "".join(deltas) == "Hm."
    else:
        response = client.responses.create(model="chat-student", input="think", **fields)
    assert engine.requests[-1]["reasoning_effort"] == "low"
    reasoning = response.output[0]
    assert reasoning.type == "reasoning"
    assert [part.text for part in reasoning.summary] == ["Hm."]
    turns: Any = [*(item.to_dict() for item in response.output), {"role": "user", "content": "Sure?"}]
    client.responses.create(model="chat-student", input=turns, store=False)
    assert engine.requests[-1]["messages"][0] == {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}


def test_log_probabilities(client: OpenAI) -> None:
    """In replies and in deltas."""
    fields: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    response = client.responses.create(model="chat-student", input="Why?", **fields)
    part: Any = response.output[0].to_dict()["content"]
    assert [one["logprob"] for one in part[0]["logprobs"]] == [-0.5] * 4
    stream = client.responses.create(model="chat-student", input="Why?", stream=True, **fields)
    deltas = [one for one in stream if one.type == "response.output_text.delta"]
    assert [one.logprobs[0].token for one in deltas] == ["Blue", " light", " scatters", " most."]


def test_a_stream_that_breaks_ends_with_its_failure(gate: GatewayProcess, client: OpenAI) -> None:
    """The text so far is in the response."""
    final = check(events_of(post(gate, {"model": "chat-student", "input": "break", "stream": True}).content))
    assert (final["status"], final["error"]["code"]) == ("failed", "server_error")
    assert final["output"][0]["content"][0]["text"].startswith("Blue")
    last = list(client.responses.create(model="chat-student", input="break", stream=True))[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert "small" in last.response.error.message


def test_fields_of_other_services_are_ignored(gate: GatewayProcess, engine: FakeEngine) -> None:
    """No engine gets them, whatever their names are."""
    other = {"client_metadata": {"headers": {"a": "b"}}, "api_base": "http://x", "stop": ["a"], "prompt_cache_key": "k"}
    body = {"model": "chat-student", "input": "Hi", "context_management": [{"type": "compaction"}], **other}
    assert post(gate, body).status_code == 200
    assert set(engine.requests[-1]) == {"model", "messages"}


def test_a_large_body_is_decoded(gate: GatewayProcess, engine: FakeEngine) -> None:
    """Off the event loop."""
    items = [{"role": "user", "content": "word " * 1000} for _ in range(200)]
    assert post(gate, {"model": "chat-student", "input": items}).status_code == 200
    assert len(engine.requests[-1]["messages"]) == 200


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"previous_response_id": "resp_1"}, 404, "previous_response_not_found", "previous_response_id"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, 404, "not_found", "input"),
        ({"tools": [{"type": "web_search"}]}, 400, None, "tools[0].type"),
        ({"tool_choice": "required"}, 400, None, "tool_choice"),
        ({"input": [{"role": "user", "content": [{"type": "text"}]}]}, 400, None, "input[0].content[0].type"),
        ({"model": "none"}, 404, "model_not_found", "model"),
        ({"messages": [], "input": None}, 400, None, "input"),
    ],
)
def test_errors_have_openais_form(
    gate: GatewayProcess, fields: dict[str, Any], status: int, code: str | None, param: str
) -> None:
    """With the path of the field, also for a stream."""
    for stream in (False, True):
        answer = post(gate, {"model": "chat-student", "input": "Hi", "stream": stream, **fields})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
        assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("rejected", "param"),
    [
        ("max_tokens", "max_output_tokens"),
        ("messages[0].content", "input"),
        ("response_format.json_schema", "text.format"),
        ("reasoning_effort", "reasoning.effort"),
        ("temperature", "temperature"),
        ("nothing", "nothing"),
    ],
)
def test_an_error_of_the_engine_names_the_callers_field(gate: GatewayProcess, rejected: str, param: str) -> None:
    """The engine names a field of the chat that it got."""
    fields = {"max_output_tokens": 16, "temperature": 1, "reasoning": {"effort": "low"}}
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    body = {"model": "chat-student", "input": f"reject {rejected}", "text": {"format": schema}, **fields}
    for stream in (False, True):
        answer = post(gate, {**body, "stream": stream})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
