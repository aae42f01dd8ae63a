from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.errors import InvalidRequest
from gateway.protocol.chat import MAX_MESSAGES, ChatRequest, parse_chat

USER = {"role": "user", "content": "Why?"}
WHY = {"type": "text", "text": "Why?"}
BLANK = {"type": "text", "text": " \n"}
LEAST = {"model": "m", "messages": [USER]}


def rejection(raw: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(raw)
    assert caught.value.status == 400
    return caught.value


def parsed(**fields: Any) -> ChatRequest:
    return parse_chat(orjson.dumps({**LEAST, **fields}))


def messages(*contents: Any) -> dict[str, Any]:
    return {"messages": list(contents)}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"not json",
        b'{"model": "m",}',
        b"\xff\xfe",
        b'{"model": "m\xff"}',
        b'{"temperature": NaN}',
        b'{"temperature": 1e999}',
        b"[" * 250,
        b"[]",
        b"null",
        b"7",
        b'"text"',
    ],
)
def test_a_body_that_is_no_json_object_names_no_field(raw: bytes) -> None:
    """There is no field to name."""
    error = rejection(raw)
    assert error.param is None
    assert "JSON object with 'model' and 'messages'" in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": "Why?"}, "messages"),
        (messages("Why?"), "messages[0]"),
        (messages(USER, None), "messages[1]"),
        (messages({"content": "Why?"}), "messages[0].role"),
        (messages({"role": "", "content": "Why?"}), "messages[0].role"),
        (messages({"role": 1, "content": "Why?"}), "messages[0].role"),
        (messages({"role": "user", "content": 5}), "messages[0].content"),
        (messages({"role": "user", "content": {}}), "messages[0].content"),
        (messages({"role": "user", "content": ["Why?"]}), "messages[0].content[0]"),
        (messages({"role": "user"}), "messages[0].content"),
        (messages(USER, {"role": "user", "content": None}), "messages[1].content"),
        (messages({"role": "user", "content": []}), "messages[0].content"),
        (messages({"role": "user", "content": [{}]}), "messages[0].content[0].type"),
        (messages({"role": "user", "content": [WHY, {"type": 5}]}), "messages[0].content[1].type"),
        (messages({"role": "user", "content": [WHY, {"type": "", "text": "x"}]}), "messages[0].content[1].type"),
        (messages({"role": "user", "content": [{"type": "text"}]}), "messages[0].content[0].text"),
        (messages({"role": "user", "content": [WHY, {"type": "text", "text": 5}]}), "messages[0].content[1].text"),
        (messages({"role": "system"}, USER), "messages[0].content"),
        (messages(USER, {"role": "assistant", "content": []}), "messages[1].content"),
        (messages(USER, {"role": "tool", "content": [{"type": "text"}]}), "messages[1].content[0].text"),
        (messages(USER, {"role": "tool", "content": None}), "messages[1].content"),
        (messages(USER, {"role": "tool", "tool_call_id": "1"}), "messages[1].content"),
        (messages(USER, {"role": "foo", "content": "Why?"}), "messages[1].role"),
        (messages({"role": "User", "content": [WHY]}), "messages[0].role"),
        ({"logit_bias": "x"}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"50256": "x"}}, "logit_bias"),
        ({"user": 5}, "user"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"presence_penalty": -2.1}, "presence_penalty"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": True}, "n"),
        ({"n": 1.5}, "n"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": True}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"top_logprobs": 1, "logprobs": False}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": []}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": True}, "max_completion_tokens"),
        ({"max_completion_tokens": 0, "max_tokens": 5}, "max_completion_tokens"),
        ({"max_completion_tokens": 5, "max_tokens": 5}, "max_tokens"),
        ({"seed": "7"}, "seed"),
        ({"seed": False}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": ["1", "2", "3", "4", "5"]}, "stop"),
        ({"stop": ["1", 2]}, "stop[1]"),
        ({"stop": "x" * 1001}, "stop"),
        ({"stop": ["1", "x" * 1001]}, "stop[1]"),
        ({"stop": {}}, "stop"),
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {}}, "stream_options"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream_options": {"include_usage": True}, "stream": False}, "stream_options"),
        ({"stream_options": [], "stream": True}, "stream_options"),
        ({"stream_options": {"include_usage": 1}, "stream": True}, "stream_options.include_usage"),
        ({"tools": {}}, "tools"),
        ({"tools": ["f"]}, "tools[0]"),
        ({"functions": "f"}, "functions"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": None}}, "response_format.type"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], param: str) -> None:
    """The error's `param` and message have OpenAI's name of the field, and no Python type names."""
    error = rejection(orjson.dumps({**LEAST, **fields}))
    assert error.param == param
    assert error.message.startswith(f"'{param}'")
    assert "`" not in error.message


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_field_is_named(missing: str) -> None:
    """Both fields are required."""
    error = rejection(orjson.dumps({key: value for key, value in LEAST.items() if key != missing}))
    assert (error.param, error.message) == (missing, f"'{missing}' is required.")


def test_the_error_names_the_allowed_values() -> None:
    """A bound, or the allowed types."""
    assert rejection(orjson.dumps({**LEAST, "n": 0})).message == "'n': expected an integer >= 1."
    message = rejection(orjson.dumps({**LEAST, "stop": 5})).message
    assert message == "'stop': expected a string or a list or null, got an integer."


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0, "top_p": 0, "presence_penalty": -2, "frequency_penalty": 2, "n": 1, "top_logprobs": 0},
        {
            "temperature": 2,
            "top_p": 1,
            "presence_penalty": 2,
            "frequency_penalty": -2,
            "n": 128,
            "logprobs": True,
            "top_logprobs": 20,
        },
        {"temperature": None, "top_p": None, "n": None, "stop": None, "stream": None, "max_tokens": None, "seed": None},
        {"max_tokens": 1, "seed": -1, "stop": [], "tools": [], "stream": False, "stream_options": None},
        {"stream": True, "stream_options": {"include_usage": True, "unknown": 1}},
        {"unknown": {"a": [1, None, {"b": "c"}]}, "top_k": 40, "chat_template_kwargs": {"enable_thinking": False}},
        {"temperature": 0.1 + 0.2, "seed": 2**64 - 1, "user": "日本 😀"},
        messages({"role": "user", "content": [{"type": "text", "text": "Why?"}, {"type": "image_url", "x": 1}]}),
        {"logit_bias": {"50256": -100, "1": 0.5}, "user": None},
        messages({"role": "user", "content": [WHY, BLANK, WHY]}),
        messages({"role": "user", "content": [{"type": "text", "text": ""}, {"type": "input_audio"}]}),
        messages({"role": "user", "content": [{"type": "file"}]}, {"role": "user", "content": [{"type": "x_video"}]}),
        messages({"role": "system", "content": [WHY]}, {"role": "developer", "content": [WHY]}, USER),
        messages(USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}),
        messages(USER, {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}),
        messages(USER, {"role": "assistant", "function_call": {"name": "f"}}, {"role": "function", "content": None}),
        messages(USER, {"role": "assistant", "refusal": "No."}, {"role": "assistant", "audio": {"id": "1"}}),
        messages(USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}),
        messages(USER, {"role": "assistant", "content": [BLANK, WHY]}, {"role": "assistant", "content": [BLANK]}),
        messages(USER, {"role": "assistant", "content": ""}, {"role": "assistant", "content": "Because"}),
        messages(USER, {"role": "tool", "tool_call_id": "1", "content": ""}),
        messages({"role": "user", "content": ""}),
        messages({"role": "user", "content": " \n\u3000"}),
        messages({"role": "system", "content": ""}, {"role": "developer", "content": ""}, USER),
        messages({"role": "system", "content": [BLANK, BLANK]}, {"role": "user", "content": [BLANK]}),
        messages(USER, {"role": "tool", "tool_call_id": "1", "content": [BLANK]}),
    ],
)
def test_a_good_body_is_kept_verbatim(fields: dict[str, Any]) -> None:
    """Including unknown fields, content parts, messages without content, and all digits."""
    raw = orjson.dumps({**LEAST, **fields})
    chat = parse_chat(raw)
    assert orjson.dumps(chat.body) == raw
    assert chat.messages == {**LEAST, **fields}["messages"]
    assert chat.size_bytes == len(raw)


