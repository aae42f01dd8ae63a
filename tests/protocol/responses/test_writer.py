"""Replies and streams of /v1/responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engines.reply_json import decode
from gateway.errors import EngineFailed, EngineRejected, GatewayError, InvalidRequest, NeverFits, QueueFull
from gateway.protocol.content_run import ContentRun, template_of
from gateway.protocol.responses.events import ResponseWriter
from gateway.protocol.responses.items import encode_reasoning
from gateway.protocol.responses.request import parse_responses
from tests.protocol.responses.event_grammar import check, events_of

if TYPE_CHECKING:
    from gateway.protocol.reply import ReplyWriter

CREATED = 1_700_000_000
FUNCTION = {"type": "function", "name": "f"}
CUSTOM = {"type": "custom", "name": "patch"}
SPACE = {"type": "namespace", "name": "mcp__a", "description": "A.", "tools": [FUNCTION]}
SEARCH = {"type": "tool_search", "execution": "client"}
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, "prompt_tokens_details": {"cached_tokens": 5}}
RESPONSE_USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 0},
    "output_tokens": 4,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 13,
}


def new_writer(**fields: Any) -> ResponseWriter:
    tools = [FUNCTION, CUSTOM, SPACE, SEARCH]
    request = parse_responses(orjson.dumps({"model": "chat", "input": "Hi", "tools": tools, **fields}))
    return ResponseWriter(request, "req_0123", CREATED)


def chunk(delta: Any, finish_reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    return {"id": "chatcmpl-1", "created": 1, "model": "student", "choices": [choice], "usage": None}


def usage_chunk(usage: Any = None) -> dict[str, Any]:
    return {**chunk({}), "choices": [], "usage": usage or USAGE, "gkt": {"mode": "guided"}}


def call_chunk(index: int, arguments: str | None, **function: Any) -> dict[str, Any]:
    first = {"id": f"call_{index}", "type": "function"} if function else {}
    return chunk({"tool_calls": [{"index": index, **first, "function": {**function, "arguments": arguments}}]})


def run(*contents: str) -> ContentRun:
    one = chunk({"content": "x"})
    template = template_of(orjson.dumps(one), one)
    assert template is not None
    return ContentRun(template, list(contents))


def streamed(writer: ResponseWriter, *groups: Any) -> list[dict[str, Any]]:
    """Return the events of groups of chunks, checked."""
    sent = b"".join(writer.events(group if isinstance(group, list) else [group]) for group in groups)
    events = events_of(sent + writer.end())
    assert check(events) == writer.response
    return events


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_the_events_of_a_text_are_openais() -> None:
    """In the order of the real API, with the usage and the receipt's facts at the end."""
    writer: ReplyWriter = new_writer()
    assert isinstance(writer, ResponseWriter)
    events = streamed(
        writer,
        chunk({"role": "assistant", "content": "He", "refusal": None}),
        chunk({"content": "llo"}),
        chunk({}, "stop"),
        usage_chunk(),
    )
    assert kinds(events) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    response = writer.response
    text = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
    assert response["output"] == [
        {"type": "message", "id": "msg_01230000", "status": "completed", "role": "assistant", "content": [text]}
    ]
    assert (response["id"], response["object"], response["model"]) == ("resp_0123", "response", "student")
    assert (response["usage"], response["gkt"]) == (RESPONSE_USAGE, {"mode": "guided"})
    assert (response["created_at"], response["error"], response["incomplete_details"]) == (CREATED, None, None)
    assert response["completed_at"] >= CREATED


def test_texts_that_arrived_together_are_one_event() -> None:
    """Runs and chunks with nothing but text."""
    events = streamed(
        new_writer(),
        [chunk({"role": "assistant", "content": "a"}), run("b", "c"), chunk({"content": "d"}), run("e")],
        [run("f", "g")],
        [run("h"), chunk({"content": "i"}, "stop"), usage_chunk()],
    )
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert deltas == ["a", "bcde", "fg", "h", "i"]


