"""Requests of Anthropic's API become chats."""

from __future__ import annotations

from functools import partial
from typing import Any

import orjson
import pytest

from gateway.errors import InvalidRequest
from gateway.protocol.anthropic.errors import anthropic_error
from gateway.protocol.anthropic.request import (
    MAX_HEADER_CHARS,
    MAX_STOPS,
    MessagesRequest,
    check_header,
    parse_count_tokens,
    parse_messages,
)
from gateway.protocol.chat import parse_chat
from tests.cpu_time import cpu_seconds

BODY: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Why?"}]}
CACHED = {"type": "ephemeral", "ttl": "1h"}
TOOL = {"name": "add", "description": "Adds.", "input_schema": {"type": "object", "properties": {"a": {}}}}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1}}


def parsed(**fields: Any) -> MessagesRequest:
    return parse_messages(orjson.dumps({**BODY, **fields}))


def chat(*messages: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    return parsed(messages=list(messages), **fields).chat.messages


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def text(text: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **fields}


def test_a_plain_request_is_a_plain_chat() -> None:
    request = parsed()
    assert request.chat.body == BODY
    assert (request.chat.model, request.chat.max_tokens, request.chat.stop) == ("m", 9, ())
    assert (request.chat.stream, request.chat.wants_usage) == (False, False)
    assert not request.is_marked
    assert not request.shows_thinking


def test_sampling_fields_have_their_names_in_chats() -> None:
    request = parsed(temperature=0.5, top_p=0.9, top_k=40, stop_sequences=["\n\n", ""], stream=True,
                     metadata={"user_id": "u-1"})  # fmt: skip
    body = request.chat.body
    assert (body["temperature"], body["top_p"], body["top_k"], body["user"]) == (0.5, 0.9, 40, "u-1")
    assert body["stop"] == ["\n\n"]
    assert request.chat.stop == ("\n\n",)
    assert request.chat.stream
    assert request.chat.wants_usage
    assert "stream" not in body


def test_an_id_that_is_too_long_for_other_engines_is_hashed() -> None:
    """Equal ids stay equal, and different ones differ."""
    users = [parsed(metadata={"user_id": letter * 65}).chat.body["user"] for letter in "aab"]
    assert users[0] == users[1] != users[2]
    assert {len(user) for user in users} == {64}


@pytest.mark.parametrize(
    ("system", "content"),
    [
        ("Be brief.", "Be brief."),
        ([text("Be brief."), text("Be kind.")], "Be brief.\n\nBe kind."),
        ([text("Be brief.", cache_control=CACHED)], [text("Be brief.", cache_control=CACHED)]),
        ([text("x-anthropic-billing-header: cc_version=2; cch=4f;"), text("Be brief.")], "Be brief."),
    ],
)
def test_the_system_prompt_is_the_first_message(system: Any, content: Any) -> None:
    assert parsed(system=system).chat.messages[0] == {"role": "system", "content": content}


def test_an_empty_system_prompt_is_no_message() -> None:
    for system in ("", [], [text("x-anthropic-billing-header: cch=4f;")]):
        assert [message["role"] for message in parsed(system=system).chat.messages] == ["user"]


def test_images_are_parts() -> None:
    data = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    request = parsed(messages=[user({"type": "image", "source": data}, text("What?"),
                                    {"type": "image", "source": {"type": "url", "url": "https://a/b.png"}}),
                              ])  # fmt: skip
    first, question, second = request.chat.messages[0]["content"]
    assert first == {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert second == {"type": "image_url", "image_url": {"url": "https://a/b.png"}}
    assert question == text("What?")
    assert request.chat.non_text_parts == 2


@pytest.mark.parametrize(
    ("block", "content"),
    [
        ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Sky."}}, "Sky."),
        ({"type": "document", "title": "T", "context": "C", "source": {"type": "text", "data": "Sky."}}, "T\nC\nSky."),
        ({"type": "document", "source": {"type": "content", "content": "Sky."}}, "Sky."),
        ({"type": "document", "source": {"type": "content", "content": [text("A"), text("B")]}}, "A\nB"),
        ({"type": "search_result", "title": "T", "source": "S", "content": [text("A")]}, "T\nS\nA"),
    ],
)
def test_documents_and_search_results_are_text(block: dict[str, Any], content: str) -> None:
    assert chat(user(block)) == [{"role": "user", "content": content}]


def test_results_of_tools_precede_the_rest_of_the_users_message() -> None:
    """An image of a result is in the user's message, because a tool's message has text only."""
    image = {"type": "image", "source": {"type": "url", "url": "https://a/b.png"}}
    messages = chat(
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": [text("I will."), CALL, {**CALL, "id": "toolu_2"}]},
        user(text("Then explain."),
             {"type": "tool_result", "tool_use_id": "toolu_2", "content": [text("2"), image, text("3")]},
             {"type": "tool_result", "tool_use_id": "toolu_1", "content": "broken", "is_error": True}),
    )  # fmt: skip
    function = {"name": "add", "arguments": '{"a":1}'}
    calls = [{"id": name, "type": "function", "function": function} for name in ("toolu_1", "toolu_2")]
    assert messages[1] == {"role": "assistant", "content": "I will.", "tool_calls": calls}
    assert messages[2] == {"role": "tool", "tool_call_id": "toolu_2", "content": "2\n3"}
    assert messages[3] == {"role": "tool", "tool_call_id": "toolu_1", "content": "The tool failed:\nbroken"}
    shown = {"type": "image_url", "image_url": {"url": "https://a/b.png"}}
    assert messages[4] == {"role": "user", "content": [text("Then explain."), shown]}


def test_a_result_without_content_is_empty() -> None:
    (message,) = chat(user({"type": "tool_result", "tool_use_id": "toolu_1"}))
    assert message == {"role": "tool", "tool_call_id": "toolu_1", "content": ""}


def test_consecutive_messages_of_the_user_are_one() -> None:
    assert chat({"role": "user", "content": "A"}, {"role": "user", "content": "B"}) == [
        {"role": "user", "content": "A\n\nB"}
    ]
    assert chat(user(text("A"), text("B")), {"role": "user", "content": "C"}) == [user(text("A"), text("B"), text("C"))]


def test_consecutive_messages_of_the_assistant_are_one() -> None:
    """Some templates reject two of them. Anthropic's API combines them."""
    thought = {"type": "thinking", "thinking": "Hm", "signature": "s1"}
    turns = [{"role": "assistant", "content": content} for content in ([thought, text("A")], "B", [CALL])]
    assistant = chat(*BODY["messages"], *turns)[1]
    assert (assistant["role"], assistant["content"]) == ("assistant", "A\n\nB")
    assert [call["id"] for call in assistant["tool_calls"]] == ["toolu_1"]
    assert (assistant["reasoning_content"], assistant["thinking_blocks"]) == ("Hm", [thought])
    calls = [{"role": "assistant", "content": [{**CALL, "id": name}]} for name in ("1", "2")]
    both = chat(*BODY["messages"], *calls)[1]
    assert both["content"] is None
    assert [call["id"] for call in both["tool_calls"]] == ["1", "2"]
    marked = text("A", cache_control=CACHED)
    assert chat({"role": "assistant", "content": [marked]}, {"role": "assistant", "content": "B"}) == [
        {"role": "assistant", "content": [marked, text("B")]}
    ]


def test_many_messages_of_the_user_cost_little_more_than_a_chat() -> None:
    """All tenants share the thread that decodes large bodies."""
    raw = orjson.dumps({**BODY, "messages": [{"role": "user", "content": "x" * 750}] * 10_000})
    chat_s, messages_s = (cpu_seconds(partial(parse, raw)) for parse in (parse_chat, parse_messages))
    assert messages_s < 10 * chat_s


def test_reasoning_keeps_its_signature() -> None:
    thought = {"type": "thinking", "thinking": "Rayleigh", "signature": "s1"}
    hidden = {"type": "redacted_thinking", "data": "zz"}
    request = parsed(messages=[*BODY["messages"], {"role": "assistant", "content": [thought, hidden, text("Blue.")]}])
    assert request.chat.messages[1] == {
        "role": "assistant",
        "content": "Blue.",
        "reasoning_content": "Rayleigh",
        "thinking_blocks": [thought, hidden],
    }
    assert request.is_marked


def test_input_that_was_no_object_is_returned_as_the_model_wrote_it() -> None:
    call = {**CALL, "input": {"INVALID_JSON": '{"a": '}}
    assistant = chat(*BODY["messages"], {"role": "assistant", "content": [call]})[1]
    assert assistant["tool_calls"][0]["function"]["arguments"] == '{"a": '
    assert assistant["content"] is None


def test_marks_for_the_cache_stay_where_they_are() -> None:
    request = parsed(
        messages=[user(text("Why?", cache_control=CACHED)),
                  {"role": "assistant", "content": [{**CALL, "cache_control": CACHED}]},
                  user({"type": "tool_result", "tool_use_id": "toolu_1", "content": "2", "cache_control": CACHED})],
        tools=[{**TOOL, "cache_control": CACHED}],
    )  # fmt: skip
    first, second, third = request.chat.messages
    assert request.is_marked
    assert first["content"] == [text("Why?", cache_control=CACHED)]
    assert second["tool_calls"][0]["cache_control"] == CACHED
    assert third["cache_control"] == CACHED
    assert request.chat.body["tools"][0]["cache_control"] == CACHED


def test_system_messages_within_the_conversation() -> None:
    messages = chat(
        user(text("Why?"), {"type": "mid_conv_system", "content": [text("Be kind.")]}),
        {"role": "system", "content": [text("Be brief.")]},
    )
    assert messages == [
        {"role": "user", "content": "Why?"},
        {"role": "system", "content": "Be kind."},
        {"role": "system", "content": "Be brief."},
    ]


def test_tools_are_functions() -> None:
    body = parsed(tools=[{**TOOL, "type": "custom", "strict": True}]).chat.body
    function = {"name": "add", "description": "Adds.", "parameters": TOOL["input_schema"], "strict": True}
    assert body["tools"] == [{"type": "function", "function": function}]


def test_a_tool_that_claude_alone_knows_is_left_to_the_engine() -> None:
    bash = {"type": "bash_20250124", "name": "bash"}
    request = parsed(tools=[TOOL, bash])
    assert request.chat.body["tools"][1] == bash
    assert request.foreign_tool == (1, "bash_20250124")


@pytest.mark.parametrize(
    ("choice", "fields"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "tool", "name": "add"}, {"tool_choice": {"type": "function", "function": {"name": "add"}}}),
        (
            {"type": "auto", "disable_parallel_tool_use": True},
            {"tool_choice": "auto", "parallel_tool_calls": False},
        ),
    ],
)
def test_the_choice_of_tools(choice: dict[str, Any], fields: dict[str, Any]) -> None:
    body = parsed(tools=[TOOL], tool_choice=choice).chat.body
    assert {name: body[name] for name in ("tool_choice", "parallel_tool_calls") if name in body} == fields
    assert "tool_choice" not in parsed(tool_choice=choice).chat.body


