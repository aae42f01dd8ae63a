"""Requests to /v1/responses become chats."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.errors import GatewayError, InvalidRequest, NotFound
from gateway.protocol.chat import ChatRequest, parse_chat
from gateway.protocol.responses.items import encode_reasoning
from gateway.protocol.responses.request import ResponsesRequest, parse_responses

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "Weather",
    "parameters": {"type": "object"},
}
PATCH: dict[str, Any] = {"type": "custom", "name": "apply_patch", "description": "Patch files"}
PIXEL = "data:image/png;base64,AAAA"


def parse(**fields: Any) -> ResponsesRequest:
    return parse_responses(orjson.dumps({"model": "chat", "input": "Hi", **fields}))


def chat(**fields: Any) -> dict[str, Any]:
    body = parse(**fields).chat().body
    parse_chat(orjson.dumps(body))  # a valid chat
    return body


def messages(*items: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = chat(input=list(items), **fields)["messages"]
    return found


def said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def called(call_id: str, name: str = "weather", arguments: str = "{}") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def call(call_id: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": "weather", "arguments": "{}", **fields}


def output(call_id: str, value: Any = "12 C") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": value}


def told(call_id: str, text: str = "12 C") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def test_a_text_is_a_user_message() -> None:
    """The smallest request is the smallest chat."""
    request = parse()
    assert request.chat() == ChatRequest(
        body={"model": "chat", "messages": [said("user", "Hi")]},
        model="chat",
        max_tokens=None,
        stop=(),
        stream=False,
        wants_usage=False,
        is_converted=True,
        size_bytes=len(orjson.dumps({"model": "chat", "input": "Hi"})),
    )
    assert (request.store, request.previous_response_id) == (True, None)


def test_a_stream_requests_the_usage() -> None:
    """The last event has the usage."""
    request = parse(stream=True, prompt_cache_key="session-1").chat()
    assert (request.stream, request.wants_usage, request.body["stream"]) == (True, True, True)
    assert request.cache_key == "session-1"
    assert "prompt_cache_key" not in request.body


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0.5, "top_p": 0.25}, {"temperature": 0.5, "top_p": 0.25}),
        ({"max_output_tokens": 16}, {"max_tokens": 16}),
        ({"max_output_tokens": 16.0}, {"max_tokens": 16}),
        ({"user": "u", "safety_identifier": "s"}, {"user": "u", "safety_identifier": "s"}),
        ({"service_tier": "flex"}, {"service_tier": "flex"}),
        ({"service_tier": "auto"}, {}),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        ({"reasoning": {"summary": "auto"}}, {}),
        ({"text": {"verbosity": "low"}}, {"verbosity": "low"}),
        ({"text": {"format": {"type": "text"}}}, {}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"a": 1}, "strict": True, "x": 1}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"a": 1}, "strict": True},
                }
            },
        ),
        ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True}),
        ({"include": ["reasoning.encrypted_content"]}, {}),
        ({"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}, {}),
        ({"metadata": {"a": "b"}, "store": False, "truncation": "auto", "background": False}, {}),
        ({"stream_options": {"include_obfuscation": True}, "prompt_cache_retention": "24h"}, {}),
        ({"headers": {"a": "b"}, "api_key": "k", "Temperature": 9, "n": 5, "thinking": "adaptive"}, {}),
        (dict.fromkeys(("instructions", "tools", "text", "reasoning", "metadata", "prompt", "conversation")), {}),
    ],
)
def test_parameters_become_those_of_a_chat(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """Unknown fields do not reach the engine, whatever their names."""
    assert chat(**fields) == {"model": "chat", "messages": [said("user", "Hi")], **expected}


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([{"role": "user", "content": "a"}], [said("user", "a")]),
        ([{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}], [said("user", "a")]),
        ([{"role": "user", "content": []}], [said("user", "")]),
        (
            [{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}],
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        ),
        (
            [{"role": "user", "content": [{"type": "input_image", "image_url": PIXEL, "detail": "original"}]}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL, "detail": "high"}}]}],
        ),
        (
            [{"role": "user", "content": [{"type": "input_file", "file_data": "data:,a", "filename": "a.txt"}]}],
            [{"role": "user", "content": [{"type": "file", "file": {"file_data": "data:,a", "filename": "a.txt"}}]}],
        ),
        (
            [said("user", "a"), {"role": "assistant", "content": [{"type": "output_text", "text": "b"}]}],
            [said("user", "a"), said("assistant", "b")],
        ),
        (
            [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}],
            [{"role": "assistant", "content": "", "refusal": "No."}],
        ),
        # System messages at the beginning are one; later ones stay where they are.
        (
            [said("developer", "a"), said("system", "b"), said("user", "c"), said("developer", "d")],
            [said("system", "a\n\nb"), said("user", "c"), said("system", "d")],
        ),
        (
            [
                {"role": "developer", "content": [{"type": "input_text", "text": t} for t in "ab"]},
                said("developer", "c"),
                said("user", "d"),
            ],
            [said("system", "a\n\nb\n\nc"), said("user", "d")],
        ),
        (
            [{"role": "developer", "content": [{"type": "input_image", "image_url": PIXEL}]}, said("developer", "b")],
            [
                {"role": "system", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]},
                said("system", "b"),
            ],
        ),
        # An answer and its calls are one message, and outputs follow it directly.
        (
            [said("assistant", "a"), call("1"), call("2"), output("2", "two"), output("1", "one")],
            [{**said("assistant", "a"), "tool_calls": [called("1"), called("2")]}, told("2", "two"), told("1", "one")],
        ),
        (
            [call("1"), said("assistant", "a"), output("1")],
            [{**said("assistant", "a"), "tool_calls": [called("1")]}, told("1")],
        ),
        (
            [call("1"), said("user", "wait"), output("1")],
            [{"role": "assistant", "content": None, "tool_calls": [called("1")]}, told("1"), said("user", "wait")],
        ),
        (
            [call("1"), output("1"), call("2"), output("2")],
            [
                {"role": "assistant", "content": None, "tool_calls": [called("1")]},
                told("1"),
                {"role": "assistant", "content": None, "tool_calls": [called("2")]},
                told("2"),
            ],
        ),
        (
            [call("1", arguments=""), output("1", [{"type": "input_text", "text": t} for t in "ab"])],
            [{"role": "assistant", "content": None, "tool_calls": [called("1")]}, told("1", "a\nb")],
        ),
        (
            [call("1"), output("1", [{"type": "input_image", "image_url": PIXEL}]), said("user", "b")],
            [
                {"role": "assistant", "content": None, "tool_calls": [called("1")]},
                told("1", "The next user message has the rest of this output."),
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Output of call 1:"},
                        {"type": "image_url", "image_url": {"url": PIXEL}},
                    ],
                },
                said("user", "b"),
            ],
        ),
        (
            [
                {"type": "custom_tool_call", "call_id": "1", "name": "apply_patch", "input": 'say "hi"\n'},
                {"type": "custom_tool_call_output", "call_id": "1", "output": "done"},
            ],
            [
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [called("1", "apply_patch", r'{"input":"say \"hi\"\n"}')],
                },
                told("1", "done"),
            ],
        ),
        # Reasoning belongs to the message that follows it, if that is an answer.
        (
            [
                {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
                call("1"),
                output("1"),
            ],
            [{"role": "assistant", "content": None, "tool_calls": [called("1")], "reasoning_content": "hm"}, told("1")],
        ),
        (
            [
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
                said("assistant", "a"),
            ],
            [{**said("assistant", "a"), "reasoning_content": "hm"}],
        ),
        (
            [
                {"type": "reasoning", "encrypted_content": encode_reasoning("é hm"), "summary": []},
                said("assistant", "a"),
                {"type": "reasoning", "encrypted_content": "another service's", "summary": []},
                said("assistant", "b"),
            ],
            [{**said("assistant", "a"), "reasoning_content": "é hm"}, said("assistant", "b")],
        ),
        (
            [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}, said("user", "a")],
            [said("user", "a")],
        ),
        ([said("user", "a"), {"type": "web_search_call", "id": "ws_1", "status": "completed"}], [said("user", "a")]),
        # A search that the service ran has no call id.
        (
            [
                {"type": "tool_search_call", "call_id": None, "execution": "server", "arguments": {}},
                {"type": "tool_search_output", "call_id": None, "execution": "server", "tools": [WEATHER]},
                said("user", "a"),
            ],
            [said("user", "a")],
        ),
        (
            [
                {"type": "tool_search_call", "call_id": "1", "execution": "client", "arguments": {"query": "q"}},
                {"type": "tool_search_output", "call_id": "1", "execution": "client", "tools": [WEATHER]},
            ],
            [
                {"role": "assistant", "content": None, "tool_calls": [called("1", "tool_search", '{"query":"q"}')]},
                told("1", "Loaded tools: weather"),
            ],
        ),
        (
            [
                {"type": "tool_search_call", "call_id": "1", "execution": "client", "arguments": {}},
                {
                    "type": "tool_search_output",
                    "call_id": "1",
                    "tools": [PATCH, {"type": "image_generation", "name": 5}],
                },
            ],
            [
                {"role": "assistant", "content": None, "tool_calls": [called("1", "tool_search")]},
                told("1", "Loaded tools: apply_patch"),
            ],
        ),
    ],
)
def test_items_become_messages(items: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Each form of `input` has its chat."""
    assert messages(*items) == expected