def test_a_stream_may_begin_with_a_run() -> None:
    """Its chunks have the fields of the response."""
    writer = new_writer()
    events = streamed(writer, [run("a", "b")], usage_chunk())
    assert [event["delta"] for event in events if "delta" in event] == ["ab"]
    assert writer.response["model"] == "student"


@pytest.mark.parametrize(("fields", "as_summary"), [({}, False), ({"reasoning": {"summary": "auto"}}, True)])
def test_reasoning_is_an_item_of_its_own(fields: dict[str, Any], *, as_summary: bool) -> None:
    """It is a summary if the client requested one."""
    writer = new_writer(**fields, include=["reasoning.encrypted_content"])
    first = chunk({"role": "assistant", "reasoning_content": "h"})
    events = streamed(writer, first, chunk({"reasoning": "m"}), chunk({"content": "a"}), chunk({}, "stop"))
    part, text = (
        ("reasoning_summary_part", "reasoning_summary_text") if as_summary else ("content_part", "reasoning_text")
    )
    assert kinds(events)[2:9] == [
        "output_item.added", f"{part}.added", f"{text}.delta", f"{text}.delta", f"{text}.done", f"{part}.done",
        "output_item.done",
    ]  # fmt: skip
    reasoning, message = writer.response["output"]
    assert (reasoning["type"], message["type"]) == ("reasoning", "message")
    assert reasoning["encrypted_content"] == encode_reasoning("hm")
    if as_summary:
        assert reasoning["summary"] == [{"type": "summary_text", "text": "hm"}]
    else:
        assert (reasoning["summary"], reasoning["content"]) == ([], [{"type": "reasoning_text", "text": "hm"}])


def test_parallel_calls_are_items_in_their_order() -> None:
    """Each gets the name and kind that the client declared. A call is done when the next item begins."""
    writer = new_writer()
    events = streamed(
        writer,
        chunk({"role": "assistant", "content": "Look:"}),
        call_chunk(0, "", name="f"),
        call_chunk(0, '{"a"'),
        call_chunk(0, ":1}"),
        call_chunk(1, '{"input":"x', name="patch"),
        call_chunk(1, 'y"}'),
        call_chunk(2, "{}", name="mcp__a__f"),
        call_chunk(3, '{"query":"q"}', name="tool_search"),
        chunk({}, "tool_calls"),
        usage_chunk(),
    )
    message, plain, custom, spaced, search = writer.response["output"]
    assert message["content"][0]["text"] == "Look:"
    shared = {"status": "completed"}
    assert plain == {"type": "function_call", "id": "fc_01230001", "call_id": "call_0", "name": "f",
                     "arguments": '{"a":1}', **shared}  # fmt: skip
    assert custom == {"type": "custom_tool_call", "id": "ctc_01230002", "call_id": "call_1", "name": "patch",
                      "input": "xy", **shared}  # fmt: skip
    assert spaced == {"type": "function_call", "id": "fc_01230003", "call_id": "call_2", "name": "f",
                      "namespace": "mcp__a", "arguments": "{}", **shared}  # fmt: skip
    assert search == {"type": "tool_search_call", "id": "tsc_01230004", "call_id": "call_3", "execution": "client",
                      "arguments": {"query": "q"}, **shared}  # fmt: skip
    places = [(event["type"], event["output_index"]) for event in events if ".output_item." in event["type"]]
    assert [index for _, index in places] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_calls_that_an_engine_writes_at_the_same_time_lose_nothing() -> None:
    """A call whose arguments are not complete stays open when the next one begins."""
    writer = new_writer()
    streamed(
        writer,
        call_chunk(0, '{"a":', name="f"),
        call_chunk(1, '{"b":', name="f"),
        call_chunk(0, "1}"),
        call_chunk(1, "2}"),
        chunk({}, "tool_calls"),
    )
    assert [item["arguments"] for item in writer.response["output"]] == ['{"a":1}', '{"b":2}']


