"""The unmodified `openai` package for Python on the fault_gateway: answers, exceptions, retries, broken streams.

tests/system/test_openai_sdk.py tests the package with real models.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import openai
import pydantic
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI

from tests.clients.fault_gateway import OPENING, PERSON, REST, WHOLE, FaultGateway, a_question
from tests.clients.refusals import RAISES, REFUSALS, TRIES, Attempt, Refusal
from tests.gateway_process import KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SHOWN = OPENING.rsplit(" ", 1)[0]
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


class Person(pydantic.BaseModel):
    name: str
    born: int


def ask(of: str = "something") -> list[Any]:
    return [{"role": "user", "content": a_question(of)}]


@pytest.fixture
def client(fault_gateway: FaultGateway) -> Iterator[OpenAI]:
    with fault_gateway.audited(), OpenAI(base_url=fault_gateway.url, api_key=KEY) as client:
        yield client


@pytest_asyncio.fixture
async def later(fault_gateway: FaultGateway) -> AsyncIterator[AsyncOpenAI]:
    with fault_gateway.audited():
        async with AsyncOpenAI(base_url=fault_gateway.url, api_key=KEY) as client:
            yield client


def test_an_answer_and_its_account(client: OpenAI) -> None:
    """`with_raw_response` returns the headers; the answer is the teacher's words, then the student's."""
    raw = client.chat.completions.with_raw_response.create(model="chat", messages=ask(), max_tokens=20)
    reply = raw.parse()
    assert reply.choices[0].message.content == WHOLE
    assert reply.choices[0].finish_reason == "stop"
    assert raw.headers["x-gkt-mode"] == "guided"
    assert float(raw.headers["x-gkt-cost-usd"]) > 0
    assert reply._request_id == raw.headers["x-request-id"] == reply.id.removeprefix("chatcmpl-")
    receipt: Any = client.get(f"/receipts/{reply._request_id}", cast_to=object)
    assert receipt["status"] == "ok"


def test_a_stream_and_its_account(client: OpenAI) -> None:
    """The guidance comes first; the last chunk has usage and, in `model_extra`, the facts under `gkt`."""
    stream = client.chat.completions.create(
        model="chat", messages=ask(), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == WHOLE
    first = chunks[0].choices[0].delta.content
    assert first
    assert SHOWN.startswith(first)
    assert chunks[-1].usage is not None
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["gkt"]["mode"] == "guided"
    assert stream.response.headers["x-gkt-mode"] == "guided"


def test_the_stream_helper_sees_each_piece_and_the_whole(client: OpenAI) -> None:
    """`chat.completions.stream` accumulates what came into the answer that a JSON caller gets."""
    with client.chat.completions.stream(model="chat", messages=ask(), stream_options={"include_usage": True}) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == WHOLE
    assert final.choices[0].finish_reason == "stop"
    assert final.usage is not None
    assert final.usage.completion_tokens > 0


def test_a_streaming_response_can_be_read_as_lines(client: OpenAI) -> None:
    """`with_streaming_response` returns the raw stream, which ends in [DONE]."""
    with client.chat.completions.with_streaming_response.create(model="chat", messages=ask(), stream=True) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert lines[-1] == "data: [DONE]"


async def test_the_async_client_does_the_same(later: AsyncOpenAI) -> None:
    """Answer, stream, stream helper and models run concurrently."""

    async def streamed() -> str:
        stream = await later.chat.completions.create(model="chat", messages=ask(), stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def helped() -> str | None:
        async with later.chat.completions.stream(model="chat", messages=ask()) as stream:
            return (await stream.get_final_completion()).choices[0].message.content

    async def answer_text() -> str | None:
        return (await later.chat.completions.create(model="chat", messages=ask())).choices[0].message.content

    answers = await asyncio.gather(answer_text(), streamed(), helped(), answer_text())
    assert set(answers) == {WHOLE}
    names = [entry.id async for entry in later.models.list()]
    assert names == [*FaultGateway.NAMES]


@pytest.mark.parametrize("stream", [False, True])
def test_a_raw_prompt_is_continued(client: OpenAI, *, stream: bool) -> None:
    """`completions`: the legacy route, guided as in the paper; a stream ends in usage and the facts under `gkt`."""
    if stream:
        chunks = list(
            client.completions.create(
                model="chat", prompt=a_question(), stream=True, stream_options={"include_usage": True}
            )
        )
        assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == WHOLE
        assert [one.finish_reason for chunk in chunks for one in chunk.choices if one.finish_reason] == ["stop"]
        assert chunks[-1].usage is not None
        assert chunks[-1].model_extra is not None
        assert chunks[-1].model_extra["gkt"]["mode"] == "guided"
    else:
        raw = client.completions.with_raw_response.create(model="chat", prompt=a_question(), max_tokens=20)
        reply = raw.parse()
        assert (reply.choices[0].text, reply.choices[0].finish_reason) == (WHOLE, "stop")
        assert raw.headers["x-gkt-mode"] == "guided"
        assert reply.id == f"cmpl-{raw.headers['x-request-id']}"
        assert reply.usage is not None
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_options_of_a_raw_prompt_are_in_the_reply(client: OpenAI) -> None:
    """Several prompts and answers, in the client's own types, and log-probabilities as text completions have them."""
    prompts = [a_question(), a_question()]
    reply = client.completions.create(model="chat", prompt=prompts, n=2, echo=True, logprobs=1)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in reply.choices] == [prompt + REST for prompt in prompts for _ in range(2)]
    assert reply.choices[3].logprobs is not None
    assert reply.choices[3].logprobs.tokens
    assert "".join(reply.choices[3].logprobs.tokens) == prompts[1] + REST


