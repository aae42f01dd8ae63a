"""The unmodified `openai` package for Python with the Responses API on the fault_gateway."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import openai
import pydantic
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.clients.fault_gateway import CALLED, OPENING, PERSON, REST, WHOLE, FaultGateway, a_question
from tests.clients.refusals import RAISES, REFUSALS, Attempt, Refusal
from tests.gateway_process import KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

SHOWN = OPENING.rsplit(" ", 1)[0]
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
TEXT_EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


class Person(pydantic.BaseModel):
    name: str
    born: int


@pytest.fixture
def client(fault_gateway: FaultGateway) -> Iterator[OpenAI]:
    with fault_gateway.audited(), OpenAI(base_url=fault_gateway.url, api_key=KEY) as client:
        yield client


def collect(stream: Any, events: list[Any]) -> None:
    """Keep the received events, also if the stream raises."""
    for event in stream:
        events.append(event)  # noqa: PERF402


def without_repeats(events: list[Any]) -> list[str]:
    """Return the types of the events in order. Several events of one type in a row count once."""
    types = [event.type for event in events]
    return [kind for kind, before in zip(types, ["", *types], strict=False) if kind != before]


def test_an_answer_and_its_account(client: OpenAI) -> None:
    """The answer is the teacher's words, then the student's. The id leads to the receipt."""
    raw = client.responses.with_raw_response.create(model="chat", input=a_question(), max_output_tokens=20)
    response = raw.parse()
    assert response.output_text == WHOLE
    assert (response.status, response.error, response.incomplete_details) == ("completed", None, None)
    assert [(item.type, item.id) for item in response.output] == [("message", response.output[0].id)]
    assert raw.headers["x-gkt-mode"] == "guided"
    assert float(raw.headers["x-gkt-cost-usd"]) > 0
    assert response._request_id == raw.headers["x-request-id"] == response.id.replace("resp_", "req_")
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens > 0
    assert (response.model, response.max_output_tokens) == ("chat", 20)
    receipt: Any = client.get(f"/receipts/{response._request_id}", cast_to=object)
    assert receipt["status"] == "ok"


def test_instructions_and_a_conversation_reach_the_student(client: OpenAI, fault_gateway: FaultGateway) -> None:
    """Output items of a reply are input items of the next request."""
    question = a_question()
    first = client.responses.create(model="chat-student", instructions="Be brief.", input=question)
    more = a_question()
    history: Any = [{"role": "user", "content": question}, *first.output, {"role": "user", "content": more}]
    assert client.responses.create(model="chat-student", input=history, store=False).output_text == REST
    assert fault_gateway.calls("chat-student", more)[0].json["store"] is False


def test_a_stream_has_all_events_in_order(client: OpenAI) -> None:
    """The guidance comes first. Each event has the next number, and each item one id."""
    stream = client.responses.create(model="chat", input=a_question(), stream=True)
    events: list[Any] = list(stream)
    assert without_repeats(events) == TEXT_EVENTS
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert SHOWN.startswith(deltas[0].delta)
    assert len(deltas) > 1
    completed = events[-1].response
    assert "".join(event.delta for event in deltas) == completed.output_text == WHOLE
    ids = {event.item_id for event in events if hasattr(event, "item_id")}
    ids |= {event.item.id for event in events if hasattr(event, "item")}
    assert ids == {completed.output[0].id}
    assert {event.response.id for event in events if hasattr(event, "response")} == {completed.id}
    assert completed.id == stream.response.headers["x-request-id"].replace("req_", "resp_")
    assert completed.usage.output_tokens > 0
    assert stream.response.headers["x-gkt-mode"] == "guided"


def test_the_stream_helper_sees_each_piece_and_the_whole(client: OpenAI) -> None:
    """`responses.stream` accumulates the events into the response that a JSON caller gets."""
    with client.responses.stream(model="chat", input=a_question()) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == WHOLE
    assert final.status == "completed"
    assert final.usage is not None
    assert final.usage.output_tokens > 0


async def test_the_async_client_does_the_same(fault_gateway: FaultGateway) -> None:
    """Answer, stream and stream helper run concurrently."""
    with fault_gateway.audited():
        async with AsyncOpenAI(base_url=fault_gateway.url, api_key=KEY) as later:

            async def streamed() -> str:
                stream = await later.responses.create(model="chat", input=a_question(), stream=True)
                return "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])

            async def helped() -> str:
                async with later.responses.stream(model="chat", input=a_question()) as stream:
                    return (await stream.get_final_response()).output_text

            async def answer_text() -> str:
                return (await later.responses.create(model="chat", input=a_question())).output_text

            assert set(await asyncio.gather(answer_text(), streamed(), helped())) == {WHOLE}


def test_a_tool_is_called_and_its_result_answered(client: OpenAI) -> None:
    """The call arrives as JSON, as a stream and through the helper. Its result is answered."""
    question = a_question()
    whole = client.responses.create(model="tools", input=question, tools=[WEATHER])
    called = whole.output[0]
    assert called.type == "function_call"
    assert (called.call_id, called.name, called.arguments, called.status) == ("call_1", *CALLED.values(), "completed")
    assert whole.output_text == ""

    events: list[Any] = list(client.responses.create(model="tools", input=a_question(), tools=[WEATHER], stream=True))
    assert without_repeats(events) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    deltas = [event for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(event.delta for event in deltas) == CALLED["arguments"]
    streamed = events[-1].response.output[0]
    assert {event.item_id for event in deltas} == {streamed.id}
    assert (streamed.call_id, streamed.name, streamed.arguments) == ("call_1", *CALLED.values())

    with client.responses.stream(model="tools", input=a_question(), tools=[WEATHER]) as stream:
        final = stream.get_final_response().output[0]
    assert final.type == "function_call"
    assert final.arguments == CALLED["arguments"]

    history: Any = [
        {"role": "user", "content": question},
        *whole.output,
        {"type": "function_call_output", "call_id": called.call_id, "output": "sunny"},
    ]
    answered = client.responses.create(model="tools", input=history, tools=[WEATHER])
    assert answered.output_text == "It is sunny."


def test_an_answer_is_parsed_into_the_callers_model(client: OpenAI, fault_gateway: FaultGateway) -> None:
    """`parse` and the stream helper send `text.format`."""
    question = a_question()
    parsed = client.responses.parse(model="person", input=question, text_format=Person)
    assert parsed.output_parsed == Person.model_validate(PERSON)
    assert fault_gateway.calls("person", question)[0].json["text"]["format"]["name"] == "Person"
    with client.responses.stream(model="person", input=a_question(), text_format=Person) as stream:
        assert stream.get_final_response().output_parsed == Person.model_validate(PERSON)


@pytest.fixture(scope="module")
def refused(fault_gateway: FaultGateway) -> dict[str, tuple[Attempt, openai.APIStatusError]]:
    """Provoke all refusals concurrently with the client's defaults; return the exception of each."""

    async def meet(attempt: Attempt) -> openai.APIStatusError:
        refusal = attempt.refusal
        async with AsyncOpenAI(base_url=fault_gateway.url, api_key=refusal.key) as client:
            if refusal.max_retries is not None:
                client.max_retries = refusal.max_retries
            with pytest.raises(openai.APIStatusError) as raised:
                await client.responses.create(
                    model=refusal.model,
                    input=attempt.question,
                    temperature=openai.omit if refusal.temperature is None else refusal.temperature,
                )
        return raised.value

    async def meet_all(attempts: list[Attempt]) -> list[openai.APIStatusError]:
        return await asyncio.gather(*map(meet, attempts))

    with fault_gateway.crowd(), fault_gateway.audited():
        attempts = [Attempt(fault_gateway, refusal) for refusal in REFUSALS]
        met = asyncio.run(meet_all(attempts))
        return {attempt.refusal.name: (attempt, error) for attempt, error in zip(attempts, met, strict=True)}


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name.replace(" ", "-"))
def test_each_refusal_is_the_right_exception_after_the_right_number_of_calls(
    refused: dict[str, tuple[Attempt, openai.APIStatusError]], refusal: Refusal
) -> None:
    """The status determines the class, with code and param, as with chat completions."""
    attempt, error = refused[refusal.name]
    assert type(error).__name__ == RAISES["openai-python"][refusal.status]
    assert (error.status_code, error.code, error.param) == (refusal.status, refusal.code, refusal.param)
    attempt.check_calls()
    assert error.request_id == attempt.calls()[-1].reply_headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": [{"role": "user", "content": [{"type": "input_speech"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call_output", "output": "sunny"}]}, "input[0].call_id"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
    ],
)
def test_an_error_names_the_field(client: OpenAI, body: Any, param: str) -> None:
    """`param` is the path of the field in the client's request."""
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model="chat", **body)
    assert raised.value.param == param