def test_calls_with_one_number_are_separate() -> None:
    """An engine that numbers all calls 0 begins each with its id and name."""
    writer = new_writer()
    parts = [{"index": 0, "id": f"call_{n}", "function": {"name": "f", "arguments": f"{n}"}} for n in range(2)]
    streamed(writer, chunk({"tool_calls": parts}), call_chunk(0, "5"), chunk({}, "tool_calls"))
    calls = [(item["call_id"], item["arguments"]) for item in writer.response["output"]]
    assert calls == [("call_0", "0"), ("call_1", "15")]


def test_a_call_without_id_gets_one() -> None:
    """Clients answer it by the id."""
    writer = new_writer()
    streamed(writer, chunk({"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}), chunk({}, "tool_calls"))
    assert writer.response["output"][0]["call_id"] == "call_01230000"


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": [{"index": 0, "id": "1", "function": {"name": "f", "arguments": {"a": 1}}}]},
        {"tool_calls": [{"index": 0, "id": "1", "function": {"name": "patch", "arguments": {"input": "x"}}}]},
        {"tool_calls": [{"index": 0, "id": "1", "function": None}]},
        {"tool_calls": [{"index": {"a": 1}, "id": 5, "function": {"name": "f", "arguments": "{}"}}]},
        {"tool_calls": ["f"], "content": "a"},
        {"tool_calls": {}, "content": "a"},
        {"reasoning": [{"text": "h"}], "content": "a"},
        {"reasoning_content": {"text": "h"}, "content": "a"},
        {"refusal": ["No."], "content": "a"},
    ],
)
def test_fields_of_unusual_types_break_no_reply(message: dict[str, Any]) -> None:
    """Arguments that an engine sends as an object are text. A stream that breaks afterwards still ends."""
    writer = new_writer()
    streamed(writer, chunk(message), chunk({}, "stop"))
    assert new_writer().reply(completion(message))["output"] == writer.response["output"]
    values = [item.get("arguments", item.get("input")) for item in writer.response["output"]]
    assert all(value is None or isinstance(value, str) for value in values)
    assert all(isinstance(item.get("call_id", ""), str) for item in writer.response["output"])
    broken = new_writer()
    check(events_of(broken.events([chunk(message)]) + broken.failed(GatewayError("broken"))))


@pytest.mark.parametrize(("finish_reason", "arguments"), [("tool_calls", "{}"), ("length", "")])
@pytest.mark.parametrize("written", ["", None])
def test_a_call_without_arguments_has_an_empty_object(finish_reason: str, arguments: str, written: str | None) -> None:
    """Clients parse the arguments. A call that was cut has those that the model wrote."""
    writer = new_writer()
    streamed(writer, call_chunk(0, written, name="f"), chunk({}, finish_reason))
    assert writer.response["output"][0]["arguments"] == arguments
    calls = [{"id": "call_0", "type": "function", "function": {"name": "f", "arguments": written}}]
    assert new_writer().reply(completion({"tool_calls": calls}, finish_reason))["output"] == writer.response["output"]


def test_a_refusal_is_a_part_of_the_message() -> None:
    """It follows the text."""
    writer = new_writer()
    streamed(writer, chunk({"content": "Hm."}), chunk({"refusal": "N"}), chunk({"refusal": "o."}), chunk({}, "stop"))
    (message,) = writer.response["output"]
    assert [part["type"] for part in message["content"]] == ["output_text", "refusal"]
    assert message["content"][1] == {"type": "refusal", "refusal": "No."}


def test_log_probabilities_are_in_events_and_items() -> None:
    """All fields are present. The engine may leave out some."""
    engines = {
        "content": [{"token": "é", "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -1, "bytes": None}]}]
    }
    shown = {
        "token": "é",
        "logprob": -0.5,
        "bytes": [195, 169],
        "top_logprobs": [{"token": "a", "logprob": -1, "bytes": [97]}],
    }
    writer = new_writer(top_logprobs=1)
    streamed(writer, [chunk({"content": "é"}, logprobs=engines), chunk({"content": "b"})], chunk({}, "stop"))
    assert writer.response["output"][0]["content"][0]["logprobs"] == [shown]
    reply = new_writer(top_logprobs=1).reply(completion({"content": "é"}, logprobs=engines))
    assert reply["output"][0]["content"][0]["logprobs"] == [shown]


def test_log_probabilities_of_other_tokens_begin_no_item() -> None:
    """Some engines send those of reasoning and calls too. Those of a token without text belong to the text after it."""

    def odds(token: str) -> dict[str, Any]:
        return {"content": [{"token": token, "logprob": -1, "bytes": [97], "top_logprobs": []}]}

    def part(arguments: str, **function: Any) -> dict[str, Any]:
        one = call_chunk(0, arguments, **function)
        one["choices"][0]["logprobs"] = odds("call")
        return one

    writer = new_writer(top_logprobs=1)
    streamed(
        writer,
        chunk({"role": "assistant"}, logprobs=odds("begin")),
        chunk({"reasoning": "h"}, logprobs=odds("think")),
        chunk({"reasoning": "m"}, logprobs=odds("think")),
        chunk({"content": ""}, logprobs=odds("half")),
        [chunk({"content": "a"}, logprobs=odds("a")), chunk({"content": "b"}, logprobs=odds("b"))],
        chunk({"content": ""}, logprobs=odds("end")),
        part("", name="f"),
        part('{"a"'),
        part(":1}"),
        chunk({}, "tool_calls", logprobs=odds("call")),
        usage_chunk(),
    )
    reasoning, message, call = writer.response["output"]
    assert (reasoning["content"][0]["text"], call["arguments"]) == ("hm", '{"a":1}')
    assert message["content"][0]["text"] == "ab"
    assert [one["token"] for one in message["content"][0]["logprobs"]] == ["half", "a", "b", "end"]


def test_log_probabilities_of_a_large_reply_are_kept() -> None:
    """They arrive as JSON, because their objects would need much memory."""
    top = [{"token": "a", "logprob": -1, "bytes": None}, {"token": "b", "logprob": -2}]
    engines = {"content": [{"token": "é", "logprob": -0.5, "top_logprobs": top}] * 5000, "refusal": None}
    whole = completion({"content": "é" * 5000}, logprobs=engines)
    large = decode(orjson.dumps(whole))
    assert type(large["choices"][0]["logprobs"]) is orjson.Fragment
    output = orjson.loads(orjson.dumps(new_writer(top_logprobs=2).reply(large)["output"]))
    assert output == new_writer(top_logprobs=2).reply(whole)["output"]
    assert len(output[0]["content"][0]["logprobs"]) == 5000


@pytest.mark.parametrize(
    ("finish_reason", "reason"),
    [
        ("length", "max_output_tokens"),
        ("content_filter", "content_filter"),
        ("model_length", "max_output_tokens"),
        ("insufficient_system_resource", "max_output_tokens"),
    ],
)
def test_an_answer_that_was_cut_is_incomplete(finish_reason: str, reason: str) -> None:
    """So is its last item. Mistral and DeepSeek have more reasons than OpenAI."""
    writer = new_writer()
    events = streamed(
        writer, chunk({"reasoning": "h"}), chunk({"content": "a"}), chunk({}, finish_reason), usage_chunk()
    )
    reply = new_writer().reply(completion({"reasoning": "h", "content": "a"}, finish_reason))
    assert kinds(events)[-1] == "incomplete"
    for response in (writer.response, reply):
        assert response["incomplete_details"] == {"reason": reason}
        assert (response["status"], response["completed_at"]) == ("incomplete", None)
        assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
        assert response["usage"] == RESPONSE_USAGE


def test_an_empty_answer_has_an_empty_message() -> None:
    """Clients read the first item. A cut answer without text has none."""
    writer, empty = new_writer(), {"type": "message", "status": "completed", "role": "assistant", "content": []}
    streamed(writer, chunk({}, "stop"), usage_chunk())
    assert writer.response["output"] == [{**empty, "id": "msg_01230000"}]
    assert new_writer().reply(completion({"content": None}))["output"] == [{**empty, "id": "msg_01230000"}]
    assert new_writer().reply(completion({"content": None}, "length"))["output"] == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineFailed("The engine broke.", engine="e"), "server_error"),
        (QueueFull("Full."), "rate_limit_exceeded"),
        (NeverFits("Too large."), "rate_limit_exceeded"),
        (InvalidRequest("No."), "invalid_prompt"),
        (EngineRejected("No.", engine="e", status_sent=400), "invalid_prompt"),
        (EngineRejected("No.", engine="e", status_sent=401), "server_error"),
        (GatewayError("A bug."), "server_error"),
    ],
)
@pytest.mark.parametrize("groups", [0, 1, 2, 3])
def test_a_stream_that_broke_ends_with_its_failure(error: GatewayError, code: str, groups: int) -> None:
    """Whatever was sent before. The output is in the last event."""
    writer = new_writer()
    chunks = [chunk({"reasoning": "h"}), chunk({"content": "a"}), call_chunk(0, '{"a', name="f")]
    sent = b"".join(writer.events([one]) for one in chunks[:groups])
    final = check(events_of(sent + writer.failed(error)))
    assert final["error"] == {"code": code, "message": error.message}
    assert (final["status"], len(final["output"]), final["completed_at"]) == ("failed", groups, None)


