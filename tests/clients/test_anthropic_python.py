"""The unmodified `anthropic` package for Python on the fault_gateway: answers, exceptions, retries, broken streams."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import anthropic
import pydantic
import pytest
from anthropic import Anthropic, AsyncAnthropic, beta_tool

from tests.clients.fault_gateway import OPENING, PERSON, REST, WHOLE, FaultGateway, a_question
from tests.clients.refusals import (
    ANTHROPIC_RAISES,
    ANTHROPIC_STATUS,
    ANTHROPIC_TYPES,
    REFUSALS,
    TRIES,
    Attempt,
    Refusal,
)
from tests.gateway_process import KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

SHOWN = OPENING.rsplit(" ", 1)[0]
WEATHER: Any = {
    "name": "weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
TEXT_EVENTS = [
    "message_start",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "message_delta",
    "message_stop",
]


class Person(pydantic.BaseModel):
    name: str
    born: int


def ask(of: str = "something") -> list[Any]:
    return [{"role": "user", "content": a_question(of)}]


@pytest.fixture
def client(fault_gateway: FaultGateway) -> Iterator[Anthropic]:
    with fault_gateway.audited(), Anthropic(base_url=fault_gateway.tap.url, api_key=KEY) as client:
        yield client


def collect(stream: Any, events: list[Any]) -> None:
    """Keep the received events, also if the stream raises."""
    for event in stream:
        events.append(event)  # noqa: PERF402


def text_in(events: list[Any]) -> str:
    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    return "".join(delta.text for delta in deltas if delta.type == "text_delta")


def without_repeats(events: list[Any]) -> list[str]:
    """Return the types of the events in order. Several events of one type in a row count once."""
    types = [event.type for event in events]
    return [kind for kind, before in zip(types, ["", *types], strict=False) if kind != before]


def test_an_answer_and_its_account(client: Anthropic) -> None:
    """The answer is the teacher's words, then the student's. `_request_id` leads to the receipt."""
    raw = client.messages.with_raw_response.create(model="chat", messages=ask(), max_tokens=20)
    message = raw.parse()
    assert [(block.type, block.text) for block in message.content if block.type == "text"] == [("text", WHOLE)]
    assert (message.role, message.stop_reason, message.stop_sequence) == ("assistant", "end_turn", None)
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0
    assert raw.headers["x-gkt-mode"] == "guided"
    assert message._request_id == raw.headers["x-request-id"] == message.id.removeprefix("msg_")
    receipt: Any = client.get(f"/v1/receipts/{message._request_id}", cast_to=object)
    assert receipt["status"] == "ok"


def test_a_bearer_token_is_a_key_too(fault_gateway: FaultGateway) -> None:
    """`auth_token` is sent as a bearer token, `api_key` as x-api-key."""
    messages = ask()
    with fault_gateway.audited(), Anthropic(base_url=fault_gateway.tap.url, auth_token=KEY, api_key=None) as client:
        client.messages.create(model="chat-student", messages=messages, max_tokens=20)
    call = fault_gateway.calls("chat-student", messages[0]["content"])[0]
    assert "x-api-key" not in call.headers
    assert call.headers["authorization"] == f"Bearer {KEY}"


def test_a_system_prompt_and_a_conversation_are_answered(client: Anthropic) -> None:
    """Content blocks of a reply are content of the next request."""
    messages = ask()
    first = client.messages.create(model="chat-student", system="Be brief.", messages=messages, max_tokens=20)
    history = [*messages, {"role": "assistant", "content": first.content}, *ask()]
    later = client.messages.create(model="chat-student", messages=history, max_tokens=20)
    assert [block.text for block in later.content if block.type == "text"] == [REST]


def test_a_stream_has_all_events_in_order(client: Anthropic) -> None:
    """The guidance comes first; `message_delta` has the stop reason and the usage."""
    stream = client.messages.create(model="chat", messages=ask(), max_tokens=20, stream=True)
    events: list[Any] = list(stream)
    assert without_repeats(events) == TEXT_EVENTS
    assert text_in(events) == WHOLE
    assert SHOWN.startswith(events[2].delta.text)
    assert events[0].message.id == "msg_" + stream.response.headers["x-request-id"]
    assert events[0].message.content == []
    assert {event.index for event in events if hasattr(event, "index")} == {0}
    assert events[-2].delta.stop_reason == "end_turn"
    assert events[-2].usage.output_tokens > 0
    assert stream.response.headers["x-gkt-mode"] == "guided"


def test_the_stream_helper_sees_each_piece_and_the_whole(client: Anthropic) -> None:
    """`messages.stream` accumulates the events into the message that a JSON caller gets."""
    with client.messages.stream(model="chat", messages=ask(), max_tokens=20) as stream:
        deltas = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(deltas) == WHOLE
    assert len(deltas) > 1
    assert [block.text for block in final.content if block.type == "text"] == [WHOLE]
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens > 0


async def test_the_async_client_does_the_same(fault_gateway: FaultGateway) -> None:
    """Answer and stream helper run concurrently."""
    with fault_gateway.audited():
        async with AsyncAnthropic(base_url=fault_gateway.tap.url, api_key=KEY) as later:

            async def helped() -> str:
                async with later.messages.stream(model="chat", messages=ask(), max_tokens=20) as stream:
                    return await stream.get_final_text()

            async def answer_text() -> str:
                message = await later.messages.create(model="chat", messages=ask(), max_tokens=20)
                return "".join(block.text for block in message.content if block.type == "text")

            assert set(await asyncio.gather(answer_text(), helped())) == {WHOLE}


def test_a_tool_is_called_and_its_result_answered(client: Anthropic) -> None:
    """The call arrives as JSON, as a stream and through the helper. Its result is answered."""
    messages = ask()
    whole = client.messages.create(model="tools", messages=messages, tools=[WEATHER], max_tokens=20)
    called = whole.content[0]
    assert called.type == "tool_use"
    assert (called.name, called.input) == ("weather", {"city": "Oslo"})
    assert whole.stop_reason == "tool_use"

    stream = client.messages.create(model="tools", messages=ask(), tools=[WEATHER], max_tokens=20, stream=True)
    events: list[Any] = list(stream)
    assert without_repeats(events) == TEXT_EVENTS
    assert (events[1].content_block.type, events[1].content_block.name) == ("tool_use", "weather")
    pieces = [event.delta.partial_json for event in events if event.type == "content_block_delta"]
    assert "".join(pieces) == '{"city": "Oslo"}'
    assert events[-2].delta.stop_reason == "tool_use"

    with client.messages.stream(model="tools", messages=ask(), tools=[WEATHER], max_tokens=20) as helper:
        final = helper.get_final_message().content[0]
    assert final.type == "tool_use"
    assert final.input == {"city": "Oslo"}

    result = {"type": "tool_result", "tool_use_id": called.id, "content": "sunny"}
    history = [*messages, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
    answered = client.messages.create(model="tools", messages=history, tools=[WEATHER], max_tokens=20)
    assert [block.text for block in answered.content if block.type == "text"] == ["It is sunny."]


def test_the_tool_runner_calls_the_function_and_gets_the_answer(client: Anthropic, fault_gateway: FaultGateway) -> None:
    """The SDK asks for a thread, gets a 400, and sends all messages in each call from then on."""
    messages = ask()

    @beta_tool
    def weather(city: str) -> str:
        """The weather in a city."""
        return f"sunny in {city}"

    runner = client.beta.messages.tool_runner(model="tools", messages=messages, tools=[weather], max_tokens=20)
    final = runner.until_done()
    assert [block.text for block in final.content if block.type == "text"] == ["It is sunny in Oslo."]
    calls = fault_gateway.calls("tools", messages[0]["content"])
    assert [("thread" in call.json, call.status) for call in calls] == [(True, 400), (False, 200)]


def test_an_answer_is_parsed_into_the_callers_model(client: Anthropic, fault_gateway: FaultGateway) -> None:
    """`parse` and the stream helper send `output_config.format`."""
    messages = ask()
    parsed = client.messages.parse(model="person", messages=messages, max_tokens=20, output_format=Person)
    assert parsed.parsed_output == Person.model_validate(PERSON)
    sent = fault_gateway.calls("person", messages[0]["content"])[0].json["output_config"]
    assert sent["format"]["type"] == "json_schema"
    with client.messages.stream(model="person", messages=ask(), max_tokens=20, output_format=Person) as stream:
        assert stream.get_final_message().parsed_output == Person.model_validate(PERSON)


def test_tokens_are_counted(client: Anthropic) -> None:
    """A longer prompt has more tokens."""
    short = client.messages.count_tokens(model="chat", messages=[{"role": "user", "content": "Hi"}])
    long = client.messages.count_tokens(model="chat", messages=[{"role": "user", "content": "Hi there, you " * 50}])
    assert 0 < short.input_tokens < long.input_tokens


@pytest.fixture(scope="module")
def refused(fault_gateway: FaultGateway) -> dict[str, tuple[Attempt, anthropic.APIStatusError]]:
    """Provoke all refusals concurrently with the client's defaults; return the exception of each."""

    async def meet(attempt: Attempt) -> anthropic.APIStatusError:
        refusal = attempt.refusal
        async with AsyncAnthropic(base_url=fault_gateway.tap.url, api_key=refusal.key) as client:
            if refusal.max_retries is not None:
                client.max_retries = refusal.max_retries
            with pytest.raises(anthropic.APIStatusError) as raised:
                await client.messages.create(
                    model=refusal.model,
                    messages=[{"role": "user", "content": attempt.question}],
                    max_tokens=20,
                    extra_body=None if refusal.temperature is None else {"temperature": refusal.temperature},
                )
        return raised.value

    async def meet_all(attempts: list[Attempt]) -> list[anthropic.APIStatusError]:
        return await asyncio.gather(*map(meet, attempts))

    with fault_gateway.crowd(), fault_gateway.audited():
        attempts = [Attempt(fault_gateway, refusal) for refusal in REFUSALS]
        met = asyncio.run(meet_all(attempts))
        return {attempt.refusal.name: (attempt, error) for attempt, error in zip(attempts, met, strict=True)}


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name.replace(" ", "-"))
def test_each_refusal_is_the_right_exception_after_the_right_number_of_calls(
    refused: dict[str, tuple[Attempt, anthropic.APIStatusError]], refusal: Refusal
) -> None:
    """The status determines the class and Anthropic's error type."""
    attempt, error = refused[refusal.name]
    status = ANTHROPIC_STATUS.get(refusal.status, refusal.status)
    assert (type(error).__name__, error.status_code) == (ANTHROPIC_RAISES[status], status)
    assert error.type == ANTHROPIC_TYPES[status]
    assert error.api_message
    attempt.check_calls(status)
    assert error.request_id == attempt.calls()[-1].reply_headers["x-request-id"]


