"""The unmodified OpenAI SDK against a gateway, a real Redis and real models."""

from __future__ import annotations

import asyncio
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.gateway_process import KEY, OTHER_KEY, GatewayProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.models

ASKED: list[Any] = [{"role": "user", "content": "List the planets."}]


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def receipt_of(client: OpenAI, request_id: str) -> dict[str, Any]:
    """Return the receipt, which is written just after the answer was sent."""
    for _ in range(100):
        try:
            receipt: Any = client.get(f"/receipts/{request_id}", cast_to=object)
        except openai.NotFoundError:
            time.sleep(0.02)
            continue
        assert isinstance(receipt, dict)
        return receipt
    raise AssertionError(f"no receipt {request_id}")


def test_an_answer_opens_with_the_teachers_words_and_carries_its_receipt(client: OpenAI) -> None:
    """The guidance is the teacher's own opening; usage, headers and receipt agree."""
    raw = client.chat.completions.with_raw_response.create(model="chat", messages=ASKED, max_tokens=40, temperature=0)
    reply = raw.parse()
    alone = client.chat.completions.create(model="chat-teacher", messages=ASKED, max_tokens=12, temperature=0)
    text, own_answer = reply.choices[0].message.content, alone.choices[0].message.content
    assert text
    assert own_answer
    assert text.startswith(own_answer.rsplit(" ", 1)[0])
    assert len(text) > len(own_answer)
    assert reply.choices[0].finish_reason == "length"
    assert reply.model == "chat"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 40

    receipt = receipt_of(client, raw.headers["x-request-id"])
    assert receipt["mode"] == raw.headers["x-gkt-mode"] == "guided"
    assert receipt["status"] == "ok"
    assert receipt["teacher"]["output_tokens"] == 12
    assert receipt["student"]["output_tokens"] + receipt["guidance"]["kept_tokens"] == 40
    assert receipt["batch"]["size"] >= 1
    assert raw.headers["x-gkt-batch"] == receipt["batch"]["id"]
    cost = Decimal(receipt["teacher"]["cost_usd"]) + Decimal(receipt["student"]["cost_usd"])
    assert Decimal(raw.headers["x-gkt-cost-usd"]) == Decimal(receipt["cost_usd"]) == cost > 0
    assert Decimal(receipt["savings_usd"]) == Decimal(receipt["baseline_usd"]) - cost
    stages = [receipt["timings"][name] for name in ("admission_ms", "batch_wait_ms", "teacher_ms")]
    assert "first_token_ms" not in receipt["timings"], "a whole answer has no first token of its own"
    assert all(0 <= stage <= receipt["timings"]["total_ms"] for stage in stages)


def test_a_stream_shows_the_guidance_first_and_then_the_students_tokens(client: OpenAI) -> None:
    """Streamed and whole answers have the same text under greedy sampling."""
    whole = client.chat.completions.create(model="chat", messages=ASKED, max_tokens=40, temperature=0)
    with client.chat.completions.with_streaming_response.create(
        model="chat",
        messages=ASKED,
        max_tokens=40,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as response:
        headers = response.headers
        chunks = list(response.parse())
    guidance = chunks[0].choices[0].delta.content
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert guidance
    assert whole.choices[0].message.content == text
    assert text.startswith(guidance)
    assert headers["x-gkt-mode"] == "guided"
    assert headers["x-request-id"]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.model for chunk in chunks} == {"chat"}
    assert [c.delta.role for chunk in chunks for c in chunk.choices if c.delta.role] == ["assistant"]
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["length"]
    last = chunks[-1]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 40
    assert all(chunk.usage is None for chunk in chunks[:-1])
    facts = last.model_extra["gkt"] if last.model_extra else {}
    receipt = receipt_of(client, headers["x-request-id"])
    assert Decimal(facts["cost_usd"]) == Decimal(receipt["cost_usd"]) > 0
    assert receipt["stream"] is True
    assert 0 < receipt["timings"]["first_token_ms"] < receipt["timings"]["total_ms"]


def test_usage_is_not_sent_to_a_stream_that_did_not_ask(client: OpenAI) -> None:
    """Without stream_options there is no usage chunk; the receipt has the counts."""
    stream = client.chat.completions.create(model="chat", messages=ASKED, max_tokens=20, stream=True)
    chunks = list(stream)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    receipt = receipt_of(client, stream.response.headers["x-request-id"])
    assert receipt["student"]["output_tokens"] > 0
    assert "estimated" not in receipt["student"]