def completion(message: dict[str, Any], finish_reason: str = "stop", logprobs: Any = None) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}, "logprobs": logprobs}
    return {"model": "student", "choices": [{**choice, "finish_reason": finish_reason}], "usage": USAGE,
            "service_tier": "flex"}  # fmt: skip


def test_a_reply_has_the_parameters_of_the_request() -> None:
    """With OpenAI's defaults for the others."""
    fields: dict[str, Any] = {
        "instructions": "Be brief.", "temperature": 0.5, "top_p": 0.25, "max_output_tokens": 99, "metadata": {"a": "b"},
        "parallel_tool_calls": False, "tool_choice": "none", "truncation": "auto", "user": "u", "max_tool_calls": 2,
        "safety_identifier": "s", "prompt_cache_key": "k", "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "json_object"}, "verbosity": "low"}, "top_logprobs": 3,
    }  # fmt: skip
    reply = new_writer(**fields).reply(completion({"content": "{}"}))
    assert {name: reply[name] for name in fields} == fields
    assert reply["service_tier"] == "flex"
    assert new_writer().reply(completion({"content": "a"})) | {"completed_at": 0} == {
        "id": "resp_0123", "object": "response", "created_at": CREATED, "completed_at": 0, "status": "completed",
        "error": None, "incomplete_details": None, "model": "student", "service_tier": "flex", "usage": RESPONSE_USAGE,
        "output": [{"type": "message", "id": "msg_01230000", "status": "completed", "role": "assistant", "content": [
            {"type": "output_text", "text": "a", "annotations": [], "logprobs": []}]}],
        "background": False, "frequency_penalty": 0.0, "instructions": None, "max_output_tokens": None,
        "max_tool_calls": None, "metadata": {}, "parallel_tool_calls": True, "presence_penalty": 0.0,
        "previous_response_id": None, "prompt_cache_key": None, "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None, "store": False, "temperature": 1.0, "tool_choice": "auto", "top_logprobs": 0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"}, "top_p": 1.0, "truncation": "disabled",
        "user": None, "tools": [
            {**FUNCTION, "description": None, "parameters": None, "strict": False}, CUSTOM,
            {**SPACE, "tools": [{**FUNCTION, "description": None, "parameters": None, "strict": False}]}, SEARCH],
    }  # fmt: skip


