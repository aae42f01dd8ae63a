"""The checkers of this folder accept a correct stream and reject each fault."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from openai.types.responses import Response, ResponseStreamEvent

from tests.conformance.messages_grammar import MessagesGrammar
from tests.conformance.published_schemas import members_by_type, model_errors
from tests.conformance.responses_grammar import ResponsesGrammar
from tests.conformance.sse import Event, read_events

if TYPE_CHECKING:
    from collections.abc import Callable

Events = list[dict[str, Any]]
EXTRA = frozenset({"name"})
"""OpenAI's document requires the function's name in function_call_arguments.done; its SDK's type lacks it."""

RESPONSE: dict[str, Any] = {
    "id": "resp_1", "object": "response", "created_at": 1, "status": "in_progress", "error": None,
    "incomplete_details": None, "model": "m", "output": [], "parallel_tool_calls": True, "tool_choice": "auto",
    "tools": [], "usage": None,
}  # fmt: skip
USAGE = {
    "input_tokens": 1, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}, "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 3,
}  # fmt: skip


def responses_stream() -> Events:
    """Return a stream of a message of two deltas and a function call of two deltas."""
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    call = {
        "id": "fc_1",
        "type": "function_call",
        "call_id": "c",
        "name": "f",
        "arguments": "",
        "status": "in_progress",
    }
    whole_part = {**part, "text": "Hello."}
    whole = {**message, "status": "completed", "content": [whole_part]}
    whole_call = {**call, "status": "completed", "arguments": "{}"}
    final = {**RESPONSE, "status": "completed", "output": [whole, whole_call], "usage": USAGE}
    at: dict[str, Any] = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    at_call: dict[str, Any] = {"item_id": "fc_1", "output_index": 1}
    events: Events = [
        {"type": "response.created", "response": RESPONSE},
        {"type": "response.in_progress", "response": RESPONSE},
        {"type": "response.output_item.added", "output_index": 0, "item": message},
        {"type": "response.content_part.added", **at, "part": part},
        {"type": "response.output_text.delta", **at, "delta": "Hel", "logprobs": []},
        {"type": "response.output_text.delta", **at, "delta": "lo.", "logprobs": []},
        {"type": "response.output_text.done", **at, "text": "Hello.", "logprobs": []},
        {"type": "response.content_part.done", **at, "part": whole_part},
        {"type": "response.output_item.done", "output_index": 0, "item": whole},
        {"type": "response.output_item.added", "output_index": 1, "item": call},
        {"type": "response.function_call_arguments.delta", **at_call, "delta": "{"},
        {"type": "response.function_call_arguments.delta", **at_call, "delta": "}"},
        {"type": "response.function_call_arguments.done", **at_call, "arguments": "{}", "name": "f"},
        {"type": "response.output_item.done", "output_index": 1, "item": whole_call},
        {"type": "response.completed", "response": final},
    ]
    return [{**copy.deepcopy(event), "sequence_number": number} for number, event in enumerate(events)]


def messages_stream() -> Events:
    """Return a stream of a text block of two deltas and a tool_use block of two deltas."""
    usage = {"input_tokens": 1, "output_tokens": 0}
    message = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
        "stop_sequence": None, "usage": usage,
    }  # fmt: skip
    tool = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    return copy.deepcopy([
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hel"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lo."}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": tool},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a"'}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": ": 1}"}},
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": {
            "output_tokens": 2}},
        {"type": "message_stop"},
    ])  # fmt: skip


def read(events: Events) -> list[Event]:
    """Return the events after a round trip as bytes."""
    lines = (b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event)) for event in events)
    return read_events(b"".join(lines))


def numbered(events: Events) -> Events:
    """Return the events with correct sequence numbers, so that a check of the numbers does not find another fault."""
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def edit(index: int, *path: str | int, to: Any) -> Callable[[Events], Events]:
    """Return a fault: one value of one event is another."""

    def fault(events: Events) -> Events:
        value: Any = events[index]
        for key in path[:-1]:
            value = value[key]
        assert value[path[-1]] != to
        value[path[-1]] = to
        return events

    return fault


def drop(index: int) -> Callable[[Events], Events]:
    return lambda events: numbered([*events[:index], *events[index + 1 :]])


def twice(index: int) -> Callable[[Events], Events]:
    return lambda events: numbered([*events[: index + 1], events[index], *events[index + 1 :]])


def swap(index: int) -> Callable[[Events], Events]:
    return lambda events: numbered([*events[:index], events[index + 1], events[index], *events[index + 2 :]])


def test_correct_streams_are_accepted() -> None:
    """The streams below, to which the faults are added."""
    response = ResponsesGrammar().read(read(responses_stream()))
    assert model_errors(Response, response) == []
    events = members_by_type(ResponseStreamEvent)
    errors = [model_errors(events[event["type"]], event, EXTRA) for event in responses_stream()]
    assert errors == [[]] * 15
    message = MessagesGrammar().read(read(messages_stream()))
    assert [block.get("text", block.get("input")) for block in message["content"]] == ["Hello.", {"a": 1}]
    assert message["usage"] == {"input_tokens": 1, "output_tokens": 2}


