"""The unmodified `openai` package for Node.js on the fault_gateway: answers, errors, retries, broken streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.clients.fault_gateway import CALLED, PERSON, REST, WHOLE, FaultGateway
from tests.clients.programs import ClientRun
from tests.clients.refusals import RAISES, REFUSALS, Refusal

if TYPE_CHECKING:
    from pathlib import Path

# It is installed on first use.
pytestmark = [pytest.mark.timeout(300), pytest.mark.long]

SCENARIOS = ["answer", "stream", "prompt", "prompt_streamed", "vector", "stream_helper", "tools", "tools_streamed",
          "tools_run", "parse", "models", "busy_twice", "no_retries", "impatient", "breaks", "ends_early", "wire_cut",
          "helper_breaks"]  # fmt: skip


@pytest.fixture(scope="module")
def node(fault_gateway: FaultGateway, node_folder: Path) -> ClientRun:
    return ClientRun(fault_gateway, ["node", "scenarios.mjs"], SCENARIOS, cwd=node_folder)


def test_an_answer_and_its_account(node: ClientRun) -> None:
    """`withResponse` returns the headers and the request's id."""
    seen = node.saw("answer")
    assert seen["reply"]["choices"][0]["message"]["content"] == WHOLE
    assert seen["reply"]["usage"]["completion_tokens"] > 0
    assert seen["mode"] == "guided"
    assert seen["request_id"] == node.calls("answer")[0].reply_headers["x-request-id"]


def test_a_stream_and_its_account(node: ClientRun) -> None:
    """The last chunk has usage, and the facts under `gkt`, which the package leaves in place."""
    seen = node.saw("stream")
    assert (seen["text"], seen["finishes"], seen["broke"]) == (WHOLE, ["stop"], None)
    assert seen["last"]["usage"]["completion_tokens"] > 0
    assert seen["last"]["gkt"]["mode"] == "guided"


def test_a_raw_prompt_is_continued(node: ClientRun) -> None:
    """`completions`, whole and streamed."""
    seen = node.saw("prompt")
    assert (seen["reply"]["choices"][0]["text"], seen["mode"]) == (WHOLE, "guided")
    seen = node.saw("prompt_streamed")
    assert (seen["text"], seen["finishes"]) == (WHOLE, ["stop"])
    assert seen["last"]["gkt"]["mode"] == "guided"


def test_a_text_becomes_a_vector(node: ClientRun) -> None:
    """The package requests and decodes base64 by default."""
    assert node.saw("vector") == [1.0, 0.0]
    assert node.calls("vector")[0].json["encoding_format"] == "base64"


def test_the_stream_helper_sees_each_piece_and_the_whole(node: ClientRun) -> None:
    """The assembled pieces equal the answer of a JSON caller."""
    seen = node.saw("stream_helper")
    assert "".join(seen["deltas"]) == seen["final"]["choices"][0]["message"]["content"] == WHOLE
    assert len(seen["deltas"]) > 1
    assert seen["final"]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("scenario", ["tools", "tools_streamed"])
def test_a_tool_is_called(node: ClientRun, scenario: str) -> None:
    """A JSON reply and an assembled stream have the same tool call."""
    choice = node.saw(scenario)
    assert choice["finish_reason"] == "tool_calls"
    call = choice["message"]["tool_calls"][0]
    assert (call["id"], {name: call["function"][name] for name in CALLED}) == ("call_1", CALLED)


def test_run_tools_calls_the_function_and_gets_the_answer(node: ClientRun) -> None:
    """Two calls of the gateway: one with the question, one with the tool's result."""
    assert node.saw("tools_run") == {"content": "It is sunny.", "told": [{"city": "Oslo"}]}


def test_an_answer_is_parsed_into_the_callers_schema(node: ClientRun) -> None:
    """zodResponseFormat sends a json_schema, which reaches the student unchanged."""
    assert node.saw("parse") == PERSON
    assert node.calls("parse")[0].json["response_format"]["json_schema"]["name"] == "person"


def test_models_are_listed(node: ClientRun) -> None:
    """The list has the models that the key may use."""
    assert node.saw("models") == [*FaultGateway.NAMES]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name.replace(" ", "-"))
def test_each_refusal_is_the_right_error_after_the_right_number_of_calls(node: ClientRun, refusal: Refusal) -> None:
    """The status determines the class, with code and param.

    Only retryable errors are retried, after the stated time.
    """
    seen = node.refusals[refusal.name]
    assert seen["raised"] == RAISES["openai-node"][refusal.status]
    assert (seen["status"], seen["code"], seen["param"]) == (refusal.status, refusal.code, refusal.param)
    node.attempts[refusal.name].check_calls()
    calls = node.attempts[refusal.name].calls()
    assert seen["request_id"] == calls[-1].reply_headers["x-request-id"]
    assert [call.headers["x-stainless-retry-count"] for call in calls] == [str(n) for n in range(refusal.tries)]


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


@pytest.mark.parametrize("scenario", ["breaks", "ends_early"])
def test_a_broken_stream_raises_and_has_no_finish_reason(node: ClientRun, scenario: str) -> None:
    """The received words, no finish_reason, then APIError. No retry."""
    seen = node.saw(scenario)
    assert (seen["text"], seen["finishes"]) == (" two words", [])
    assert seen["broke"]["is_api_error"]
    assert seen["broke"]["code"] == "engine_failed"
    assert len(node.calls(scenario)) == 1


def test_the_stream_helper_of_a_stream_that_breaks_raises(node: ClientRun) -> None:
    """Half an answer has no final completion."""
    assert node.raised("helper_breaks")["is_api_error"]


def test_a_closed_connection_raises_and_has_no_finish_reason(node: ClientRun) -> None:
    """A closed connection does not count as the end of an answer."""
    seen = node.saw("wire_cut")
    assert seen["finishes"] == []
    assert (seen["broke"]["raised"], seen["broke"]["is_api_error"]) == ("TypeError", False)
    assert len(node.calls("wire_cut")) == 1