_TEXTS = st.text('ab \n"\\é', min_size=1, max_size=4)
_ARGUMENTS = st.sampled_from(["", "{", "}", '"input":"', "a\\", 'n"', "{}", "1"])
_CHUNKS = st.one_of(
    st.builds(lambda text: chunk({"content": text}), _TEXTS),
    st.builds(lambda text: chunk({"reasoning_content": text}), _TEXTS),
    st.builds(lambda text: chunk({"refusal": text, "content": None}), _TEXTS),
    st.builds(lambda text, other: chunk({"reasoning": text, "content": other}), _TEXTS, _TEXTS),
    st.builds(lambda texts: run(*texts), st.lists(_TEXTS, min_size=1, max_size=3)),
    st.builds(
        lambda index, name, arguments: call_chunk(index, arguments, name=name),
        st.integers(0, 3),
        st.sampled_from(["f", "patch", "mcp__a__f", "tool_search", "made_up"]),
        _ARGUMENTS,
    ),
    st.builds(call_chunk, st.integers(0, 3), _ARGUMENTS),
)


@given(
    st.lists(st.lists(_CHUNKS, min_size=1, max_size=3), max_size=8),
    st.sampled_from(["stop", "length", "tool_calls", None]),
    st.booleans(),
    st.booleans(),
)
def test_any_stream_has_valid_events(groups: Any, finish: str | None, broken: bool, summary: bool) -> None:
    """Deltas give the whole texts, ids are consistent, and the last event is final. No text is lost."""
    writer = new_writer(**({"reasoning": {"summary": "auto"}} if summary else {}))
    sent = b"".join(writer.events(group) for group in groups)
    if broken:
        final = check(events_of(sent + writer.failed(GatewayError("broken"))))
    else:
        sent += writer.events([chunk({}, finish), usage_chunk()])
        final = check(events_of(sent + writer.end()))
        assert final == writer.response
    chunks = [
        one for group in groups for part in group for one in (part.chunks() if isinstance(part, ContentRun) else [part])
    ]
    deltas = [one["choices"][0]["delta"] for one in chunks]
    texts = [part for item in final["output"] for part in (*item.get("content", ()), *item.get("summary", ()))]
    for kinds_of_text, fields in (
        (("output_text",), ("content",)),
        (("refusal",), ("refusal",)),
        (("reasoning_text", "summary_text"), ("reasoning_content", "reasoning")),
    ):
        written = "".join(part.get("text", part.get("refusal")) for part in texts if part["type"] in kinds_of_text)
        assert written == "".join(delta.get(field) or "" for delta in deltas for field in fields)