@pytest.mark.long
def test_a_retrying_client_gets_its_answer(client: OpenAI, fault_gateway: FaultGateway) -> None:
    """The engine is full twice; each call has its receipt, and the third is answered."""
    question, started = a_question(), time.monotonic()
    assert client.responses.create(model="busy-twice", input=question).output_text == REST
    assert time.monotonic() - started >= 1.5
    calls = fault_gateway.calls("busy-twice", question)
    assert [call.status for call in calls] == [503, 503, 200]
    assert [fault_gateway.receipt(call)["status"] for call in calls] == ["engine_overloaded", "engine_overloaded", "ok"]


def test_a_client_that_does_not_wait_raises_and_each_try_has_a_receipt(
    client: OpenAI, fault_gateway: FaultGateway
) -> None:
    """`timeout` applies to each attempt; the gateway detects the disconnect (`audited` checks it)."""
    question = a_question()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5, max_retries=1).responses.create(model="slow", input=question)
    assert len(fault_gateway.calls("slow", question)) == 2


def test_a_stream_that_the_client_closes_ends_the_request(client: OpenAI, fault_gateway: FaultGateway) -> None:
    """The gateway detects that the client has gone."""
    question = a_question()
    with client.responses.create(model="gradual", input=question, stream=True) as stream:
        next(stream)
    assert fault_gateway.receipt(fault_gateway.calls("gradual", question)[0])["status"] == "client_gone"


@pytest.mark.parametrize("model", ["breaks", "ends-early"])
def test_a_broken_stream_ends_in_response_failed(client: OpenAI, fault_gateway: FaultGateway, model: str) -> None:
    """The last event has the error and the received words. No retry, no exception; the helper has no final response."""
    question = a_question()
    events: list[Any] = list(client.responses.create(model=model, input=question, stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == " two words"
    failed = events[-1]
    assert (failed.type, failed.response.status) == ("response.failed", "failed")
    assert failed.response.error.message
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert len(fault_gateway.calls(model, question)) == 1
    with client.responses.stream(model=model, input=a_question()) as stream, pytest.raises(RuntimeError):
        stream.get_final_response()


def test_a_closed_connection_raises_without_a_last_event(client: OpenAI, fault_gateway: FaultGateway) -> None:
    """A closed connection raises APIConnectionError. No retry."""
    question = a_question()
    events: list[Any] = []
    with pytest.raises(openai.APIConnectionError):
        collect(client.responses.create(model="wire-cut", input=question, stream=True), events)
    assert events
    assert "response.completed" not in [event.type for event in events]
    calls = fault_gateway.calls("wire-cut", question)
    assert len(calls) == 1
    assert fault_gateway.receipt(calls[0])["status"] == "client_gone"
