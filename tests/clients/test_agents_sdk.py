"""The unmodified OpenAI Agents SDK with its defaults, the Responses API, on the fault_gateway."""

from __future__ import annotations

import pytest

from tests.clients.environments import HERE, python_environment
from tests.clients.fault_gateway import OPENING, PERSON, RESPONSES, REST, WHOLE, FaultGateway
from tests.clients.programs import ClientRun
from tests.clients.refusals import RAISES, REFUSALS, Refusal

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]  # it is installed on first use

SCENARIOS = ["answer", "stream", "conversation", "tools", "tools_streamed", "structured", "busy_twice", "no_retries",
             "impatient", "cancelled", "breaks", "ends_early", "wire_cut"]  # fmt: skip
SHOWN = OPENING.rsplit(" ", 1)[0]


@pytest.fixture(scope="module")
def agents(fault_gateway: FaultGateway, tmp_path_factory: pytest.TempPathFactory) -> ClientRun:
    program = [python_environment("agents_sdk") / "python", HERE / "agents_sdk_scenarios.py"]
    return ClientRun(fault_gateway, program, SCENARIOS, cwd=tmp_path_factory.mktemp("agents"))


def test_an_answer_and_its_usage(agents: ClientRun) -> None:
    """A run is one call of the Responses API, with guidance."""
    seen = agents.saw("answer")
    assert seen["text"] == WHOLE
    assert seen["usage"]["requests"] == 1
    assert seen["usage"]["output_tokens"] > 0
    calls = agents.calls("answer")
    assert [(call.path, call.status, call.reply_headers["x-gkt-mode"]) for call in calls] == [
        (RESPONSES, 200, "guided")
    ]
    assert calls[0].json["instructions"] == "Be brief."


def test_a_stream_starts_with_guidance(agents: ClientRun) -> None:
    """The deltas add up to the final output."""
    seen = agents.saw("stream")
    assert SHOWN.startswith(seen["texts"][0])
    assert "".join(seen["texts"]) == seen["final"] == WHOLE
    assert seen["items"] == ["message_output_created"]


def test_the_next_turn_of_a_conversation_is_answered(agents: ClientRun) -> None:
    """`to_input_list` sends the output items of the first reply again."""
    assert agents.saw("conversation") == REST
    roles = [item.get("role") for item in agents.calls("conversation")[0].json["input"]]
    assert roles == ["user", "assistant", "user"]


def test_a_tool_is_called_and_its_result_answered(agents: ClientRun) -> None:
    """The SDK runs the function in the loop, whole and streamed."""
    assert agents.saw("tools") == {
        "text": "It is sunny in Oslo.",
        "items": ["tool_call_item", "tool_call_output_item", "message_output_item"],
    }
    streamed = agents.saw("tools_streamed")
    assert streamed["final"] == "It is sunny in Oslo."
    assert streamed["items"] == ["tool_called", "tool_output", "message_output_created"]


def test_an_answer_is_parsed_into_the_callers_model(agents: ClientRun) -> None:
    """`output_type` sends `text.format`."""
    assert agents.saw("structured") == PERSON
    assert agents.calls("structured")[0].json["text"]["format"]["type"] == "json_schema"


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name.replace(" ", "-"))
def test_each_refusal_is_the_right_exception_after_the_right_number_of_calls(
    agents: ClientRun, refusal: Refusal
) -> None:
    """The exception is OpenAI's own class."""
    seen = agents.refusals[refusal.name]
    assert seen["raised"] == RAISES["openai-python"][refusal.status]
    assert (seen["status"], seen["code"], seen["param"]) == (refusal.status, refusal.code, refusal.param)
    agents.attempts[refusal.name].check_calls()


def test_a_retrying_client_gets_its_answer(agents: ClientRun) -> None:
    """The engine is full twice; the third call is answered."""
    assert agents.saw("busy_twice") == REST
    assert [call.status for call in agents.calls("busy_twice")] == [503, 503, 200]


def test_a_client_without_retries_sends_one_call(agents: ClientRun) -> None:
    """max_retries=0 of its client"""
    assert agents.raised("no_retries")["status"] == 503
    assert len(agents.calls("no_retries")) == 1


def test_a_client_that_does_not_wait_raises(agents: ClientRun) -> None:
    """`timeout` applies to each attempt."""
    assert agents.raised("impatient")["raised"] == "APITimeoutError"
    assert [call.status for call in agents.calls("impatient")] == [None, None]


def test_a_cancelled_stream_ends_the_request(agents: ClientRun, fault_gateway: FaultGateway) -> None:
    """`cancel` closes the connection; the gateway detects that the client has gone."""
    assert agents.saw("cancelled") is True
    assert fault_gateway.receipt(agents.calls("cancelled")[0])["status"] == "client_gone"


@pytest.mark.parametrize(
    ("scenario", "raised"),
    [("breaks", "ModelBehaviorError"), ("ends_early", "ModelBehaviorError"), ("wire_cut", "APIConnectionError")],
)
def test_a_broken_stream_raises(agents: ClientRun, scenario: str, raised: str) -> None:
    """The received words, then an exception. No retry."""
    seen = agents.saw(scenario)
    assert seen["broke"]["raised"] == raised
    assert scenario == "wire_cut" or "".join(seen["texts"]) == " two words"
    assert len(agents.calls(scenario)) == 1
