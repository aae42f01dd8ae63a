"""/v1/responses: replies and events follow OpenAI's published schemas and its event grammar."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent

from tests.conformance.conftest import SHOWN, STORES, ScriptedGateway
from tests.conformance.published_schemas import document_errors, document_event_errors, members_by_type, model_errors
from tests.conformance.responses_cases import CASES, REFUSED
from tests.conformance.responses_grammar import FINAL, ResponsesGrammar
from tests.conformance.scripted_engine import Script, call_id
from tests.conformance.sse import read_events

if TYPE_CHECKING:
    import httpx

    from tests.conformance.cases import Case, Refused

PATH = "/v1/responses"
ENGINE_FAILED = (502, 400)
"""Statuses for an engine's 500: 400 if the engine answered another request meanwhile."""
EVENTS = members_by_type(ResponseStreamEvent)
EXTRA = frozenset({
    # Open Responses requires these.
    "store", "frequency_penalty", "presence_penalty",
    # OpenAI's API sends the status of a custom tool call.
    "output[].status",
    # The gateway's receipt, and an unknown field of a case.
    "gkt", "tools[].something",
})  # fmt: skip
"""Fields of a response that the SDK's type lacks."""
EXTRA_IN_EVENTS = frozenset({
    *(f"response.{field}" for field in EXTRA), "item.status",
    # OpenAI's document requires the function's name in function_call_arguments.done.
    "name",
    # Open Responses requires the bytes of a token.
    "logprobs[].bytes", "logprobs[].top_logprobs[].bytes",
})  # fmt: skip
"""Fields of an event that the SDK's type lacks."""
Item = tuple[str, ...]


def reply_to(scripted: ScriptedGateway, case: Case, route: str, *, stream: bool) -> httpx.Response:
    return scripted.post(PATH, {**case.body, "model": route, "stream": stream}, case.script, case.headers)


def expected_items(case: Case) -> list[Item]:
    """Return the items that a script's answer consists of, in order."""
    script, items = case.script, list[Item]()
    if script.reasoning:
        items.append(("reasoning", "".join(script.reasoning)))
    if script.text:
        items.append(("output_text", "".join(script.text)))
    if script.refusal:
        items.append(("refusal", "".join(script.refusal)))
    for index, call in enumerate(script.calls):
        if call.name in case.custom:
            items.append(("custom_tool_call", call_id(index), call.name, custom_input(call.arguments)))
        else:
            items.append(("function_call", call_id(index), call.name, call.arguments))
    return items


def custom_input(arguments: str) -> str:
    text: str = json.loads(arguments)["input"]
    return text


def items_of(response: dict[str, Any]) -> list[Item]:
    """Return the content of a response's items. A message without text is left out."""
    items: list[Item] = []
    for item in response["output"]:
        if item["type"] == "message":
            parts = [
                (part["type"], part["refusal" if part["type"] == "refusal" else "text"]) for part in item["content"]
            ]
            items += [part for part in parts if part[1]]
        elif item["type"] == "reasoning":
            texts = [part["text"] for part in [*item["summary"], *(item.get("content") or [])]]
            items.append(("reasoning", "".join(texts)))
        else:
            text = item["input" if item["type"] == "custom_tool_call" else "arguments"]
            name = f"{namespace}__{item['name']}" if (namespace := item.get("namespace")) else item["name"]
            items.append((item["type"], item["call_id"], name, text))
    return items


def check_items(case: Case, response: dict[str, Any]) -> None:
    """Check that a response has the script's answer. Guidance may precede its text."""
    found, expected = items_of(response), expected_items(case)
    guided = [
        (kind, text[0].removeprefix(SHOWN), *text[1:]) if kind == "output_text" else (kind, *text)
        for kind, *text in found
    ]
    assert expected in (found, [item for item in guided if item != ("output_text", "")])


