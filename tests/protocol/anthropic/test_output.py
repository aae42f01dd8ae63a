"""Chat replies become messages, and chunks become the events of a stream."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import (
    BudgetSpent,
    EngineOverloaded,
    EngineProtocolError,
    EngineRejected,
    InvalidRequest,
    NotAuthenticated,
)
from gateway.protocol.anthropic.errors import anthropic_error, anthropic_status
from gateway.protocol.anthropic.events import MessagesWriter
from gateway.protocol.content_run import ContentRun, template_of

ID = "req_1"
USAGE = {"prompt_tokens": 30, "completion_tokens": 5, "total_tokens": 35,
         "prompt_tokens_details": {"cached_tokens": 12, "cache_write_tokens": 8}}  # fmt: skip
COUNTED = {"input_tokens": 10, "cache_creation_input_tokens": 8, "cache_read_input_tokens": 12, "output_tokens": 5,
           "server_tool_use": None}  # fmt: skip


def writer(*stops: str, thinking: bool = False) -> MessagesWriter:
    return MessagesWriter(ID, stops, shows_thinking=thinking)


def message(fields: dict[str, Any], finish: str = "stop", *stops: str, **choice: Any) -> dict[str, Any]:
    completion = {"model": "m", "usage": USAGE, "choices": [{"message": fields, "finish_reason": finish, **choice}]}
    return writer(*stops, thinking=True).reply(completion)


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **choice: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish, **choice}]
    return {"id": "c", "model": "m", "choices": choices, "usage": None}


def run(*texts: str) -> ContentRun:
    first = chunk({"content": "x"})
    template = template_of(orjson.dumps(first), first)
    assert template is not None
    return ContentRun(template, list(texts))


def events_of(raw: bytes) -> list[dict[str, Any]]:
    """Return the data of the events, whose names are their types."""
    events = []
    for block in raw.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        events.append(orjson.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def streamed(*groups: Any, to: MessagesWriter | None = None) -> list[dict[str, Any]]:
    to = to or writer(thinking=True)
    raw = b"".join([*(to.events([group]) for group in groups), to.end()])
    return [event for event in events_of(raw) if event["type"] != "ping"]


def blocks_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the blocks that a client assembles. Fails if an event breaks the grammar of a stream."""
    assert [event["type"] for event in (events[0], *events[-2:])] == ["message_start", "message_delta", "message_stop"]
    assert events[0]["message"]["content"] == []
    blocks: list[dict[str, Any]] = []
    is_open = False
    fields = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature",
              "input_json_delta": "partial_json"}  # fmt: skip
    for event in events[1:-2]:
        match event["type"]:
            case "content_block_start":
                assert not is_open
                assert event["index"] == len(blocks)
                blocks.append(event["content_block"])
                is_open = True
            case "content_block_delta":
                assert is_open
                assert event["index"] == len(blocks) - 1
                field = fields[event["delta"]["type"]]
                assert field == "partial_json" or field in blocks[-1]
                blocks[-1][field] = blocks[-1].get(field, "") + event["delta"][field]
            case "content_block_stop":
                assert is_open
                assert event["index"] == len(blocks) - 1
                is_open = False
            case other:
                raise AssertionError(other)
    assert not is_open
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = orjson.loads(block.pop("partial_json", "{}"))
    return blocks


def test_a_reply_is_a_message() -> None:
    assert message({"content": "Blue."}) == {
        "id": "msg_req_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "Blue."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {**COUNTED, "cache_creation": None, "service_tier": None},
    }


def test_blocks_have_anthropics_order_and_the_engines_ids() -> None:
    calls = [
        {"id": "call_9", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}},
        {"type": "function", "function": {"name": "now", "arguments": ""}},
        {"id": "c", "type": "function", "function": {"name": "cut", "arguments": '{"a":'}},
    ]
    reply = message({"content": "I add.", "reasoning_content": "Sum", "tool_calls": calls}, "tool_calls")
    assert reply["content"] == [
        {"type": "thinking", "thinking": "Sum", "signature": ""},
        {"type": "text", "text": "I add."},
        {"type": "tool_use", "id": "call_9", "name": "add", "input": {"a": 1}},
        {"type": "tool_use", "id": "toolu_req_1_1", "name": "now", "input": {}},
        {"type": "tool_use", "id": "c", "name": "cut", "input": {"INVALID_JSON": '{"a":'}},
    ]
    assert reply["stop_reason"] == "tool_use"


