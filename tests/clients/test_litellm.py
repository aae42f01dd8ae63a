"""The unmodified LiteLLM SDK, in the version that the gateway depends on, on the fault_gateway."""

from __future__ import annotations

import sys

import pytest

from tests.clients.environments import HERE
from tests.clients.fault_gateway import CALLED, OPENING, PERSON, REST, WHOLE, FaultGateway
from tests.clients.programs import ClientRun
from tests.clients.refusals import RAISES, REFUSALS, Refusal

# Importing it takes five seconds of a quiet core.
pytestmark = [pytest.mark.timeout(300), pytest.mark.long]

SCENARIOS = ["answer", "async_answer", "stream", "async_stream", "tools", "tools_streamed", "structured", "busy_twice",
          "no_retries", "impatient", "breaks", "ends_early", "wire_cut"]  # fmt: skip
SHOWN = OPENING.rsplit(" ", 1)[0]


@pytest.fixture(scope="module")
def lite(fault_gateway: FaultGateway, tmp_path_factory: pytest.TempPathFactory) -> ClientRun:
    program = [sys.executable, HERE / "litellm_scenarios.py"]
    return ClientRun(fault_gateway, program, SCENARIOS, cwd=tmp_path_factory.mktemp("litellm"))


def test_an_answer_and_its_account(lite: ClientRun) -> None:
    """The gateway's headers are in the hidden params, with the prefix `llm_provider-`."""
    seen = lite.saw("answer")
    assert (seen["text"], seen["mode"], seen["model"]) == (WHOLE, "guided", "chat")
    assert seen["usage"]["completion_tokens"] > 0
    assert seen["request_id"] == lite.calls("answer")[0].reply_headers["x-request-id"]
    assert seen["id"] == "chatcmpl-" + seen["request_id"]
    assert seen["cost"] is None, "it knows no price of this model"
    assert lite.saw("async_answer") == WHOLE


def test_a_stream_has_usage_and_loses_the_account(lite: ClientRun) -> None:
    """The guidance comes first. LiteLLM rebuilds the chunks and drops the last one's facts under `gkt`."""
    seen = lite.saw("stream")
    assert ("".join(seen["texts"]), seen["finishes"]) == (WHOLE, ["stop"])
    assert SHOWN.startswith(seen["texts"][0])
    assert seen["last"]["usage"]["completion_tokens"] > 0
    assert "gkt" not in seen["last"]
    assert seen["mode"] == "guided"
    later = lite.saw("async_stream")
    assert ("".join(later["texts"]), later["finishes"]) == (WHOLE, ["stop"])


@pytest.mark.parametrize("scenario", ["tools", "tools_streamed"])
def test_a_tool_is_called(lite: ClientRun, scenario: str) -> None:
    """A JSON reply and the result of stream_chunk_builder have the same tool call."""
    assert lite.saw(scenario) == {"finish": "tool_calls", "calls": [{"id": "call_1", **CALLED}]}


def test_an_answer_is_in_the_callers_schema(lite: ClientRun) -> None:
    """A pydantic model as response_format is sent as a json_schema."""
    assert lite.saw("structured") == PERSON
    assert lite.calls("structured")[0].json["response_format"]["json_schema"]["name"] == "Person"


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name.replace(" ", "-"))
def test_each_refusal_is_the_right_exception_after_the_right_number_of_calls(lite: ClientRun, refusal: Refusal) -> None:
    """LiteLLM raises its class for the status; it keeps almost nothing of OpenAI's code and param."""
    seen = lite.refusals[refusal.name]
    assert (seen["raised"], seen["status"]) == (RAISES["LiteLLM"][refusal.status], refusal.status)
    assert "litellm." + RAISES["LiteLLM"][refusal.status] in seen["also"]
    lite.attempts[refusal.name].check_calls()


def test_a_retrying_client_gets_its_answer(lite: ClientRun) -> None:
    """The engine is full twice; the third call is answered."""
    assert lite.saw("busy_twice") == REST
    assert [call.status for call in lite.calls("busy_twice")] == [503, 503, 200]


def test_a_client_without_retries_sends_one_call(lite: ClientRun) -> None:
    """max_retries=0"""
    assert lite.raised("no_retries")["raised"] == "ServiceUnavailableError"
    assert len(lite.calls("no_retries")) == 1


def test_a_client_that_does_not_wait_raises(lite: ClientRun) -> None:
    """`timeout` is in seconds, and applies to each attempt."""
    assert lite.raised("impatient")["raised"] == "Timeout"
    assert [call.status for call in lite.calls("impatient")] == [None, None]


@pytest.mark.parametrize("scenario", ["breaks", "ends_early", "wire_cut"])
def test_a_broken_stream_raises_and_has_no_finish_reason(lite: ClientRun, scenario: str) -> None:
    """LiteLLM raises its own MidStreamFallbackError. No retry."""
    seen = lite.saw(scenario)
    assert seen["finishes"] == []
    assert "openai.APIError" in seen["broke"]["also"]
    assert seen["broke"]["raised"] == "MidStreamFallbackError"
    assert scenario == "wire_cut" or seen["text"] == " two words"
    assert len(lite.calls(scenario)) == 1
