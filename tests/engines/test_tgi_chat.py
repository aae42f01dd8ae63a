"""Chat fields that TGI defines differently."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.engines.tgi import TGIEngine
from gateway.engines.tgi_chat import JSON_OBJECT
from gateway.errors import EngineUnsupported
from tests.engines.fake_server import NAME, engine_http, failure, replying, serving

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