async def test_the_async_client_continues_prompts_and_makes_vectors(later: AsyncOpenAI) -> None:
    """All calls run concurrently."""

    async def streamed() -> str:
        stream = await later.completions.create(model="chat", prompt=a_question(), stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def answer_text() -> str:
        return (await later.completions.create(model="chat", prompt=a_question())).choices[0].text

    async def embedded() -> list[float]:
        return (await later.embeddings.create(model="vectors", input=a_question())).data[0].embedding

    assert await asyncio.gather(answer_text(), streamed(), embedded()) == [WHOLE, WHOLE, [1.0, 0.0]]


def test_a_text_becomes_a_vector(client: OpenAI, fault_gateway: FaultGateway) -> None:
    """The client requests and decodes base64 by default; with `float` it gets the engine's numbers."""
    question = a_question()
    assert client.embeddings.create(model="vectors", input=question).data[0].embedding == [1.0, 0.0]
    assert fault_gateway.calls("vectors", question)[0].json["encoding_format"] == "base64"
    reply = client.embeddings.create(model="vectors", input=[question, question], encoding_format="float")
    assert [one.embedding for one in reply.data] == [[1e-05, 0.5]] * 2
    assert reply.usage.total_tokens == 10


@pytest.mark.parametrize(("model", "raised"), [("refuses", "BadRequestError"), ("gone", "InternalServerError")])
def test_a_raw_prompt_that_is_refused_raises_as_a_chat_does(
    client: OpenAI, fault_gateway: FaultGateway, model: str, raised: str
) -> None:
    """The client makes the same number of calls."""
    question = a_question()
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model=model, prompt=question)
    assert type(caught.value).__name__ == raised
    assert len(fault_gateway.calls(model, question)) == (1 if model == "refuses" else TRIES)


def test_a_broken_text_stream_raises_and_has_no_finish_reason(client: OpenAI) -> None:
    """No finish_reason, then APIError. A student's reply on the wrong route is no answer either."""
    parts: list[Any] = []
    with pytest.raises(openai.APIError):
        _collect(client.completions.create(model="ends-early", prompt=a_question(), stream=True), parts)
    assert all(choice.finish_reason is None for part in parts for choice in part.choices)


def test_models_are_listed_and_retrieved(client: OpenAI) -> None:
    """The list has the models that the key may use."""
    assert [entry.id for entry in client.models.list()] == [*FaultGateway.NAMES]
    assert client.models.retrieve("chat").id == "chat"


