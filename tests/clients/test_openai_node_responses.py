"""The unmodified `openai` package for Node.js with the Responses API on the fault_gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.clients.fault_gateway import CALLED, PERSON, REST, WHOLE, FaultGateway
from tests.clients.programs import ClientRun
from tests.clients.refusals import RAISES, REFUSALS, Refusal
from tests.clients.test_openai_responses import TEXT_EVENTS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.timeout(300), pytest.mark.long]  # it is installed on first use

SCENARIOS = ["answer", "stream", "stream_helper", "tools", "tools_streamed", "parse", "busy_twice", "no_retries",
             "impatient", "aborted", "breaks", "ends_early", "wire_cut"]  # fmt: skip


@pytest.fixture(scope="module")
def node(fault_gateway: FaultGateway, node_folder: Path) -> ClientRun:
    return ClientRun(fault_gateway, ["node", "responses.mjs"], SCENARIOS, cwd=node_folder)


def test_an_answer_and_its_account(node: ClientRun) -> None:
    """`withResponse` returns the headers and the request's id."""
    seen = node.saw("answer")
    assert (seen["reply"]["output_text"], seen["reply"]["status"]) == (WHOLE, "completed")
    assert seen["reply"]["usage"]["output_tokens"] > 0
    assert seen["mode"] == "guided"
    assert seen["request_id"] == node.calls("answer")[0].reply_headers["x-request-id"]


def test_a_stream_has_all_events_in_order(node: ClientRun) -> None:
    """The last event has the response with its usage."""
    seen = node.saw("stream")
    assert (seen["text"], seen["types"], seen["broke"]) == (WHOLE, TEXT_EVENTS, None)
    assert seen["numbers"] == list(range(len(seen["numbers"])))
    assert seen["last"]["response"]["usage"]["output_tokens"] > 0


def test_the_stream_helper_sees_each_piece_and_the_whole(node: ClientRun) -> None:
    """The assembled pieces equal the answer of a JSON caller."""
    seen = node.saw("stream_helper")
    assert "".join(seen["deltas"]) == seen["final"]["output_text"] == WHOLE
    assert len(seen["deltas"]) > 1


def test_a_tool_is_called_and_its_result_answered(node: ClientRun) -> None:
    """A JSON reply and an assembled stream have the same tool call."""
    expected = {"type": "function_call", "call_id": "call_1", **CALLED}
    seen = node.saw("tools")
    assert seen["text"] == "It is sunny."
    for call in (seen["call"], node.saw("tools_streamed")):
        assert {name: call[name] for name in expected} == expected


def test_an_answer_is_parsed_into_the_callers_schema(node: ClientRun) -> None:
    """zodTextFormat sends `text.format`."""
    assert node.saw("parse") == PERSON
    assert node.calls("parse")[0].json["text"]["format"]["name"] == "person"


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name.replace(" ", "-"))
def test_each_refusal_is_the_right_error_after_the_right_number_of_calls(node: ClientRun, refusal: Refusal) -> None:
    """The status determines the class, with code and param, as with chat completions."""
    seen = node.refusals[refusal.name]
    assert seen["raised"] == RAISES["openai-node"][refusal.status]
    assert (seen["status"], seen["code"], seen["param"]) == (refusal.status, refusal.code, refusal.param)
    node.attempts[refusal.name].check_calls()
    assert seen["request_id"] == node.attempts[refusal.name].calls()[-1].reply_headers["x-request-id"]


def test_a_retrying_client_gets_its_answer(node: ClientRun) -> None:
    """The engine is full twice; the third call is answered."""
    assert node.saw("busy_twice") == REST
    assert [call.status for call in node.calls("busy_twice")] == [503, 503, 200]


def test_a_client_without_retries_sends_one_call(node: ClientRun) -> None:
    """maxRetries: 0"""
    assert node.raised("no_retries")["raised"] == "InternalServerError"
    assert len(node.calls("no_retries")) == 1


def test_a_client_that_does_not_wait_raises(node: ClientRun) -> None:
    """`timeout` is in milliseconds, and applies to each attempt."""
    assert node.raised("impatient")["raised"] == "APIConnectionTimeoutError"
    assert [call.status for call in node.calls("impatient")] == [None, None]


def test_an_aborted_stream_ends_the_request(node: ClientRun, fault_gateway: FaultGateway) -> None:
    """The gateway detects that the client has gone."""
    assert node.saw("aborted") is True
    assert fault_gateway.receipt(node.calls("aborted")[0])["status"] == "client_gone"


@pytest.mark.parametrize("scenario", ["breaks", "ends_early"])
def test_a_broken_stream_ends_in_response_failed(node: ClientRun, scenario: str) -> None:
    """The last event has the error and follows the received words. No retry, no exception."""
    seen = node.saw(scenario)
    assert (seen["text"], seen["broke"]) == (" two words", None)
    assert (seen["last"]["type"], seen["last"]["response"]["status"]) == ("response.failed", "failed")
    assert len(node.calls(scenario)) == 1


def test_a_closed_connection_raises_without_a_last_event(node: ClientRun) -> None:
    """A closed connection does not count as the end of an answer."""
    seen = node.saw("wire_cut")
    assert "response.completed" not in seen["types"]
    assert (seen["broke"]["raised"], seen["broke"]["is_api_error"]) == ("TypeError", False)
    assert len(node.calls("wire_cut")) == 1