def test_a_minimal_body_has_the_defaults() -> None:
    """Every default means absence."""
    assert parsed() == ChatRequest(
        body=LEAST, model="m", max_tokens=None, stop=(), stream=False, wants_usage=False,
        size_bytes=len(orjson.dumps(LEAST)),
    )  # fmt: skip


def test_a_rejected_combination_says_how_to_correct_it() -> None:
    """The messages name both fields, as OpenAI's do."""
    both = rejection(orjson.dumps({**LEAST, "max_tokens": 5, "max_completion_tokens": 5})).message
    assert "Send 'max_completion_tokens' only." in both
    alone = rejection(orjson.dumps({**LEAST, "top_logprobs": 2})).message
    assert "Set 'logprobs' to true, or remove 'top_logprobs'." in alone


@pytest.mark.parametrize(
    ("fields", "limit", "field"),
    [
        ({}, None, "max_tokens"),
        ({"max_tokens": 5}, 5, "max_tokens"),
        ({"max_completion_tokens": 6}, 6, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": None}, 5, "max_tokens"),
    ],
)
def test_the_token_limit_is_in_the_callers_field(fields: dict[str, Any], limit: int | None, field: str) -> None:
    """Either of OpenAI's two names."""
    chat = parsed(**fields)
    assert (chat.max_tokens, chat.limit_field) == (limit, field)


@pytest.mark.parametrize(
    ("stop", "read"), [(None, ()), ("", ()), ("x", ("x",)), ([], ()), (["x", "", "y"], ("x", "y")), ([""], ())]
)
def test_stop_strings_are_a_tuple_without_empty_ones(stop: Any, read: tuple[str, ...]) -> None:
    assert parsed(stop=stop).stop == read


@pytest.mark.parametrize(
    ("options", "wants"),
    [(None, False), ({}, False), ({"include_usage": False}, False), ({"include_usage": True}, True)],
)
def test_usage_in_a_stream_is_sent_on_request(options: Any, wants: bool) -> None:
    """Without the request's option, a stream has no usage."""
    assert parsed(stream=True, stream_options=options).wants_usage is wants


@pytest.mark.parametrize("fields", [{}, {"content": None}, {"content": None, "tool_calls": []}, {"refusal": None}])
def test_an_assistant_message_without_content_gets_an_empty_text(fields: dict[str, Any]) -> None:
    """Templates would render null as a word."""
    assert parsed(**messages(USER, {"role": "assistant", **fields})).messages[1]["content"] == ""


def test_null_content_is_kept_with_tool_calls() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    spoken = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert parsed(**messages(USER, spoken)).messages[1] == spoken


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "n", "seed", "top_logprobs"])
def test_an_integer_may_be_sent_as_a_float(field: str) -> None:
    """The engine gets an integer."""
    kept = parse_chat(orjson.dumps({**LEAST, "logprobs": True})[:-1] + b',"%b":5.0}' % field.encode()).body[field]
    assert (kept, type(kept)) == (5, int)
    assert rejection(orjson.dumps({**LEAST, field: 5.5})).param == field
    assert rejection(orjson.dumps({**LEAST, field: 1e300})).param == field


