"""The part of a request that is collected."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.protocol.anthropic.request import parse_messages
from gateway.protocol.chat import parse_chat
from gateway.protocol.responses.request import parse_responses
from gateway.protocol.text import parse_text_completion
from gateway.quality.request_line import MAX_REQUEST_BYTES, Uncollectable, request_line

USER = {"role": "user", "content": "Why is the sky blue?"}


def line_of(**body: Any) -> dict[str, Any]:
    raw = orjson.dumps({"model": "chat", "messages": [USER], **body})
    found: dict[str, Any] = orjson.loads(request_line(parse_chat(raw), "chat", "req_1", 1_780_000_000))
    return found


def reason_of(**body: Any) -> str:
    with pytest.raises(Uncollectable) as skipped:
        line_of(**body)
    return skipped.value.reason


def test_a_line_has_the_texts_and_the_parameters_and_nothing_that_names_the_caller() -> None:
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        USER | {"name": "alice"},
        {"role": "assistant", "content": "Scattering."},
        {"role": "user", "content": "And red?"},
    ]
    line = line_of(messages=turns, max_tokens=90, stop="END", temperature=0.5, user="alice", metadata={"mail": "a@b.c"})
    assert line == {
        "id": "req_1",
        "route": "chat",
        "created": 1_780_000_000,
        "messages": [
            {"role": "system", "content": "Be brief."},
            USER,
            {"role": "assistant", "content": "Scattering."},
            {"role": "user", "content": "And red?"},
        ],
        "max_tokens": 90,
        "stop": ["END"],
        "temperature": 0.5,
    }


@pytest.mark.parametrize(
    ("reason", "body"),
    [
        ("opted_out", {"store": False}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        ("tools", {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}, USER]}),
        ("tools", {"messages": [USER, {"role": "tool", "tool_call_id": "1", "content": "4"}]}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        ("n", {"n": 2}),
        ("field_not_known", {"new_field": 1}),
        ("not_text", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
        ("not_text", {"messages": [USER, {"role": "assistant", "content": "It"}]}),
        ("too_large", {"messages": [{"role": "user", "content": "x" * MAX_REQUEST_BYTES}]}),
        ("too_large", {"messages": [{"role": "user", "content": "x" * 10 * MAX_REQUEST_BYTES}]}),
        # Not one of its messages is read.
        ("too_large", {"messages": [{"role": "tool", "content": ""}, *[{"role": "user", "content": ""}] * 3600]}),
    ],
)
def test_requests_that_an_evaluation_cannot_repeat_are_skipped_with_a_reason(reason: str, body: dict[str, Any]) -> None:
    assert reason_of(**body) == reason


def test_store_true_and_no_store_are_collected() -> None:
    assert line_of(store=True)["messages"] == line_of()["messages"] == [USER]


def test_a_raw_prompt_is_skipped() -> None:
    request = parse_text_completion(orjson.dumps({"model": "chat", "prompt": "Once"}))
    with pytest.raises(Uncollectable, match="not_text"):
        request_line(request, "chat", "req_1", 0)


def test_requests_of_the_other_apis_are_collected_as_chats() -> None:
    anthropic = {"model": "chat", "max_tokens": 50, "system": "Be brief.", "messages": [USER]}
    responses = {"model": "chat", "instructions": "Be brief.", "input": "Why is the sky blue?"}
    expected = [{"role": "system", "content": "Be brief."}, USER]
    for request in (
        parse_messages(orjson.dumps(anthropic)).chat,
        parse_responses(orjson.dumps(responses)).chat(),
    ):
        found = orjson.loads(request_line(request, "chat", "req_1", 0))["messages"]
        assert [one | {"role": one["role"].replace("developer", "system")} for one in found] == expected
    unstored = parse_responses(orjson.dumps(responses | {"store": False})).chat()
    with pytest.raises(Uncollectable, match="opted_out"):
        request_line(unstored, "chat", "req_1", 0)