def test_inputs_are_as_the_model_wrote_them() -> None:
    """Deeper and larger than orjson can encode."""
    for arguments in ('{"a":' + "[" * 300 + "]" * 300 + "}", '{"wei":123456789012345678901234567890}'):
        calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}]
        reply = orjson.dumps(message({"content": None, "tool_calls": calls}, "tool_calls"))
        assert json.loads(reply)["content"][0]["input"] == json.loads(arguments)


@pytest.mark.parametrize("blocks", ["R", ["R"], [{"type": "thinking", "thinking": 5}]])
def test_blocks_in_an_unknown_form_are_ignored(blocks: Any) -> None:
    fields = {"content": "B", "reasoning_content": "R", "thinking_blocks": blocks}
    text = {"type": "text", "text": "B"}
    assert message(fields)["content"][-1] == text
    assert blocks_of(streamed(chunk(fields, "stop")))[-1] == text


def test_signed_blocks_are_kept_and_parts_of_them_joined() -> None:
    hidden = {"type": "redacted_thinking", "data": "zz"}
    parts = [{"type": "thinking", "thinking": text, "signature": sign} for text, sign in (("Ray", ""), ("leigh", "s1"))]
    reply = message({"content": "Blue.", "reasoning_content": "Rayleigh", "thinking_blocks": [*parts, hidden]})
    assert reply["content"][:2] == [{"type": "thinking", "thinking": "Rayleigh", "signature": "s1"}, hidden]


def test_reasoning_is_shown_to_a_caller_that_requested_it_only() -> None:
    completion = {"model": "m", "usage": USAGE,
                  "choices": [{"message": {"content": "B", "reasoning": "R"}, "finish_reason": "stop"}]}  # fmt: skip
    assert [block["type"] for block in writer().reply(completion)["content"]] == ["text"]
    raw = writer().events([chunk({"reasoning": "R"}), chunk({"content": "B"})])
    assert [event["type"] for event in events_of(raw)] == [
        *("message_start", "ping", "ping"),
        *("content_block_start", "content_block_delta"),
    ]


@pytest.mark.parametrize(
    ("fields", "finish", "choice", "reason", "sequence"),
    [
        ({"content": "B"}, "stop", {}, "end_turn", None),
        ({"content": "B"}, "length", {}, "max_tokens", None),
        ({"content": "B"}, "content_filter", {}, "refusal", None),
        ({"content": None, "refusal": "No."}, "stop", {}, "refusal", None),
        ({"content": "B"}, "stop", {"stop_reason": "END"}, "stop_sequence", "END"),
        ({"content": "B"}, "stop", {"matched_stop": "END"}, "stop_sequence", "END"),
        ({"content": "B"}, "stop", {"stop_reason": 128001, "matched_stop": 128001}, "end_turn", None),
        ({"content": "B"}, "stop", {"stop_reason": "of the engine"}, "end_turn", None),
        ({"content": None, "tool_calls": [{"function": {"name": "f"}}]}, "stop", {}, "tool_use", None),
        ({"content": None, "tool_calls": [{"function": {"name": "f"}}]}, "length", {}, "max_tokens", None),
    ],
)
def test_the_end_of_a_message(
    fields: dict[str, Any], finish: str, choice: dict[str, Any], reason: str, sequence: str | None
) -> None:
    """A stream ends as a whole reply does."""
    reply = message(fields, finish, "END", **choice)
    assert (reply["stop_reason"], reply["stop_sequence"]) == (reason, sequence)
    deltas = [chunk(fields), chunk({}, finish, **choice)]
    assert streamed(*deltas, to=writer("END"))[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


def test_a_stream_has_anthropics_events() -> None:
    last = {**chunk(), "usage": USAGE, "gkt": {"mode": "guided"}}
    events = streamed(chunk({"role": "assistant", "content": "The"}), run(" sky", " is"), chunk({}, "stop"), last)
    unused = {**dict.fromkeys(COUNTED, 0), "server_tool_use": None, "cache_creation": None, "service_tier": None}
    assert events[0]["message"] == {**message({}), "content": [], "stop_reason": None, "usage": unused}
    assert [event["type"] for event in events[1:]] == [
        *("content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    assert blocks_of(events) == [{"type": "text", "text": "The sky is"}]
    assert events[-2] == {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": COUNTED,
        "gkt": {"mode": "guided"},
    }


def test_chunks_that_arrived_together_are_one_delta() -> None:
    events = events_of(writer().events([run(" a", "\n", "é")]))
    assert [event["delta"]["text"] for event in events if "delta" in event] == [" a\né"]


def test_an_empty_stream_is_a_message_without_blocks() -> None:
    assert blocks_of(streamed(chunk({}, "stop"))) == []
    assert blocks_of(streamed()) == []


def test_calls_of_a_stream() -> None:
    """An engine may send an id and arguments before the name, and may number all calls 0."""
    events = streamed(
        chunk({"content": "I add."}),
        chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "add", "arguments": ""}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}, "no call", {"index": 1, "id": "b"}]}),
        chunk({"tool_calls": [{"index": 1, "function": {"arguments": "{"}}]}),
        chunk({"tool_calls": [{"index": 1, "function": {"name": "sub", "arguments": "}"}}]}),
        chunk(
            {"tool_calls": [{"index": 1, "id": "c", "function": {"name": "now", "arguments": {"z": 1}}}]}, "tool_calls"
        ),
    )
    assert blocks_of(events) == [
        {"type": "text", "text": "I add."},
        {"type": "tool_use", "id": "a", "name": "add", "input": {"a": 1}},
        {"type": "tool_use", "id": "b", "name": "sub", "input": {}},
        {"type": "tool_use", "id": "c", "name": "now", "input": {"z": 1}},
    ]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_a_call_without_a_number_is_the_first_one() -> None:
    for number in (None, [0]):
        call = {"index": number, "id": "a", "function": {"name": "f", "arguments": "{}"}}
        assert blocks_of(streamed(chunk({"tool_calls": [call]}))) == [
            {"type": "tool_use", "id": "a", "name": "f", "input": {}}
        ]