async def test_the_async_client_gets_answers_and_streams(gateway: GatewayProcess) -> None:
    """Each of many concurrent requests gets its own answer."""
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
        replies = await asyncio.gather(
            *(client.chat.completions.create(model="chat", messages=ASKED, max_tokens=16) for _ in range(6))
        )
        assert len({reply.id for reply in replies}) == 6
        assert all(reply.choices[0].message.content for reply in replies)
        stream = await client.chat.completions.create(model="chat", messages=ASKED, max_tokens=16, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_a_short_limit_is_covered_by_the_teacher_alone(client: OpenAI) -> None:
    """max_tokens also limits the teacher, and the gateway keeps the caller's field."""
    raw = client.chat.completions.with_raw_response.create(
        model="chat", messages=ASKED, max_completion_tokens=3, temperature=0
    )
    reply = raw.parse()
    assert reply.usage is not None
    assert reply.usage.completion_tokens <= 3
    assert reply.choices[0].finish_reason == "length"


@pytest.mark.parametrize("name", ["chat-concise", "chat-hint", "chat-context"])
def test_every_projection_and_placement_answers(client: OpenAI, name: str) -> None:
    """Concise is a prefix; hint and context are only in the student's prompt."""
    raw = client.chat.completions.with_raw_response.create(model=name, messages=ASKED, max_tokens=24, temperature=0)
    text = raw.parse().choices[0].message.content
    receipt = receipt_of(client, raw.headers["x-request-id"])
    assert text
    assert receipt["guidance"]["projection"] == {"chat-context": "cutoff"}.get(name, name.removeprefix("chat-"))
    assert receipt["guidance"]["placement"] == ("prefix" if name == "chat-concise" else "context")
    assert receipt["teacher"]["output_tokens"] > 0
    assert receipt["student"]["output_tokens"] > 0


def test_student_and_teacher_alone(client: OpenAI) -> None:
    """The other two modes use one engine and no guidance. An answer that ends at its limit saves nothing."""
    for name, role in (("chat-student", "student"), ("chat-teacher", "teacher")):
        raw = client.chat.completions.with_raw_response.create(model=name, messages=ASKED, max_tokens=10)
        receipt = receipt_of(client, raw.headers["x-request-id"])
        assert receipt["mode"] == role == raw.headers["x-gkt-mode"]
        usage = raw.parse().usage
        assert usage is not None
        assert 0 < receipt[role]["output_tokens"] == usage.completion_tokens <= 10
        assert receipt["guidance"] is None
        saved, at_limit = Decimal(receipt["savings_usd"]), receipt["finish_reason"] == "length"
        assert (saved > 0) == (role == "student" and not at_limit)
        assert saved >= 0


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_requests_without_possible_guidance_state_the_reason(client: OpenAI, more: Any, reason: str) -> None:
    """The reply states the reason; the student answers as it would alone."""
    raw = client.chat.completions.with_raw_response.create(model="chat", messages=ASKED, max_tokens=8, **more)
    assert raw.headers["x-gkt-unguided"] == reason
    assert raw.headers["x-gkt-mode"] == "student"
    assert len(raw.parse().choices) == more.get("n", 1)


def test_models_are_those_of_the_key(client: OpenAI) -> None:
    """The list has the model names that callers may send."""
    names = [entry.id for entry in client.models.list()]
    assert names == ["chat", "chat-concise", "chat-hint", "chat-context", "chat-student", "chat-teacher"]
    assert client.models.retrieve("chat").id == "chat"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_the_sdk_raises_the_documented_errors(client: OpenAI, gateway: GatewayProcess) -> None:
    """Each invalid request raises the SDK's own exception, with the field."""
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4", messages=ASKED)
    assert unknown.value.code == "model_not_found"
    assert "'chat', 'chat-concise'" in unknown.value.message
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="chat", messages=ASKED, temperature=3)
    assert wrong.value.param == "temperature"
    stranger = OpenAI(base_url=f"{gateway.url}/v1", api_key="gk-stranger", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError) as refused:
        stranger.models.list()
    assert "gk-stranger" not in str(refused.value)


def test_a_receipt_is_its_tenants_alone(client: OpenAI, gateway: GatewayProcess) -> None:
    """Another tenant's key gets a 404."""
    raw = client.chat.completions.with_raw_response.create(model="chat-student", messages=ASKED, max_tokens=4)
    receipt_of(client, raw.headers["x-request-id"])
    with (
        OpenAI(base_url=f"{gateway.url}/v1", api_key=OTHER_KEY, max_retries=0) as other,
        pytest.raises(openai.NotFoundError),
    ):
        other.get(f"/receipts/{raw.headers['x-request-id']}", cast_to=object)