@pytest.mark.parametrize("index", range(15))
def test_each_event_of_a_response_is_required_once(index: int) -> None:
    """Without one event, or with one of them twice, the stream is wrong."""
    for fault in (drop(index), twice(index)):
        with pytest.raises(AssertionError):
            ResponsesGrammar().read(read(fault(responses_stream())))


@pytest.mark.parametrize("index", [index for index in range(14) if index not in {0, 4, 8, 10}])
def test_the_order_of_a_responses_events_matters(index: int) -> None:
    """Equal events and deltas of one text may change places, and an item may begin before the end of another one."""
    with pytest.raises(AssertionError):
        ResponsesGrammar().read(read(swap(index)(responses_stream())))


@pytest.mark.parametrize(
    "fault",
    [
        edit(5, "sequence_number", to=6),
        edit(5, "item_id", to="msg_2"),
        edit(5, "output_index", to=1),
        edit(5, "content_index", to=1),
        edit(5, "delta", to="lo"),
        edit(5, "logprobs", to=[{"token": "lo."}]),
        edit(6, "text", to="Hello"),
        edit(7, "part", "text", to="Hello"),
        edit(7, "part", "type", to="refusal"),
        edit(8, "item", "id", to="msg_2"),
        edit(8, "item", "status", to="in_progress"),
        edit(8, "item", "content", to=[]),
        edit(9, "item", "id", to="msg_1"),
        edit(9, "item", "arguments", to="{"),
        edit(12, "arguments", to="{"),
        edit(12, "name", to="g"),
        edit(13, "item", "call_id", to="d"),
        edit(13, "item", "arguments", to="{"),
        edit(14, "response", "id", to="resp_2"),
        edit(14, "response", "status", to="incomplete"),
        edit(14, "response", "output", to=[]),
        edit(14, "response", "error", to={"code": "server_error", "message": "m"}),
        edit(1, "response", "model", to="n"),
    ],
)
def test_each_fault_of_a_response_is_found(fault: Callable[[Events], Events]) -> None:
    """The checker rejects a stream with one wrong value."""
    with pytest.raises(AssertionError):
        ResponsesGrammar().read(read(fault(responses_stream())))


@pytest.mark.parametrize("index", range(11))
def test_each_event_of_a_message_is_required_once(index: int) -> None:
    """A delta that is missing or repeated changes the message: see the next test."""
    changes_text = index in {2, 3, 6, 7}
    for fault in (drop(index), twice(index)):
        try:
            message = MessagesGrammar().read(read(fault(messages_stream())))
        except (AssertionError, orjson.JSONDecodeError):
            continue
        assert changes_text
        assert message["content"] != MessagesGrammar().read(read(messages_stream()))["content"]


@pytest.mark.parametrize(
    "fault",
    [
        edit(0, "message", "content", to=[{"type": "text", "text": ""}]),
        edit(0, "message", "stop_reason", to="end_turn"),
        edit(1, "index", to=1),
        edit(1, "content_block", "text", to="H"),
        edit(2, "index", to=1),
        edit(2, "delta", to={"type": "thinking_delta", "thinking": "H"}),
        edit(4, "index", to=1),
        edit(5, "index", to=2),
        edit(5, "content_block", "input", to={"a": 1}),
        edit(9, "delta", "stop_reason", to=None),
        swap(8),
        swap(9),
    ],
)
def test_each_fault_of_a_message_is_found(fault: Callable[[Events], Events]) -> None:
    """The checker rejects a stream with one wrong value, or with two events in the wrong order."""
    with pytest.raises(AssertionError):
        MessagesGrammar().read(read(fault(messages_stream())))


@pytest.mark.parametrize(
    "raw",
    [
        b'data: {"type": "ping"}\n\n',
        b'event: pong\ndata: {"type": "ping"}\n\n',
        b'event: ping\ndata: {"type": "ping"}\n',
        b'event: ping\nid: 1\ndata: {"type": "ping"}\n\n',
    ],
    ids=["no name", "another name", "no end", "another line"],
)
def test_faults_of_the_framing_are_found(raw: bytes) -> None:
    """Clients would read most of these."""
    with pytest.raises(AssertionError):
        read_events(raw)


def test_the_type_of_an_sdk_is_applied_strictly() -> None:
    """Missing and unknown fields, wrong values and numbers in strings are reported, with their paths."""
    response = {**RESPONSE, "output": [{"id": "msg_1", "type": "message", "role": "user", "content": [], "a": 1}]}
    assert [error.partition(":")[0] for error in model_errors(Response, response)] == [
        "output.0.ResponseOutputMessage.role",
        "output.0.ResponseOutputMessage.status",
    ]
    assert model_errors(Response, {**RESPONSE, "a": 1}) == ["a: no such field"]
    assert model_errors(Response, {**RESPONSE, "a": 1}, frozenset({"a"})) == []
    assert model_errors(Response, {**RESPONSE, "created_at": "1"})[0].startswith("created_at: ")
    del (lacking := dict(RESPONSE))["tools"]
    assert model_errors(Response, lacking) == ["tools: Field required"]