def test_calls_that_an_engine_writes_at_the_same_time_follow_each_other() -> None:
    calls = [{"index": index, "id": f"{index}", "function": {"name": f"f{index}"}} for index in range(3)]
    events = streamed(
        chunk({"tool_calls": calls}),
        *(
            chunk({"tool_calls": [{"index": index, "function": {"arguments": part}} for index in range(3)]})
            for part in ('{"a"', ":1", "}", " ")
        ),
        chunk({}, "tool_calls"),
    )
    assert blocks_of(events) == [
        {"type": "tool_use", "id": f"{index}", "name": f"f{index}", "input": {"a": 1}} for index in range(3)
    ]


def test_a_complete_call_that_continues_is_an_error() -> None:
    """A block cannot be continued."""
    to = writer()
    calls = [{"index": index, "id": str(index), "function": {"name": "f", "arguments": "{}"}} for index in (0, 1)]
    to.events([chunk({"tool_calls": calls})])
    with pytest.raises(EngineProtocolError):
        to.events([chunk({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]})])


def test_thinking_of_claude_in_a_stream() -> None:
    def thought(**fields: str) -> dict[str, Any]:
        block = {"type": "thinking", "thinking": "", "signature": "", **fields}
        return chunk({"reasoning_content": block["thinking"], "thinking_blocks": [block]})

    events = streamed(
        thought(thinking="Ray"),
        thought(thinking="leigh"),
        thought(signature="s1"),
        chunk({"thinking_blocks": [{"type": "redacted_thinking", "data": "zz"}]}),
        thought(thinking="again"),
        chunk({"content": "Blue."}, "stop"),
    )
    assert blocks_of(events) == [
        {"type": "thinking", "thinking": "Rayleigh", "signature": "s1"},
        {"type": "redacted_thinking", "data": "zz"},
        {"type": "thinking", "thinking": "again", "signature": ""},
        {"type": "text", "text": "Blue."},
    ]


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=4)
PARTS = st.one_of(
    st.tuples(st.just("text"), TEXTS),
    st.tuples(st.just("run"), st.lists(TEXTS, min_size=1, max_size=3)),
    st.tuples(st.just("reasoning"), TEXTS),
    st.tuples(st.just("call"), st.lists(TEXTS, max_size=3)),
)


