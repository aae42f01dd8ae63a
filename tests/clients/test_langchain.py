"""LangChain's unmodified `ChatOpenAI` on the fault_gateway: answers, exceptions, retries, broken streams."""

from __future__ import annotations

import pytest

from tests.clients.environments import HERE, python_environment
from tests.clients.fault_gateway import OPENING, PERSON, REST, WHOLE, FaultGateway
from tests.clients.programs import ClientRun
from tests.clients.refusals import RAISES, REFUSALS, Refusal

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]  # it is installed on first use

SCENARIOS = ["answer", "async_answer", "stream", "async_stream", "tools", "tools_streamed", "structured", "batch",
          "busy_twice", "no_retries", "impatient", "breaks", "ends_early", "wire_cut"]  # fmt: skip
SHOWN = OPENING.rsplit(" ", 1)[0]


@pytest.fixture(scope="module")
def chain(fault_gateway: FaultGateway, tmp_path_factory: pytest.TempPathFactory) -> ClientRun:
    python = python_environment("langchain") / "python"
    program = [python, HERE / "langchain_scenarios.py"]
    return ClientRun(fault_gateway, program, SCENARIOS, cwd=tmp_path_factory.mktemp("langchain"))


def test_an_answer_and_its_account(chain: ClientRun) -> None:
    """`include_response_headers` shows the headers; usage_metadata is the caller's usage."""
    seen = chain.saw("answer")
    assert (seen["text"], seen["mode"]) == (WHOLE, "guided")
    assert seen["usage"]["output_tokens"] > 0
    assert seen["metadata"]["finish_reason"] == "stop"
    assert chain.calls("answer")[0].json["max_completion_tokens"] == 50, "that is what it makes of max_tokens"
    assert seen["metadata"]["id"] == "chatcmpl-" + chain.calls("answer")[0].reply_headers["x-request-id"]
    assert chain.saw("async_answer") == WHOLE


def test_a_stream_starts_with_guidance_and_has_usage_only_on_request(chain: ClientRun) -> None:
    """With a custom base URL ChatOpenAI leaves `stream_usage` off: no usage arrives."""
    seen = chain.saw("stream")
    assert SHOWN.startswith(next(text for text in seen["texts"] if text))
    assert "".join(seen["texts"]) == WHOLE
    assert seen["finishes"] == ["stop"]
    assert not any(seen["usage"])


def test_a_stream_with_usage_drops_the_receipt(chain: ClientRun) -> None:
    """`stream_usage=True` adds usage; LangChain drops the last chunk's other facts under `gkt`."""
    seen = chain.saw("async_stream")
    assert "".join(seen["texts"]) == WHOLE
    assert seen["usage"][-1]["output_tokens"] > 0
    assert seen["gkt"] is False


def test_a_tool_is_called_and_its_result_answered(chain: ClientRun) -> None:
    """A JSON reply and an assembled stream have the same tool call."""
    called = [{"name": "weather", "args": {"city": "Oslo"}, "id": "call_1", "type": "tool_call"}]
    assert chain.saw("tools") == {"calls": called, "answer": "It is sunny."}
    assert chain.saw("tools_streamed") == called


def test_an_answer_is_parsed_into_the_callers_model(chain: ClientRun) -> None:
    """with_structured_output sends a json_schema."""
    assert chain.saw("structured") == PERSON
    assert chain.calls("structured")[0].json["response_format"]["type"] == "json_schema"


def test_a_batch_is_one_call_for_each(chain: ClientRun) -> None:
    """Three questions, three answers, three calls."""
    assert chain.saw("batch") == [WHOLE, WHOLE, WHOLE]
    assert len(chain.calls("batch")) == 3


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name.replace(" ", "-"))
def test_each_refusal_is_the_right_exception_after_the_right_number_of_calls(
    chain: ClientRun, refusal: Refusal
) -> None:
    """The exception is OpenAI's own class, or LangChain's subclass of it."""
    seen = chain.refusals[refusal.name]
    assert f"openai.{RAISES['ChatOpenAI'][refusal.status]}" in seen["also"]
    assert (seen["status"], seen["code"], seen["param"]) == (refusal.status, refusal.code, refusal.param)
    chain.attempts[refusal.name].check_calls()


def test_a_retrying_client_gets_its_answer(chain: ClientRun) -> None:
    """The engine is full twice; the third call is answered."""
    assert chain.saw("busy_twice") == REST
    assert [call.status for call in chain.calls("busy_twice")] == [503, 503, 200]


def test_a_client_without_retries_sends_one_call(chain: ClientRun) -> None:
    """max_retries=0"""
    assert chain.raised("no_retries")["status"] == 503
    assert len(chain.calls("no_retries")) == 1


def test_a_client_that_does_not_wait_raises(chain: ClientRun) -> None:
    """`timeout` is in seconds, and applies to each attempt."""
    assert "openai.APITimeoutError" in chain.raised("impatient")["also"]
    assert [call.status for call in chain.calls("impatient")] == [None, None]


@pytest.mark.parametrize("scenario", ["breaks", "ends_early"])
def test_a_broken_stream_raises_and_has_no_finish_reason(chain: ClientRun, scenario: str) -> None:
    """The received words, no finish_reason, then APIError. No retry."""
    seen = chain.saw(scenario)
    assert (seen["text"], seen["finishes"]) == (" two words", [])
    assert "openai.APIError" in seen["broke"]["also"]
    assert seen["broke"]["code"] == "engine_failed"
    assert len(chain.calls(scenario)) == 1


def test_a_closed_connection_raises_and_has_no_finish_reason(chain: ClientRun) -> None:
    """A closed connection does not count as the end of an answer."""
    seen = chain.saw("wire_cut")
    assert seen["finishes"] == []
    assert "openai.APIConnectionError" in seen["broke"]["also"]
    assert len(chain.calls("wire_cut")) == 1