@pytest.mark.long
def test_a_retrying_client_gets_its_answer(client: Anthropic, fault_gateway: FaultGateway) -> None:
    """The engine is full twice; the third call is answered."""
    messages, started = ask(), time.monotonic()
    message = client.messages.create(model="busy-twice", messages=messages, max_tokens=20)
    assert [block.text for block in message.content if block.type == "text"] == [REST]
    assert time.monotonic() - started >= 1.5
    calls = fault_gateway.calls("busy-twice", messages[0]["content"])
    assert [call.status for call in calls] == [529, 529, 200]


def test_a_client_that_does_not_wait_raises_and_each_try_has_a_receipt(
    client: Anthropic, fault_gateway: FaultGateway
) -> None:
    """`timeout` applies to each attempt; the gateway detects the disconnect (`audited` checks it)."""
    messages = ask()
    impatient = client.with_options(timeout=0.5, max_retries=1)
    with pytest.raises(anthropic.APITimeoutError):
        impatient.messages.create(model="slow", messages=messages, max_tokens=20)
    assert len(fault_gateway.calls("slow", messages[0]["content"])) == 2


def test_a_stream_that_the_client_closes_ends_the_request(client: Anthropic, fault_gateway: FaultGateway) -> None:
    """The gateway detects that the client has gone."""
    messages = ask()
    with client.messages.stream(model="gradual", messages=messages, max_tokens=20) as stream:
        next(stream.text_stream)
    assert fault_gateway.receipt(fault_gateway.calls("gradual", messages[0]["content"])[0])["status"] == "client_gone"


