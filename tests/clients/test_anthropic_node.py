"""The unmodified `@anthropic-ai/sdk` for Node.js on the fault_gateway: answers, errors, retries, broken streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.clients.fault_gateway import PERSON, REST, WHOLE, FaultGateway
from tests.clients.programs import ClientRun
from tests.clients.refusals import ANTHROPIC_RAISES, ANTHROPIC_STATUS, ANTHROPIC_TYPES, REFUSALS, Refusal

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.timeout(300), pytest.mark.long]  # it is installed on first use

SCENARIOS = ["answer", "stream", "stream_helper", "count", "tools", "tools_run", "parse", "busy_twice", "no_retries",
             "impatient", "aborted", "breaks", "ends_early", "wire_cut"]  # fmt: skip


@pytest.fixture(scope="module")
def node(fault_gateway: FaultGateway, node_folder: Path) -> ClientRun:
    return ClientRun(fault_gateway, ["node", "anthropic.mjs"], SCENARIOS, cwd=node_folder)


def test_an_answer_and_its_account(node: ClientRun) -> None:
    """`withResponse` returns the headers and the request's id."""
    seen = node.saw("answer")
    assert [block["text"] for block in seen["reply"]["content"]] == [WHOLE]
    assert seen["reply"]["stop_reason"] == "end_turn"
    assert seen["mode"] == "guided"
    assert seen["request_id"] == node.calls("answer")[0].reply_headers["x-request-id"]


def test_a_stream_and_the_stream_helper(node: ClientRun) -> None:
    """The assembled pieces equal the answer of a JSON caller."""
    seen = node.saw("stream")
    assert (seen["text"], seen["stop"], seen["broke"]) == (WHOLE, "end_turn", None)
    assert seen["usage"]["output_tokens"] > 0
    helped = node.saw("stream_helper")
    assert "".join(helped["deltas"]) == helped["final"]["content"][0]["text"] == WHOLE
    assert len(helped["deltas"]) > 1


def test_tokens_are_counted(node: ClientRun) -> None:
    """`countTokens` returns a number."""
    assert node.saw("count")["input_tokens"] > 0


def test_a_tool_is_called_and_its_result_answered(node: ClientRun) -> None:
    """The tool runner makes two calls: one with the question, one with the tool's result."""
    seen = node.saw("tools")
    assert seen["stop_reason"] == "tool_use"
    assert [(block["type"], block["name"], block["input"]) for block in seen["content"]] == [
        ("tool_use", "weather", {"city": "Oslo"})
    ]
    assert node.saw("tools_run") == {"text": "It is sunny.", "told": [{"city": "Oslo"}]}


def test_an_answer_is_parsed_into_the_callers_schema(node: ClientRun) -> None:
    """zodOutputFormat is sent as `output_config.format`."""
    assert node.saw("parse") == PERSON


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name.replace(" ", "-"))
def test_each_refusal_is_the_right_error_after_the_right_number_of_calls(node: ClientRun, refusal: Refusal) -> None:
    """The status determines the class and Anthropic's error type."""
    seen = node.refusals[refusal.name]
    status = ANTHROPIC_STATUS.get(refusal.status, refusal.status)
    assert (seen["raised"], seen["status"]) == (ANTHROPIC_RAISES[status], status)
    assert seen["type"] == ANTHROPIC_TYPES[status]
    node.attempts[refusal.name].check_calls(status)
    assert seen["request_id"] == node.attempts[refusal.name].calls()[-1].reply_headers["x-request-id"]


def test_a_retrying_client_gets_its_answer(node: ClientRun) -> None:
    """The engine is full twice; the third call is answered."""
    assert node.saw("busy_twice") == REST
    assert [call.status for call in node.calls("busy_twice")] == [529, 529, 200]


def test_a_client_without_retries_sends_one_call(node: ClientRun) -> None:
    """maxRetries: 0"""
    assert node.raised("no_retries")["status"] == 529
    assert len(node.calls("no_retries")) == 1


def test_a_client_that_does_not_wait_raises(node: ClientRun) -> None:
    """`timeout` is in milliseconds, and applies to each attempt."""
    assert node.raised("impatient")["raised"] == "APIConnectionTimeoutError"
    assert [call.status for call in node.calls("impatient")] == [None, None]


def test_an_aborted_stream_ends_the_request(node: ClientRun, fault_gateway: FaultGateway) -> None:
    """The gateway detects that the client has gone."""
    assert node.raised("aborted")["raised"] == "APIUserAbortError"
    assert fault_gateway.receipt(node.calls("aborted")[0])["status"] == "client_gone"


@pytest.mark.parametrize("scenario", ["breaks", "ends_early"])
def test_a_broken_stream_raises_and_has_no_stop_reason(node: ClientRun, scenario: str) -> None:
    """The received words, then an APIError. No retry."""
    seen = node.saw(scenario)
    assert (seen["text"], seen["stop"]) == (" two words", None)
    assert seen["broke"]["is_api_error"]
    assert seen["broke"]["type"] == "api_error"
    assert len(node.calls(scenario)) == 1


def test_a_closed_connection_raises_without_a_stop_reason(node: ClientRun) -> None:
    """A closed connection does not count as the end of an answer."""
    seen = node.saw("wire_cut")
    assert seen["stop"] is None
    assert seen["broke"] is not None
    assert len(node.calls("wire_cut")) == 1