@given(st.lists(_CHUNKS.filter(lambda one: not isinstance(one, ContentRun)), max_size=6))
def test_a_reply_has_the_items_of_the_stream(chunks: list[dict[str, Any]]) -> None:
    """If the answer has the usual order: reasoning, text, refusal, calls."""
    message: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    for delta in (one["choices"][0]["delta"] for one in chunks):
        for name in ("content", "refusal"):
            if delta.get(name):
                message[name] = message.get(name, "") + delta[name]
        if text := delta.get("reasoning_content") or delta.get("reasoning"):
            message["reasoning"] = message.get("reasoning", "") + text
        for part in delta.get("tool_calls", ()):
            call = calls.setdefault(part["index"], {"function": {"name": "", "arguments": ""}})
            call.setdefault("id", f"call_{part['index']}")
            call["function"]["name"] = call["function"]["name"] or part["function"].get("name", "")
            call["function"]["arguments"] += part["function"]["arguments"]
    ordered = [calls[index] for index in sorted(calls)]
    writer = new_writer()
    groups = [chunk({name: message[name]}) for name in ("reasoning", "content", "refusal") if name in message]
    groups += [chunk({"tool_calls": [{"index": index, **call}]}) for index, call in enumerate(ordered)]
    streamed(writer, *groups, chunk({}, "stop"), usage_chunk())
    reply = new_writer().reply(completion({**message, "tool_calls": ordered}))
    assert reply["output"] == writer.response["output"]