def test_instructions_come_first() -> None:
    """They are one message with the system messages at the beginning of `input`."""
    assert messages(said("system", "b"), said("user", "c"), instructions="a") == [
        said("system", "a\n\nb"),
        said("user", "c"),
    ]


def test_parts_without_text_are_counted() -> None:
    """Their tokens cannot be estimated from their size."""
    parts = [{"type": "input_image", "image_url": PIXEL}, {"type": "input_text", "text": "a"}]
    assert parse(input=[said("user", "a"), {"role": "user", "content": parts * 2}]).chat().non_text_parts == 2


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": None}, "input", "is required"),
        ({"input": []}, "input", "no message"),
        ({"input": 5}, "input", "a string or a list"),
        ({"input": ["a"]}, "input[0]", "an object"),
        ({"model": ""}, "model", "length"),
        ({"max_output_tokens": 15}, "max_output_tokens", ">= 16"),
        ({"top_logprobs": 21}, "top_logprobs", "<= 20"),
        ({"temperature": 2.5}, "temperature", "<= 2"),
        ({"truncation": "always"}, "truncation", "always"),
        ({"background": True}, "background", "not supported"),
        ({"conversation": "conv_1"}, "conversation", "whole conversation in 'input'"),
        ({"prompt": {"id": "p"}}, "prompt", "'instructions'"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "16 pairs"),
        ({"metadata": {"k" * 65: ""}}, "metadata", "64 characters"),
        ({"metadata": {"k": "v" * 513}}, "metadata", "512"),
        ({"metadata": {"k": 1}}, "metadata", "a string"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "json_schema"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema", "is required"),
        ({"text": {"verbosity": "huge"}}, "text.verbosity", "huge"),
        ({"input": [{"type": "poem"}]}, "input[0].type", "'poem' is not supported"),
        ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, "input[0].type", "'compaction'"),
        ({"input": [{"role": "tool", "content": "a"}]}, "input[0].role", "developer"),
        ({"input": [{"role": "user"}]}, "input[0].content", "is required"),
        (
            {"input": [{"type": "reasoning", "summary": [{"type": True, "text": "hm"}]}]},
            "input[0].summary.type",
            "must be one of input_text, output_text, summary_text, reasoning_text",
        ),
        ({"input": [{"role": "user", "content": ["a"]}]}, "input[0].content[0]", "an object"),
        (
            {"input": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
            "input[0].content[0].type",
            "input_text",
        ),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text", "a string"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
            "Send 'image_url'",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "http://a"}]}]},
            "input[0].content[0].file_url",
            "Send 'file_data'",
        ),
        ({"input": [{"role": "assistant", "content": [{"type": "poem"}]}]}, "input[0].content[0].type", "output_text"),
        ({"input": [call("1", name=None)]}, "input[0].name", "a string"),
        ({"input": [call("")]}, "input[0].call_id", "a string"),
        ({"input": [call("1", arguments={})]}, "input[0].arguments", "a string"),
        ({"input": [output("7")]}, "input", "No tool call found"),
        ({"input": [{"type": "additional_tools"}]}, "input[0].tools", "a list"),
        (
            {"input": [said("user", "a"), {"type": "additional_tools", "tools": [{"type": "mcp"}]}]},
            "input[1].tools[0].type",
            "mcp",
        ),
        (
            {"input": [{"type": "reasoning", "encrypted_content": "gkt1.!", "summary": []}]},
            "input[0].encrypted_content",
            "changed",
        ),
        ({"input": [{"type": "reasoning", "summary": ["a"]}]}, "input[0].summary", "an object"),
    ],
)
def test_an_error_names_the_field(fields: dict[str, Any], param: str, words: str) -> None:
    """The message says how to correct the request."""
    with pytest.raises(InvalidRequest) as refused:
        parse(**fields).chat()
    assert refused.value.param == param
    assert words in refused.value.message