@pytest.mark.parametrize("model", ["breaks", "ends-early"])
def test_a_broken_stream_raises_and_has_no_stop_reason(
    client: Anthropic, fault_gateway: FaultGateway, model: str
) -> None:
    """The received words, then APIStatusError of the event `error`. No retry."""
    messages = ask()
    events: list[Any] = []
    with pytest.raises(anthropic.APIStatusError) as raised:
        collect(client.messages.create(model=model, messages=messages, max_tokens=20, stream=True), events)
    assert raised.value.type == "api_error"
    assert text_in(events) == " two words"
    assert "message_delta" not in [event.type for event in events]
    assert len(fault_gateway.calls(model, messages[0]["content"])) == 1


def test_a_closed_connection_raises_without_a_stop_reason(client: Anthropic, fault_gateway: FaultGateway) -> None:
    """No retry."""
    messages = ask()
    events: list[Any] = []
    with pytest.raises(Exception, match="peer closed connection"):
        collect(client.messages.create(model="wire-cut", messages=messages, max_tokens=20, stream=True), events)
    assert events
    assert "message_stop" not in [event.type for event in events]
    calls = fault_gateway.calls("wire-cut", messages[0]["content"])
    assert [fault_gateway.receipt(call)["status"] for call in calls] == ["client_gone"]


def test_the_tries_are_the_packages_default() -> None:
    """The table's number of attempts is the installed version's default."""
    assert TRIES == 1 + anthropic.DEFAULT_MAX_RETRIES
