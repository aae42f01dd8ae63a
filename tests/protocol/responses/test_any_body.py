"""Any body of /v1/responses is rejected with its field, or becomes a valid chat."""

from __future__ import annotations

import re
from typing import Any

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.errors import GatewayError, InvalidRequest, NotFound
from gateway.protocol.chat import parse_chat
from gateway.protocol.responses.events import ResponseWriter
from gateway.protocol.responses.request import parse_responses

_PIXEL = "data:image/png;base64,AAAA"
_FUNCTION: dict[str, Any] = {"type": "function", "name": "f", "description": "F", "parameters": {}, "strict": True}
_TOOLS: list[dict[str, Any]] = [
    _FUNCTION,
    {"type": "custom", "name": "c", "format": {"type": "grammar", "syntax": "lark", "definition": "start: A"}},
    {"type": "namespace", "name": "n", "description": "N", "tools": [_FUNCTION, {"type": "custom", "name": "c"}]},
    {"type": "tool_search", "execution": "client", "description": "S", "parameters": {}},
    {"type": "web_search", "external_web_access": False},
]
_PARTS = [
    {"type": "input_text", "text": "a"},
    {"type": "output_text", "text": "b"},
    {"type": "input_image", "image_url": _PIXEL, "detail": "low"},
    {"type": "input_file", "file_data": "data:,a", "filename": "a"},
    {"type": "refusal", "refusal": "No."},
]
_ITEMS: list[dict[str, Any]] = [
    {"role": "user", "content": "a"},
    {"type": "message", "role": "user", "content": _PARTS[:4]},
    {"type": "message", "role": "developer", "content": _PARTS[:2]},
    {"type": "message", "role": "assistant", "content": [_PARTS[1], _PARTS[4]], "id": "msg_1", "status": "completed"},
    {"type": "function_call", "call_id": "1", "name": "f", "namespace": "n", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "1", "output": "a"},
    {"type": "function_call_output", "call_id": "1", "output": _PARTS[:4]},
    {"type": "custom_tool_call", "call_id": "2", "name": "c", "input": "a"},
    {"type": "custom_tool_call_output", "call_id": "2", "output": _PARTS[:1]},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "a"}], "encrypted_content": "gkt1.YQ=="},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "a"}]},
    {"type": "additional_tools", "role": "developer", "tools": _TOOLS},
    {"type": "tool_search_call", "call_id": "3", "execution": "client", "arguments": {"query": "a"}},
    {"type": "tool_search_output", "call_id": "3", "execution": "client", "tools": _TOOLS[:3]},
    {"type": "web_search_call", "id": "ws_1"},
]
_FIELDS: dict[str, Any] = {
    "instructions": "a",
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    "text": {"format": {"type": "json_schema", "name": "a", "schema": {}, "strict": True}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
    "metadata": {"a": "b"},
    "max_output_tokens": 16,
    "previous_response_id": "resp_1",
    "background": False,
    "store": True,
    "stream": True,
    "top_logprobs": 2,
    "unknown": {"headers": {}},
}
_OTHERS = st.sampled_from(
    [None, True, 5, "", "a", "user", "tool", "input_text", "function", "namespace", "gkt1.!", [], ["a"], [[]], {}, [{}],
     {"type": "a"}, {"type": []}, [{"type": {}}], {"a": "b"}]
)  # fmt: skip


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """Draw a value with another value somewhere in it, or without a part."""
    if isinstance(value, dict) and value and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(value)))
        if draw(st.integers(0, 3)) == 0:
            return {key: part for key, part in value.items() if key != name}
        return {**value, name: draw(changed(value[name]))}
    if isinstance(value, list) and value and draw(st.booleans()):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(changed(value[at])), *value[at + 1 :]]
    return draw(_OTHERS)


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a body with items, tools and fields of all kinds; most of them with one change."""
    body: dict[str, Any] = {"model": "chat", "input": draw(st.lists(st.sampled_from(_ITEMS), min_size=1, max_size=6))}
    body["tools"] = draw(st.lists(st.sampled_from(_TOOLS), max_size=4))
    body |= {name: _FIELDS[name] for name in draw(st.sets(st.sampled_from(sorted(_FIELDS)), max_size=4))}
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(body)))
        body[name] = draw(changed(body[name]))
    return body


@settings(max_examples=500, deadline=None)
@given(bodies())
@example({"model": "chat", "input": [{"type": {}}]})
@example({"model": "chat", "input": [{"role": "user", "content": []}]})
def test_any_body_is_rejected_or_becomes_a_chat(body: dict[str, Any]) -> None:
    """No other exception is raised. The error names a field of the body."""
    history = [_ITEMS[0], _ITEMS[4], _ITEMS[7], _ITEMS[12]]
    try:
        request = parse_responses(orjson.dumps(body))
        if request.needs_stored:
            request = request.with_items([*history, *request.items], request.size_bytes)
        chat = request.chat()
    except (InvalidRequest, NotFound) as error:
        refused: GatewayError = error
    else:
        again = parse_chat(orjson.dumps(chat.body))
        assert again.body == chat.body
        assert (again.max_tokens, again.stream) == (chat.max_tokens, chat.stream)
        assert again.non_text_parts == chat.non_text_parts
        orjson.dumps(ResponseWriter(request, "req_1", 1).response)
        return
    assert refused.param is not None
    assert re.split(r"[.\[]", refused.param)[0] in {*body, "model", "input"}