@pytest.mark.parametrize("item", [{"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}])
def test_a_reference_to_an_item_is_404(item: dict[str, Any]) -> None:
    """As OpenAI's error for an item that is not stored."""
    request = parse(input=[said("user", "a"), item])
    assert request.needs_stored
    with pytest.raises(NotFound, match="Item 'msg_1' not found") as refused:
        request.with_items(request.items, request.size_bytes)
    assert refused.value.param == "input[1].id"


def test_a_body_for_another_endpoint_names_it() -> None:
    """A chat's body has messages."""
    with pytest.raises(InvalidRequest, match="/v1/chat/completions"):
        parse_responses(orjson.dumps({"model": "chat", "messages": [said("user", "a")]}))
    with pytest.raises(GatewayError, match="'model' is required"):
        parse_responses(orjson.dumps({"input": "a"}))


def test_history_precedes_the_input() -> None:
    """Its tools can be called, and outputs may belong to its calls. Paths of errors are those of the input."""
    fields: dict[str, Any] = {"previous_response_id": "resp_1", "instructions": "Be brief."}
    history = [said("user", "a"), {"type": "additional_tools", "role": "developer", "tools": [WEATHER]}, call("1")]
    alone = parse(input=[output("1")], **fields)
    request = alone.with_items([*history, *alone.items], 1000)
    assert request.chat().messages == [
        said("system", "Be brief."),
        said("user", "a"),
        {"role": "assistant", "content": None, "tool_calls": [called("1")]},
        told("1"),
    ]
    assert [tool["function"]["name"] for tool in request.chat().body["tools"]] == ["weather"]
    assert request.items == [*history, output("1")]
    assert request.size_bytes == 1000
    request = parse(input=[said("user", "b"), {"type": "poem"}], **fields)
    with pytest.raises(InvalidRequest) as refused:
        request.with_items([*history, *request.items], 1000)
    assert refused.value.param == "input[1].type"