@given(st.lists(PARTS, max_size=8), st.sampled_from(["stop", "length", "tool_calls", None]))
def test_every_stream_follows_the_grammar_and_loses_nothing(parts: list[tuple[str, Any]], finish: str | None) -> None:
    """Whatever the engine's order, text, reasoning and calls arrive in that order."""
    chunks: list[Any] = []
    wanted: dict[str, list[str]] = {"text": [], "thinking": [], "tool_use": []}
    for number, (kind, given_) in enumerate(parts):
        if kind == "text":
            chunks.append(chunk({"content": given_}))
            wanted["text"].append(given_)
        elif kind == "run":
            chunks.append(run(*given_))
            wanted["text"] += given_
        elif kind == "reasoning":
            chunks.append(chunk({"reasoning_content": given_}))
            wanted["thinking"].append(given_)
        else:
            arguments = orjson.dumps({"a": given_}).decode()
            wanted["tool_use"].append(arguments)
            pieces = [arguments[:3], arguments[3:]]
            head = {"index": number, "id": f"c{number}", "function": {"name": "f", "arguments": ""}}
            chunks.append(chunk({"tool_calls": [head]}))
            chunks += [chunk({"tool_calls": [{"index": number, "function": {"arguments": one}}]}) for one in pieces]
    if finish is not None:
        chunks.append(chunk({}, finish))
    blocks = blocks_of(streamed(*chunks))
    for kind in ("text", "thinking"):
        assert "".join(block[kind] for block in blocks if block["type"] == kind) == "".join(wanted[kind])
    inputs = [orjson.dumps(block["input"]).decode() for block in blocks if block["type"] == "tool_use"]
    assert inputs == wanted["tool_use"]
    assert all(one["type"] != other["type"] or one["type"] == "tool_use" for one, other in pairwise(blocks))


def test_errors_have_anthropics_names() -> None:
    errors = {
        "invalid_request_error": InvalidRequest("Bad."),
        "authentication_error": NotAuthenticated("Bad."),
        "rate_limit_error": BudgetSpent("Bad."),
        "overloaded_error": EngineOverloaded("Bad.", engine="e"),
        "api_error": EngineProtocolError("Bad.", engine="e"),
    }
    for kind, error in errors.items():
        expected = {"type": "error", "error": {"type": kind, "message": "Bad."}, "request_id": ID}
        assert anthropic_error(error, ID) == expected
        assert events_of(writer().failed(error)) == [expected]
    assert anthropic_status(errors["overloaded_error"]) == 529
    assert anthropic_status(errors["api_error"]) == 502
    assert anthropic_error(InvalidRequest("Bad."), ID, 417)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("reported", "tokens", "maximum"),
    [
        ("This model's maximum context length is 8192 tokens. You sent 9000 tokens (8800 in messages).", 9000, 8192),
        ("max_tokens: 5000. maximum context length is 8192 tokens and you have 4000 (5000 > 8192 - 4000).", 9000, 8192),
        ("The decoder prompt (length 9000) is longer than the maximum model length of 8192.", 9000, 8192),
        ("max_tokens=10000 cannot be greater than max_model_len=8192.", 10000, 8192),
        ("The input (9000 tokens) is longer than the model's context length (8192 tokens).", 9000, 8192),
        ("request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it", 5000, 4096),
        ("the request exceeds the available context size (4096 tokens)", 4097, 4096),
        ("`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens and 200", 4200, 4096),
        ("maximum context length is 8,192 tokens, and you sent 9,000", 9000, 8192),
        ("maximum context length is 1,048,576 tokens, and you sent 1,200,000", 1_200_000, 1_048_576),
        ("`inputs` must have less than 1024 tokens. Given: 2000", 2000, 1024),
        ("This model's maximum context length is 100 tokens. Your messages resulted in at least 500 tokens.", 500, 100),
    ],
)
@pytest.mark.parametrize("by_engine", [True, False])
def test_a_context_overflow_is_worded_as_anthropics(
    reported: str, tokens: int, maximum: int, *, by_engine: bool
) -> None:
    """Clients compact their history after this message only. An engine's name may have digits."""
    error = InvalidRequest(reported, code="context_length_exceeded")
    if by_engine:
        error = InvalidRequest(f"Engine 'qwen-99999' answered 400: {reported}", code="context_length_exceeded")
        error.__cause__ = cause = EngineRejected(error.message, engine="qwen-99999", status_sent=400)
        cause.engine_text = reported
    assert anthropic_error(error, ID)["error"] == {
        "type": "invalid_request_error",
        "message": f"prompt is too long: {tokens} tokens > {maximum} maximum",
    }


def test_anthropics_own_words_are_not_changed() -> None:
    """A model of Anthropic, or another gateway, may answer."""
    message = "prompt is too long: 210,000 tokens > 200,000 maximum"
    error = InvalidRequest(f"Engine 'claude' answered 400: {message}", code="context_length_exceeded")
    error.__cause__ = cause = EngineRejected(error.message, engine="claude", status_sent=400)
    cause.engine_text = message
    assert anthropic_error(error, ID)["error"]["message"] == message


def test_a_context_overflow_without_numbers_keeps_the_engines_words() -> None:
    error = InvalidRequest("Engine 'small' answered 400: too long", code="context_length_exceeded")
    message = "prompt is too long: Engine 'small' answered 400: too long"
    assert anthropic_error(error, ID)["error"]["message"] == message