@pytest.mark.parametrize("place", ["output_config", "output_format"])
def test_a_schema_is_the_response_format(place: str) -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    request = parsed(**{place: {"format": form} if place == "output_config" else form})
    assert request.chat.body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "output", "strict": True, "schema": {"type": "object"}},
    }


@pytest.mark.parametrize(
    ("thinking", "in_chat", "shown"),
    [
        ({"type": "enabled", "budget_tokens": 2000}, {"type": "enabled"}, True),
        ({"type": "adaptive"}, None, True),
        ({"type": "disabled"}, None, False),
        ({"type": "of tomorrow"}, None, False),
        ("yes", None, False),
    ],
)
def test_thinking_is_never_refused(thinking: Any, in_chat: Any, *, shown: bool) -> None:
    request = parsed(thinking=thinking)
    assert request.chat.body.get("thinking") == in_chat
    assert request.shows_thinking == shown
    assert request.passed["thinking"] == thinking


def test_other_fields_are_neither_refused_nor_in_the_chat() -> None:
    other = {"api_base": "http://a", "n": 5, "max_new_tokens": 3, "Max_Tokens": 7, "context_management": {"edits": []},
             "container": "c", "mcp_servers": [], "service_tier": "auto", "betas": ["x"],
             "output_config": {"effort": "max", "of tomorrow": 1}}  # fmt: skip
    request = parsed(**other)
    assert request.chat.body == BODY
    assert request.passed == {
        "context_management": {"edits": []},
        "service_tier": "auto",
        "output_config": {"effort": "max"},
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"stop_sequences": ["x"] * (MAX_STOPS + 1)}, "stop_sequences"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [user()]}, "messages[0].content"),
        ({"messages": [user({"type": "image_url"})]}, "messages[0].content[0].type"),
        ({"messages": [user({"type": "text"})]}, "messages[0].content[0].text"),
        ({"messages": [user(CALL)]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "1"}]}]},
         "messages[0].content[0].type"),
        ({"messages": [user({"type": "document", "source": {"type": "base64", "data": "JVBE"}})]},
         "messages[0].content[0].source.type"),
        ({"messages": [user({"type": "image", "source": {"type": "file", "file_id": "f"}})]},
         "messages[0].content[0].source.type"),
        ({"messages": [user({"type": "image", "source": {"type": "base64", "data": "AAAA"}})]},
         "messages[0].content[0].source"),
        ({"messages": [user({"type": "tool_result", "tool_use_id": "1", "content": [{"type": "tool_use"}]})]},
         "messages[0].content[0].content[0].type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"system": [{"text": "Hi"}]}, "system[0].type"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_by_its_path(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parsed(**fields)
    assert refused.value.param == param
    assert f"'{param}" in refused.value.message


def test_tokens_can_be_counted_without_a_limit() -> None:
    body = {name: value for name, value in BODY.items() if name != "max_tokens"}
    request = parse_count_tokens(orjson.dumps({**body, "tools": [TOOL]}))
    assert request.chat.max_tokens is None
    assert [tool["function"]["name"] for tool in request.chat.body["tools"]] == ["add"]
    with pytest.raises(InvalidRequest, match="'max_tokens' is required"):
        parse_messages(orjson.dumps(body))


@pytest.mark.parametrize("value", ["a\nb", "é", "x" * (MAX_HEADER_CHARS + 1)])
def test_headers_are_short_text(value: str) -> None:
    check_header("anthropic-beta", "x" * MAX_HEADER_CHARS)
    with pytest.raises(InvalidRequest, match="'anthropic-beta'"):
        check_header("anthropic-beta", value)


def test_a_thread_is_rejected_in_the_way_after_which_clients_send_all_messages() -> None:
    """The tool runners of Anthropic's SDKs ask the server to store the conversation."""
    with pytest.raises(InvalidRequest, match="Send all messages") as raised:
        parsed(thread={"type": "create"})
    assert raised.value.param == "thread"
    error = anthropic_error(raised.value, "req_1")["error"]
    assert (error["type"], error["details"]) == (
        "invalid_request_error",
        {"error_code": "thread_unsupported_request"},
    )
    assert parsed(thread=None).chat.body == BODY
