"""The unmodified pydantic-ai with `openai:` models, the Responses API, on the fault_gateway."""

from __future__ import annotations

import pytest

from tests.clients.environments import HERE, python_environment
from tests.clients.fault_gateway import OPENING, PERSON, RESPONSES, REST, WHOLE, FaultGateway
from tests.clients.programs import ClientRun
from tests.clients.refusals import REFUSALS, Refusal

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]  # it is installed on first use

SCENARIOS = ["answer", "stream", "conversation", "tools", "tools_streamed", "structured", "structured_streamed",
             "busy_twice", "no_retries", "impatient", "cancelled", "breaks", "ends_early", "wire_cut"]  # fmt: skip
SHOWN = OPENING.rsplit(" ", 1)[0]


@pytest.fixture(scope="module")
def pydantic_ai(fault_gateway: FaultGateway, tmp_path_factory: pytest.TempPathFactory) -> ClientRun:
    program = [python_environment("pydantic_ai") / "python", HERE / "pydantic_ai_scenarios.py"]
    return ClientRun(fault_gateway, program, SCENARIOS, cwd=tmp_path_factory.mktemp("pydantic_ai"))


def test_an_answer_and_its_usage(pydantic_ai: ClientRun) -> None:
    """A run is one call of the Responses API, with guidance."""
    seen = pydantic_ai.saw("answer")
    assert (seen["text"], seen["finish"]) == (WHOLE, "stop")
    assert seen["output_tokens"] > 0
    calls = pydantic_ai.calls("answer")
    assert [(call.path, call.status, call.reply_headers["x-gkt-mode"]) for call in calls] == [
        (RESPONSES, 200, "guided")
    ]
    assert seen["id"] == calls[0].reply_headers["x-request-id"].replace("req_", "resp_")


def test_a_stream_starts_with_guidance(pydantic_ai: ClientRun) -> None:
    """The deltas add up to the answer."""
    seen = pydantic_ai.saw("stream")
    assert SHOWN.startswith(seen["texts"][0])
    assert ("".join(seen["texts"]), seen["finish"], seen["broke"]) == (WHOLE, "stop", None)


def test_the_next_turn_of_a_conversation_is_answered(pydantic_ai: ClientRun) -> None:
    """`message_history` sends the first reply again."""
    assert pydantic_ai.saw("conversation") == REST
    roles = [item.get("role") for item in pydantic_ai.calls("conversation")[0].json["input"]]
    assert roles == ["user", "assistant", "user"]


def test_a_tool_is_called_and_its_result_answered(pydantic_ai: ClientRun) -> None:
    """The agent runs the function in the loop, whole and streamed."""
    assert pydantic_ai.saw("tools") == {
        "text": "It is sunny in Oslo.",
        "parts": ["user-prompt", "tool-call", "tool-return", "text"],
    }
    assert "".join(pydantic_ai.saw("tools_streamed")["texts"]) == "It is sunny in Oslo."


def test_an_answer_is_parsed_into_the_callers_model(pydantic_ai: ClientRun) -> None:
    """NativeOutput sends `text.format`."""
    assert pydantic_ai.saw("structured") == pydantic_ai.saw("structured_streamed") == PERSON
    assert pydantic_ai.calls("structured")[0].json["text"]["format"]["type"] == "json_schema"


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name.replace(" ", "-"))
def test_each_refusal_is_the_right_exception_after_the_right_number_of_calls(
    pydantic_ai: ClientRun, refusal: Refusal
) -> None:
    """A subclass of ModelHTTPError has the status and, in `body`, code and param."""
    seen = pydantic_ai.refusals[refusal.name]
    assert "pydantic_ai.ModelHTTPError" in seen["also"]
    assert (seen["status"], seen["code"], seen["param"]) == (refusal.status, refusal.code, refusal.param)
    pydantic_ai.attempts[refusal.name].check_calls()


def test_a_retrying_client_gets_its_answer(pydantic_ai: ClientRun) -> None:
    """The engine is full twice; the third call is answered."""
    assert pydantic_ai.saw("busy_twice") == REST
    assert [call.status for call in pydantic_ai.calls("busy_twice")] == [503, 503, 200]


def test_a_client_without_retries_sends_one_call(pydantic_ai: ClientRun) -> None:
    """max_retries=0 of its client"""
    assert pydantic_ai.raised("no_retries")["status"] == 503
    assert len(pydantic_ai.calls("no_retries")) == 1


def test_a_client_that_does_not_wait_raises(pydantic_ai: ClientRun) -> None:
    """`timeout` applies to each attempt."""
    assert "pydantic_ai.ModelAPIError" in pydantic_ai.raised("impatient")["also"]
    assert [call.status for call in pydantic_ai.calls("impatient")] == [None, None]


def test_a_stream_that_the_client_closes_ends_the_request(pydantic_ai: ClientRun, fault_gateway: FaultGateway) -> None:
    """The gateway detects that the client has gone."""
    assert pydantic_ai.saw("cancelled")
    assert fault_gateway.receipt(pydantic_ai.calls("cancelled")[0])["status"] == "client_gone"


@pytest.mark.parametrize(
    ("scenario", "raised"),
    [("breaks", "ModelServerError"), ("ends_early", "ModelServerError"), ("wire_cut", "ModelConnectionError")],
)
def test_a_broken_stream_raises(pydantic_ai: ClientRun, scenario: str, raised: str) -> None:
    """The received words, then an exception. No retry."""
    seen = pydantic_ai.saw(scenario)
    assert (seen["broke"]["raised"], seen["finish"]) == (raised, None)
    assert scenario == "wire_cut" or "".join(seen["texts"]) == " two words"
    assert len(pydantic_ai.calls(scenario)) == 1