def test_a_tool_is_called_and_its_result_answered(client: OpenAI) -> None:
    """Whole, streamed and through the helper: the same call, and the reply to its result."""
    answer_text = ask()
    whole = client.chat.completions.create(model="tools", messages=answer_text, tools=[WEATHER])
    called = whole.choices[0].message.tool_calls
    assert called
    assert whole.choices[0].finish_reason == "tool_calls"
    assert (called[0].function.name, called[0].function.arguments) == ("weather", '{"city": "Oslo"}')  # type: ignore[union-attr]

    arguments: defaultdict[int, str] = defaultdict(str)
    names, ids, finishes = [], [], []
    for chunk in client.chat.completions.create(model="tools", messages=ask(), tools=[WEATHER], stream=True):
        for choice in chunk.choices:
            finishes.append(choice.finish_reason)
            for part in choice.delta.tool_calls or []:
                assert part.function is not None
                arguments[part.index] += part.function.arguments or ""
                names += [part.function.name] if part.function.name else []
                ids += [part.id] if part.id else []
    assert (dict(arguments), names, ids) == ({0: '{"city": "Oslo"}'}, ["weather"], ["call_1"])
    assert [finish for finish in finishes if finish] == ["tool_calls"]

    with client.chat.completions.stream(model="tools", messages=ask(), tools=[WEATHER]) as stream:
        final = stream.get_final_completion().choices[0].message
    assert final.tool_calls
    assert final.tool_calls[0].function.arguments == '{"city": "Oslo"}'

    conversation = [
        *answer_text,
        whole.choices[0].message,
        {"role": "tool", "tool_call_id": called[0].id, "content": "sunny"},
    ]
    answered = client.chat.completions.create(model="tools", messages=conversation, tools=[WEATHER])
    assert answered.choices[0].message.content == "It is sunny."


def test_an_answer_is_parsed_into_the_callers_model(client: OpenAI, fault_gateway: FaultGateway) -> None:
    """`parse` and the stream helper send a json_schema, which reaches the student unchanged."""
    answer_text = ask()
    parsed = client.chat.completions.parse(model="person", messages=answer_text, response_format=Person)
    assert parsed.choices[0].message.parsed == Person.model_validate(PERSON)
    sent = fault_gateway.calls("person", answer_text[0]["content"])[0].json["response_format"]
    assert sent["json_schema"]["name"] == "Person"
    with client.chat.completions.stream(model="person", messages=ask(), response_format=Person) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == Person.model_validate(PERSON)


@pytest.fixture(scope="module")
def refused(fault_gateway: FaultGateway) -> dict[str, tuple[Attempt, openai.APIStatusError]]:
    """Provoke all refusals concurrently with the client's defaults; return the exception of each."""

    async def meet(attempt: Attempt) -> openai.APIStatusError:
        refusal = attempt.refusal
        async with AsyncOpenAI(base_url=fault_gateway.url, api_key=refusal.key) as client:
            if refusal.max_retries is not None:
                client.max_retries = refusal.max_retries
            with pytest.raises(openai.APIStatusError) as raised:
                await client.chat.completions.create(
                    model=refusal.model,
                    messages=[{"role": "user", "content": attempt.question}],
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
    """The status determines the class, with code and param.

    Only retryable errors are retried, after the stated time.
    """
    attempt, error = refused[refusal.name]
    assert type(error).__name__ == RAISES["openai-python"][refusal.status]
    assert (error.status_code, error.code, error.param) == (refusal.status, refusal.code, refusal.param)
    attempt.check_calls()
    calls = attempt.calls()
    assert error.request_id == calls[-1].reply_headers["x-request-id"]
    assert [call.headers["x-stainless-retry-count"] for call in calls] == [str(n) for n in range(refusal.tries)]


@pytest.mark.long
def test_a_retrying_client_gets_its_answer(client: OpenAI, fault_gateway: FaultGateway) -> None:
    """The engine is full twice; each call has its receipt, and the third is answered."""
    answer_text, started = ask(), time.monotonic()
    reply = client.chat.completions.create(model="busy-twice", messages=answer_text)
    assert reply.choices[0].message.content == REST
    assert time.monotonic() - started >= 1.5
    calls = fault_gateway.calls("busy-twice", answer_text[0]["content"])
    assert [call.status for call in calls] == [503, 503, 200]
    assert [fault_gateway.receipt(call)["status"] for call in calls] == ["engine_overloaded", "engine_overloaded", "ok"]


def test_a_client_without_retries_sends_one_call(fault_gateway: FaultGateway) -> None:
    """max_retries=0: one call, one exception; the same for a stream that has not begun."""
    with fault_gateway.audited(), OpenAI(base_url=fault_gateway.url, api_key=KEY, max_retries=0) as client:
        for stream in (False, True):
            answer_text = ask()
            with pytest.raises(openai.InternalServerError):
                client.chat.completions.create(model="busy", messages=answer_text, stream=stream)
            assert len(fault_gateway.calls("busy", answer_text[0]["content"])) == 1


@pytest.mark.long
@pytest.mark.timeout(150)
def test_a_body_that_is_too_slow_is_sent_again_on_another_connection(
    client: OpenAI, fault_gateway: FaultGateway
) -> None:
    """The SDK retries status 408 by default (`_should_retry`)."""
    answer_text = ask()
    with pytest.raises(openai.APIStatusError) as raised:
        client.with_options(max_retries=1).chat.completions.create(model="trickle", messages=answer_text)
    assert (raised.value.status_code, raised.value.code) == (408, "request_timeout")
    assert [call.status for call in fault_gateway.calls("trickle", answer_text[0]["content"])] == [408, 408]


def test_a_client_that_does_not_wait_raises_and_each_try_has_a_receipt(
    client: OpenAI, fault_gateway: FaultGateway
) -> None:
    """`timeout` applies to each attempt; the gateway detects the disconnect (`audited` checks it)."""
    answer_text = ask()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5, max_retries=1).chat.completions.create(model="slow", messages=answer_text)
    assert len(fault_gateway.calls("slow", answer_text[0]["content"])) == 2


