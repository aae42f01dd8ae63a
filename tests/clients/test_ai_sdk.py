"""The unmodified AI SDK with `createOpenAI()` and its default, the Responses API, on the fault_gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.clients.fault_gateway import OPENING, PERSON, RESPONSES, REST, WHOLE, FaultGateway
from tests.clients.programs import ClientRun
from tests.clients.refusals import REFUSALS, Refusal

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.timeout(300), pytest.mark.long]  # it is installed on first use

SCENARIOS = ["answer", "stream", "tools", "tools_streamed", "structured", "structured_streamed", "busy_twice",
             "no_retries", "impatient", "aborted", "breaks", "ends_early", "wire_cut"]  # fmt: skip
SHOWN = OPENING.rsplit(" ", 1)[0]


@pytest.fixture(scope="module")
def ai_sdk(fault_gateway: FaultGateway, node_folder: Path) -> ClientRun:
    return ClientRun(fault_gateway, ["node", "ai_sdk.mjs"], SCENARIOS, cwd=node_folder)


def test_an_answer_and_its_account(ai_sdk: ClientRun) -> None:
    """The response's headers have the mode, its id the request's id."""
    seen = ai_sdk.saw("answer")
    assert (seen["text"], seen["finish"], seen["mode"]) == (WHOLE, "stop", "guided")
    assert seen["usage"]["outputTokens"] > 0
    call = ai_sdk.calls("answer")[0]
    assert (call.path, seen["id"]) == (RESPONSES, call.reply_headers["x-request-id"].replace("req_", "resp_"))


def test_a_stream_starts_with_guidance(ai_sdk: ClientRun) -> None:
    """The deltas add up to the answer."""
    seen = ai_sdk.saw("stream")
    assert SHOWN.startswith(seen["texts"][0])
    assert ("".join(seen["texts"]), seen["finish"], seen["broke"]) == (WHOLE, "stop", None)
    assert seen["usage"]["outputTokens"] > 0


def test_a_tool_is_called_and_its_result_answered(ai_sdk: ClientRun) -> None:
    """The SDK runs the function in the loop, whole and streamed."""
    assert ai_sdk.saw("tools") == {
        "text": "It is sunny in Oslo.",
        "calls": [{"toolName": "weather", "input": {"city": "Oslo"}}],
    }
    streamed = ai_sdk.saw("tools_streamed")
    assert ("".join(streamed["texts"]), streamed["broke"]) == ("It is sunny in Oslo.", None)
    assert {"tool-input-delta", "tool-call", "tool-result"} <= set(streamed["types"])


def test_an_answer_is_parsed_into_the_callers_schema(ai_sdk: ClientRun) -> None:
    """Output.object sends `text.format`."""
    assert ai_sdk.saw("structured") == ai_sdk.saw("structured_streamed") == PERSON
    assert ai_sdk.calls("structured")[0].json["text"]["format"]["type"] == "json_schema"


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name.replace(" ", "-"))
def test_each_refusal_is_the_right_error_after_the_right_number_of_calls(ai_sdk: ClientRun, refusal: Refusal) -> None:
    """AI_APICallError has the status and, in `data`, code and param."""
    seen = ai_sdk.refusals[refusal.name]
    assert (seen["raised"], seen["retried"]) == ("AI_APICallError", refusal.retried)
    assert (seen["status"], seen["code"], seen["param"]) == (refusal.status, refusal.code, refusal.param)
    ai_sdk.attempts[refusal.name].check_calls()


def test_a_retrying_client_gets_its_answer(ai_sdk: ClientRun) -> None:
    """The engine is full twice; the third call is answered."""
    assert ai_sdk.saw("busy_twice") == REST
    assert [call.status for call in ai_sdk.calls("busy_twice")] == [503, 503, 200]


def test_a_client_without_retries_sends_one_call(ai_sdk: ClientRun) -> None:
    """maxRetries: 0"""
    assert ai_sdk.raised("no_retries")["status"] == 503
    assert len(ai_sdk.calls("no_retries")) == 1


def test_a_client_that_does_not_wait_raises(ai_sdk: ClientRun) -> None:
    """`abortSignal` applies to all attempts."""
    assert ai_sdk.raised("impatient")["raised"] == "TimeoutError"
    assert [call.status for call in ai_sdk.calls("impatient")] == [None]


def test_an_aborted_stream_ends_the_request(ai_sdk: ClientRun, fault_gateway: FaultGateway) -> None:
    """The gateway detects that the client has gone."""
    assert ai_sdk.saw("aborted") == "abort"
    assert fault_gateway.receipt(ai_sdk.calls("aborted")[0])["status"] == "client_gone"


@pytest.mark.parametrize(
    ("scenario", "raised", "finish"),
    [
        ("breaks", "AI_StreamProviderError", "error"),
        ("ends_early", "AI_StreamProviderError", "error"),
        ("wire_cut", "AI_APICallError", None),
    ],
)
def test_a_broken_stream_has_an_error(ai_sdk: ClientRun, scenario: str, raised: str, finish: str | None) -> None:
    """The received words, then a part `error`; the stream of a closed connection raises. No retry."""
    seen = ai_sdk.saw(scenario)
    assert (seen["broke"]["raised"], seen["finish"]) == (raised, finish)
    assert scenario == "wire_cut" or "".join(seen["texts"]) == " two words"
    assert len(ai_sdk.calls(scenario)) == 1