def check_schema(response: dict[str, Any]) -> None:
    assert model_errors(Response, response, EXTRA) == []
    assert document_errors("Response", response) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_reply_follows_the_schema(scripted: ScriptedGateway, case: Case, route: str) -> None:
    """A JSON reply; a failed one is an error reply."""
    reply = reply_to(scripted, case, route, stream=False)
    if case.outcome == "failed":
        assert reply.status_code in ENGINE_FAILED, reply.text
        check_error(reply)
        return
    assert reply.status_code == 200, reply.text
    response = reply.json()
    check_schema(response)
    assert response["status"] == case.outcome
    check_items(case, response)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_event_follows_the_schema_and_the_grammar(scripted: ScriptedGateway, case: Case, route: str) -> None:
    """A stream; its final response has the content of the JSON reply."""
    reply = reply_to(scripted, case, route, stream=True)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = read_events(reply.content)
    for name, data in events:
        assert (name, model_errors(EVENTS[name], data, EXTRA_IN_EVENTS)) == (name, [])
        assert (name, document_event_errors(data)) == (name, [])
    response = ResponsesGrammar().read(events)
    assert FINAL[events[-1].name] == case.outcome
    if case.outcome == "failed":
        return
    check_items(case, response)
    if route == "chat-student":  # guided answers may share guidance, which the two replies would count differently
        whole = reply_to(scripted, case, route, stream=False).json()
        assert items_of(whole) == items_of(response)
        same = (
            "status",
            "usage",
            "incomplete_details",
            "tools",
            "tool_choice",
            "text",
            "reasoning",
            "model",
            "metadata",
        )
        assert {field: whole[field] for field in same} == {field: response[field] for field in same}


@pytest.mark.parametrize("case", [case for case in CASES if case.outcome != "failed"], ids=lambda case: case.name)
def test_a_stored_response_is_read_as_it_was_sent(scripted: ScriptedGateway, case: Case) -> None:
    """The end of a stream, for a tenant whose responses are stored. `store: false` stores nothing."""
    body = {**case.body, "model": "chat-student", "stream": True}
    sent = read_events(scripted.post(PATH, body, case.script, STORES).content)[-1].data["response"]
    check_schema(sent)
    read = scripted.get(f"{PATH}/{sent['id']}", STORES)
    assert sent["store"] is (case.body.get("store") is not False)
    if sent["store"]:
        assert read.json() == sent
    else:
        assert read.status_code == 404


def test_guidance_begins_a_reply_and_a_stream(scripted: ScriptedGateway) -> None:
    """Otherwise the guided route of the other tests would test nothing else than the plain route."""
    case = CASES[0]
    reply = reply_to(scripted, case, "chat", stream=False)
    assert reply.headers["x-gkt-mode"] == "guided"
    assert items_of(reply.json())[0][1].startswith(SHOWN)
    events = read_events(reply_to(scripted, case, "chat", stream=True).content)
    assert items_of(events[-1].data["response"])[0][1].startswith(SHOWN)


def check_error(reply: httpx.Response) -> dict[str, Any]:
    """Check that an error reply follows OpenAI's schema; return its error."""
    body = reply.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    assert document_errors("ErrorResponse", body) == []
    return error


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.name)
def test_a_refusal_names_the_field(scripted: ScriptedGateway, refused: Refused, stream: bool) -> None:
    """An HTTP error before a stream begins, too. The engine is not called."""
    body = {"model": "chat-student", **refused.body, "stream": stream}
    calls = len(scripted.engine_bodies)
    reply = scripted.post(PATH, {name: value for name, value in body.items() if value is not None}, Script(("Hello.",)))
    assert reply.status_code == refused.status, reply.text
    error = check_error(reply)
    assert error["param"] == refused.param
    assert refused.param is None or refused.param in error["message"] or refused.status == 404
    assert len(scripted.engine_bodies) == calls


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(("failure", "statuses"), [("refused", (400,)), ("crowded", (503,)), ("broken", ENGINE_FAILED)])
def test_an_engine_failure_before_the_first_event_is_an_http_error(
    scripted: ScriptedGateway, failure: Any, statuses: tuple[int, ...], stream: bool
) -> None:
    """The status that chat completions has for it."""
    body = {"model": "chat-student", "input": "Hello?", "stream": stream}
    reply = scripted.post(PATH, body, Script(failure=failure))
    assert reply.status_code in statuses, reply.text
    check_error(reply)
