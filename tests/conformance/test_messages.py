"""/v1/messages: replies and events follow Anthropic's published schemas and its event grammar."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from anthropic.types import ErrorResponse, Message, MessageTokensCount, RawMessageStreamEvent

from tests.conformance.conftest import SHOWN, ScriptedGateway
from tests.conformance.messages_cases import CASES, REFUSED, body
from tests.conformance.messages_grammar import MessagesGrammar
from tests.conformance.published_schemas import members_by_type, model_errors
from tests.conformance.scripted_engine import Script, call_id
from tests.conformance.sse import read_events

if TYPE_CHECKING:
    import httpx

    from tests.conformance.cases import Case, Refused

PATH = "/v1/messages"
ENGINE_FAILED = (502, 400)
"""Statuses for an engine's 500: 400 if the engine answered another request meanwhile."""
EVENTS = members_by_type(RawMessageStreamEvent)
EXTRA = frozenset({"gkt"})
"""The gateway's receipt, in message_delta."""
VERSION = {"anthropic-version": "2023-06-01"}
Block = tuple[Any, ...]


def reply_to(scripted: ScriptedGateway, case: Case, route: str, *, stream: bool) -> httpx.Response:
    sent = {**case.body, "model": route, "stream": stream}
    return scripted.post(PATH, sent, case.script, VERSION | case.headers)


def stop_reason(case: Case) -> str:
    if case.stop_reason is not None:
        return case.stop_reason
    if case.stops_at is not None:
        return "stop_sequence"
    reasons = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
    return "refusal" if case.script.refusal else reasons[case.script.finish_reason]


def expected_blocks(script: Script) -> list[Block]:
    """Return the blocks that a script's answer consists of, in order. A refusal is text."""
    blocks: list[Block] = []
    if script.reasoning:
        blocks.append(("thinking", "".join(script.reasoning)))
    if text := "".join((*script.text, *script.refusal)):
        blocks.append(("text", text))
    for index, call in enumerate(script.calls):
        blocks.append(("tool_use", call_id(index), call.name, json.loads(call.arguments or "{}")))
    return blocks


def blocks_of(message: dict[str, Any]) -> list[Block]:
    """Return the content of a message's blocks. A block without text is left out."""
    blocks: list[Block] = []
    for block in message["content"]:
        if block["type"] == "tool_use":
            blocks.append(("tool_use", block["id"], block["name"], block["input"]))
        elif text := block[block["type"]]:
            blocks.append((block["type"], text))
    return blocks


def check_blocks(case: Case, message: dict[str, Any]) -> None:
    """Check that a message has the script's answer. Guidance may precede its text."""
    found, expected = blocks_of(message), expected_blocks(case.script)
    guided = [(block[0], block[1].removeprefix(SHOWN)) if block[0] == "text" else block for block in found]
    assert expected in (found, [block for block in guided if block != ("text", "")])
    assert message["stop_reason"] == stop_reason(case)
    assert message["stop_sequence"] == case.stops_at


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_reply_follows_the_schema(scripted: ScriptedGateway, case: Case, route: str) -> None:
    """A JSON reply; a failed one is an error reply."""
    reply = reply_to(scripted, case, route, stream=False)
    if case.outcome == "failed":
        assert reply.status_code in ENGINE_FAILED, reply.text
        check_error(reply)
        return
    assert reply.status_code == 200, reply.text
    message = reply.json()
    assert model_errors(Message, message) == []
    check_blocks(case, message)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_event_follows_the_schema_and_the_grammar(scripted: ScriptedGateway, case: Case, route: str) -> None:
    """A stream; its events add up to the content of the JSON reply."""
    reply = reply_to(scripted, case, route, stream=True)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = read_events(reply.content)
    for name, data in events:
        if name == "error":
            assert error_errors(data) == []
        elif name != "ping":
            assert (name, model_errors(EVENTS[name], data, EXTRA)) == (name, [])
    grammar = MessagesGrammar()
    message = grammar.read(events)
    assert (grammar.error is not None) == (case.outcome == "failed")
    if grammar.error is not None:
        return
    assert model_errors(Message, message, EXTRA) == []
    check_blocks(case, message)
    if route == "chat-student":  # guided answers may share guidance, which the two replies would count differently
        whole = reply_to(scripted, case, route, stream=False).json()
        assert blocks_of(whole) == blocks_of(message)
        same = ("stop_reason", "stop_sequence", "usage", "model", "role", "type")
        assert {field: whole[field] for field in same} == {field: message[field] for field in same}


def test_guidance_begins_a_reply_and_a_stream(scripted: ScriptedGateway) -> None:
    """Otherwise the guided route of the other tests would test nothing else than the plain route."""
    case = CASES[0]
    reply = reply_to(scripted, case, "chat", stream=False)
    assert reply.headers["x-gkt-mode"] == "guided"
    assert blocks_of(reply.json())[0][1].startswith(SHOWN)
    message = MessagesGrammar().read(read_events(reply_to(scripted, case, "chat", stream=True).content))
    assert blocks_of(message)[0][1].startswith(SHOWN)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_tokens_are_counted_without_a_call(scripted: ScriptedGateway, case: Case) -> None:
    """/v1/messages/count_tokens accepts the same requests."""
    calls = len(scripted.engine_bodies)
    reply = scripted.post(f"{PATH}/count_tokens", {**case.body, "model": "chat"}, case.script, VERSION | case.headers)
    assert reply.status_code == 200, reply.text
    assert model_errors(MessageTokensCount, reply.json()) == []
    assert reply.json()["input_tokens"] > 0
    assert len(scripted.engine_bodies) == calls


def error_errors(value: dict[str, Any]) -> list[str]:
    """Return what is wrong in an error's JSON. The SDK's type requires `request_id`, which events may lack."""
    return model_errors(ErrorResponse, {"request_id": None, **value})


def check_error(reply: httpx.Response) -> dict[str, Any]:
    """Check that an error reply follows Anthropic's schema; return its error."""
    value = reply.json()
    assert error_errors(value) == []
    error: dict[str, Any] = value["error"]
    return error


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.name)
def test_a_refusal_names_the_field(scripted: ScriptedGateway, refused: Refused, stream: bool) -> None:
    """An HTTP error before a stream begins, too. The engine is not called."""
    calls = len(scripted.engine_bodies)
    sent = {"model": "chat-student", **refused.body, "stream": stream}
    reply = scripted.post(PATH, sent, Script(("Hello.",)), VERSION)
    assert reply.status_code == refused.status, reply.text
    error = check_error(reply)
    assert error["type"] == {400: "invalid_request_error", 404: "not_found_error"}[refused.status]
    assert refused.param is None or refused.param in error["message"] or refused.status == 404
    assert len(scripted.engine_bodies) == calls


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(("failure", "statuses"), [("refused", (400,)), ("crowded", (529,)), ("broken", ENGINE_FAILED)])
def test_an_engine_failure_before_the_first_event_is_an_http_error(
    scripted: ScriptedGateway, failure: Any, statuses: tuple[int, ...], stream: bool
) -> None:
    """The status that chat completions has for it, or Anthropic's own for a service that is overloaded."""
    reply = scripted.post(PATH, body(model="chat-student", stream=stream), Script(failure=failure), VERSION)
    assert reply.status_code in statuses, reply.text
    check_error(reply)