def _collect(stream: Any, parts: list[Any]) -> None:
    """Keep the received parts, also if the stream raises."""
    for part in stream:
        parts.append(part)  # noqa: PERF402


@pytest.mark.parametrize(("model", "code"), [("breaks", "engine_failed"), ("ends-early", "engine_failed")])
def test_a_broken_stream_raises_and_has_no_finish_reason(
    client: OpenAI, fault_gateway: FaultGateway, model: str, code: str
) -> None:
    """The received words, no finish_reason, then APIError, from create and from the helper. No retry."""
    answer_text = ask()
    parts: list[Any] = []
    with pytest.raises(openai.APIError) as raised:
        _collect(client.chat.completions.create(model=model, messages=answer_text, stream=True), parts)
    assert raised.value.code == code
    assert "".join(part.choices[0].delta.content or "" for part in parts) == " two words"
    assert all(part.choices[0].finish_reason is None for part in parts)
    assert len(fault_gateway.calls(model, answer_text[0]["content"])) == 1
    with client.chat.completions.stream(model=model, messages=ask()) as stream, pytest.raises(openai.APIError):
        stream.get_final_completion()


def test_a_closed_connection_raises_and_has_no_finish_reason(client: OpenAI, fault_gateway: FaultGateway) -> None:
    """A closed connection raises APIConnectionError. No retry."""
    answer_text = ask()
    parts: list[Any] = []
    with pytest.raises(openai.APIConnectionError):
        _collect(client.chat.completions.create(model="wire-cut", messages=answer_text, stream=True), parts)
    assert parts
    assert all(part.choices[0].finish_reason is None for part in parts)
    calls = fault_gateway.calls("wire-cut", answer_text[0]["content"])
    assert len(calls) == 1
    assert fault_gateway.receipt(calls[0])["status"] == "client_gone"


def test_extra_body_fields_reach_the_student(client: OpenAI, fault_gateway: FaultGateway) -> None:
    """The gateway forwards `extra_body`, which holds fields that OpenAI does not have."""
    answer_text = ask()
    client.chat.completions.create(model="chat-student", messages=answer_text, extra_body={"top_k": 7})
    assert fault_gateway.calls("chat-student", answer_text[0]["content"])[0].json["top_k"] == 7


def test_the_tries_are_the_packages_default() -> None:
    """The table's number of attempts is the installed version's default."""
    assert TRIES == 1 + openai.DEFAULT_MAX_RETRIES
