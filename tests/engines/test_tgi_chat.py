"""Chat fields that TGI defines differently: against recorded bodies, and against the embedded teacher."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from gateway.engines.base import TeacherRequest
from gateway.engines.tgi import TGIEngine
from gateway.engines.tgi_chat import JSON_OBJECT
from gateway.errors import EngineUnsupported
from gateway.protocol.content_run import each_chunk
from tests.engines.fake_server import NAME, engine_http, failure, replying, serving

if TYPE_CHECKING:
    from gateway.local.stack import LocalStack

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "Is the sky green? Answer in JSON."}
SCHEMA = {
    "type": "object",
    "properties": {"green": {"type": "boolean"}},
    "required": ["green"],
    "additionalProperties": False,
}
FORMATS = {
    "text": {"type": "text"},
    "object": {"type": "json_object"},
    "schema": {"type": "json_schema", "json_schema": {"name": "sky", "strict": True, "schema": SCHEMA}},
}
CALL = {"id": "0", "type": "function", "function": {"name": "look", "arguments": "{}"}}
REPLY = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "No"}, "finish_reason": "length"}]}


async def sent(**fields: Any) -> Any:
    """Return the body that TGI receives for a chat with these fields."""
    async with serving({CHAT: replying(REPLY)}) as fake, engine_http(fake.url) as http:
        await TGIEngine(NAME, http).complete({"messages": [USER], **fields})
        return fake.bodies[0]


@pytest.mark.parametrize(
    ("form", "arrives"),
    [
        (None, {}),
        (FORMATS["text"], {}),
        (FORMATS["object"], {"response_format": JSON_OBJECT}),
        (FORMATS["schema"], {"response_format": {"type": "json", "value": SCHEMA}}),
        ({"type": "regex", "value": "a+"}, {"response_format": {"type": "regex", "value": "a+"}}),
    ],
)
async def test_a_response_format_becomes_a_grammar(form: Any, arrives: dict[str, Any]) -> None:
    body = await sent(response_format=form)
    assert {name: value for name, value in body.items() if name == "response_format"} == arrives


@pytest.mark.parametrize(
    ("fields", "arrives"),
    [
        ({"logit_bias": {}, "n": 1, "stream": None, "stream_options": None}, {}),
        ({"logit_bias": None, "n": None, "seed": None, "user": None}, {}),
        ({"max_tokens": 5, "max_completion_tokens": 4}, {"max_tokens": 4}),
        ({"max_tokens": 5, "max_completion_tokens": None}, {"max_tokens": 5}),
        ({"seed": -1}, {"seed": 2**64 - 1}),
        ({"seed": 7}, {"seed": 7}),
    ],
)
async def test_a_field_is_sent_as_tgi_reads_it(fields: dict[str, Any], arrives: dict[str, Any]) -> None:
    assert await sent(**fields) == {"messages": [USER], "model": "tgi", **arrives}


async def test_a_message_without_content_gets_an_empty_text() -> None:
    """Unless it has tool calls: TGI then reads those. The caller's messages are not changed."""
    refused = {"role": "assistant", "content": None, "refusal": "No."}
    calling = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    messages = [USER, refused, USER, calling, {"role": "tool", "tool_call_id": "0", "content": "1"}]
    assert (await sent(messages=messages))["messages"] == [USER, {**refused, "content": ""}, *messages[2:]]
    assert refused["content"] is None


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"logit_bias": {"50": -100}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "any", "schema": {"type": "array"}}}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "grammar"}},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_field_without_an_equivalent_is_not_sent(fields: dict[str, Any], *, stream: bool) -> None:
    async with serving({CHAT: replying(REPLY)}) as fake, engine_http(fake.url) as http:
        engine = TGIEngine(NAME, http)
        body = {"messages": [USER], **fields}
        error = await failure(anext(engine.stream(body)) if stream else engine.complete(body), fake.url)
        assert fake.paths == []
    (field,) = fields
    assert isinstance(error, EngineUnsupported)
    assert (error.param, error.blames_request, error.may_have_run) == (field, True, False)
    assert f"'{field}'" in error.message


@pytest.mark.models
class TestEmbeddedTeacher:
    """The embedded teacher rejects what TGI's router rejects."""

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("form", FORMATS)
    async def test_an_answer_has_the_response_format(self, engines: LocalStack, form: str, *, stream: bool) -> None:
        shown = {"role": "assistant", "content": '{"green": false}'}
        body = {"messages": [USER, shown, USER], "temperature": 0, "max_tokens": 60, "response_format": FORMATS[form]}
        async with engine_http(engines.teacher.url, first_token_s=60, idle_s=60, total_s=120) as http:
            engine = TGIEngine(NAME, http)
            if stream:
                async with aclosing(engine.stream({**body, "stream": True})) as groups:
                    chunks = [chunk async for group in groups for chunk in each_chunk(group)]
                text = "".join(one["delta"].get("content") or "" for chunk in chunks for one in chunk["choices"])
            else:
                text = (await engine.complete(body))["choices"][0]["message"]["content"]
        if form == "schema":
            assert isinstance(json.loads(text)["green"], bool)
        elif form == "object":
            assert isinstance(json.loads(text), dict)
        else:
            assert text

    @pytest.mark.parametrize(
        "fields",
        [
            {"max_completion_tokens": 2},
            {"logit_bias": {}},
            {"seed": -1},
            {"stream": None, "stream_options": None, "n": 1},
            {"messages": [USER, {"role": "assistant", "content": None, "refusal": "No."}, USER]},
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, USER]},
        ],
    )
    async def test_the_router_accepts_what_the_gateway_sends(self, engines: LocalStack, fields: dict[str, Any]) -> None:
        async with engine_http(engines.teacher.url, first_token_s=60, total_s=120) as http:
            await TGIEngine(NAME, http).complete({"messages": [USER], "max_tokens": 2, **fields})

    async def test_guidance_for_a_chat_with_a_refusal_is_generated(self, engines: LocalStack) -> None:
        messages = [USER, {"role": "assistant", "content": None, "refusal": "No."}, USER]
        async with engine_http(engines.teacher.url, first_token_s=60, total_s=120) as http:
            reply = await TGIEngine(NAME, http).generate_guidance(TeacherRequest(max_tokens=2, messages=messages))
        assert reply.usage is not None