def test_content_parts_without_text_are_counted() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    assert parsed(**messages({"role": "user", "content": [WHY, picture, picture]}, USER)).non_text_parts == 2


def test_the_number_of_messages_is_limited() -> None:
    assert len(parsed(messages=[USER] * MAX_MESSAGES).messages) == MAX_MESSAGES
    error = rejection(orjson.dumps({**LEAST, "messages": [USER] * (MAX_MESSAGES + 1)}))
    assert error.param == "messages"
    assert str(MAX_MESSAGES) in error.message


def nested(levels: int, open_bracket: bytes = b"[", closing: bytes = b"]") -> bytes:
    return orjson.dumps(LEAST)[:-1] + b',"deep":' + open_bracket * levels + b"1" + closing * levels + b"}"


@pytest.mark.parametrize(("open_bracket", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_a_body_that_is_too_deep_to_encode_is_rejected(open_bracket: bytes, closing: bytes) -> None:
    """The body can be decoded, and would fail on its way to the engine."""
    assert parse_chat(nested(253, open_bracket, closing)).model == "m"
    for levels in (254, 500, 1_000, 1_023, 1_024, 100_000):
        assert rejection(nested(levels, open_bracket, closing)).param is None


def test_a_wide_body_is_not_deep() -> None:
    """A thousand brackets side by side are allowed."""
    assert parsed(many=[[] for _ in range(1_000)], text="[{" * 1_000).model == "m"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"api_base": "http://169.254.169.254"}, "api_base"),
        ({"base_url": "http://x"}, "base_url"),
        ({"api_key": "sk-x"}, "api_key"),
        ({"extra_headers": {"Authorization": "x"}}, "extra_headers"),
        ({"custom_llm_provider": "openai"}, "custom_llm_provider"),
        ({"mock_response": "x"}, "mock_response"),
        ({"fallbacks": [{"model": "m"}]}, "fallbacks"),
        ({"user_config": {"model_list": [{"litellm_params": {"api_base": "http://x"}}]}}, "user_config"),
        ({"extra_body": {"api_base": "http://x"}}, "extra_body.api_base"),
        ({"deep": [1, {"er": [[{"base_url": "http://x"}]]}]}, "deep[1].er[0][0].base_url"),
        ({"kv_transfer_params": {"remote_host": "x", "remote_port": 1}}, "kv_transfer_params"),
        ({"bootstrap_host": "x"}, "bootstrap_host"),
    ],
)
def test_fields_for_destinations_and_credentials_are_rejected(fields: dict[str, Any], param: str) -> None:
    """An engine may itself be a gateway that reads them from the body, at any depth."""
    error = rejection(orjson.dumps({**LEAST, **fields}))
    assert error.param == param
    assert "169.254" not in error.message


def test_names_in_the_callers_content_are_allowed() -> None:
    """A function may have a parameter api_key, and a schema a property base_url. A null value is allowed."""
    schema = {"type": "object", "properties": {"api_key": {"type": "string"}, "base_url": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    form = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
    nested = {"nvext": {"guided_json": schema}}
    assert parsed(tools=[tool], response_format=form, metadata={"api_key": "x"}, api_base=None, **nested)


def test_a_deep_body_is_checked_to_its_end() -> None:
    """The depth of the body is just below the limit."""
    raw = b'{"model": "m", "messages": [{"role": "user", "content": "Why?"}], "x": ' + b"[" * 250 + b'{"api_base": 1}'
    assert (rejection(raw + b"]" * 250 + b"}").param or "").endswith(".api_base")
