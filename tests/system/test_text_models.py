"""Raw prompts with real models: the paper's few-shot setting, with the unmodified OpenAI SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.gateway_process import KEY, GatewayProcess
from tests.system.test_openai_sdk import receipt_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.models

SHOTS = (
    "Q: What is the capital of Spain?\nA: The capital of Spain is Madrid.\n\n"
    "Q: How many legs does a spider have?\nA: A spider has eight legs.\n\n"
)
QUESTIONS = [
    "What do bees make?",
    "How many days does a week have, and what are their names?",
    "Why is the sky blue?",
    "What is the capital of Italy, and what can one see there?",
]
PROMPT = f"{SHOTS}Q: {QUESTIONS[1]}\nA:"


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.mark.long
def test_a_student_equal_to_the_teacher_writes_the_teachers_text(client: OpenAI) -> None:
    """Student and teacher are one model: with greedy sampling the guided text is the teacher's own.

    One answer may differ, because the seam can split tokens. One may be a little longer, because the teacher's tokens
    before the seam are computed from their share of the text.
    """
    differ = []
    for question in QUESTIONS:
        request: dict[str, Any] = {"prompt": f"{SHOTS}Q: {question}\nA:", "max_tokens": 40, "temperature": 0}
        alone = client.completions.create(model="chat-teacher", **request).choices[0].text
        raw = client.completions.with_raw_response.create(model="chat", **request)
        assert raw.headers["x-gkt-mode"] == "guided"
        text = raw.parse().choices[0].text
        assert text[0] == alone[0] == " "
        assert abs(len(text) - len(alone)) < 15
        if not (text.startswith(alone) or alone.startswith(text)):
            differ.append((alone, text))
    assert len(differ) <= 1, differ


@pytest.mark.long
def test_an_answer_and_its_account(client: OpenAI) -> None:
    """The teacher's tokens and the student's together respect the caller's limit."""
    raw = client.completions.with_raw_response.create(model="chat", prompt=PROMPT, max_tokens=40, temperature=0)
    reply = raw.parse()
    assert reply.choices[0].finish_reason == "length"
    assert reply.object == "text_completion"
    receipt = receipt_of(client, raw.headers["x-request-id"])
    assert receipt["teacher"]["output_tokens"] == 12
    assert receipt["student"]["output_tokens"] + receipt["guidance"]["kept_tokens"] == 40
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 40
    # Only the engines count tokens, and both have the same vocabulary.
    assert abs(reply.usage.prompt_tokens - receipt["teacher"]["input_tokens"]) <= 1


def test_a_stream_is_the_same_text(client: OpenAI) -> None:
    """The stream uses /generate_stream and the student's text completions."""
    request: dict[str, Any] = {"model": "chat", "prompt": PROMPT, "max_tokens": 40, "temperature": 0}
    whole = client.completions.create(**request)
    chunks = list(client.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert [one.finish_reason for chunk in chunks for one in chunk.choices if one.finish_reason] == ["length"]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 40


def test_a_stop_string_ends_the_answer_before_the_next_question(client: OpenAI) -> None:
    """The answer does not contain the next question, which a model generates by itself."""
    for route in ("chat", "chat-teacher", "chat-student"):
        choice = client.completions.create(
            model=route, prompt=f"{SHOTS}Q: {QUESTIONS[0]}\nA:", max_tokens=60, temperature=0, stop=["\n\nQ:", "\nQ:"]
        ).choices[0]
        assert choice.finish_reason == "stop"
        assert choice.text.strip()
        assert "Q:" not in choice.text


@pytest.mark.long
@pytest.mark.parametrize("name", ["chat-concise", "chat-hint", "chat-context"])
def test_every_projection_and_placement_answers(client: OpenAI, name: str) -> None:
    """Raw prompts support the same projections and placements as chats."""
    raw = client.completions.with_raw_response.create(model=name, prompt=PROMPT, max_tokens=24, temperature=0)
    receipt = receipt_of(client, raw.headers["x-request-id"])
    assert raw.parse().choices[0].text
    assert receipt["guidance"]["placement"] == ("prefix" if name == "chat-concise" else "context")
    assert receipt["student"]["output_tokens"] > 0


@pytest.mark.parametrize(
    ("more", "reason"), [({"prompt": [PROMPT, SHOTS]}, "prompts"), ({"n": 2}, "n"), ({"logprobs": 2}, "logprobs")]
)
def test_requests_without_possible_guidance_state_the_reason(client: OpenAI, more: Any, reason: str) -> None:
    """The student answers as it would alone, with all its choices."""
    request = {"prompt": PROMPT, "max_tokens": 8} | more
    raw = client.completions.with_raw_response.create(model="chat", **request)
    assert raw.headers["x-gkt-unguided"] == reason
    assert len(raw.parse().choices) == (1 if reason == "logprobs" else 2)


async def test_the_async_client_gets_answers_and_streams(gateway: GatewayProcess) -> None:
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
        request: dict[str, Any] = {"model": "chat", "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
        whole = await client.completions.create(**request)
        stream = await client.completions.create(**request, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == whole.choices[0].text
