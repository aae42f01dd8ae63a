"""Lists of guidance requests with a real llama.cpp."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from gateway.engines.base import TeacherRequest
from gateway.engines.http import EngineDeadlines, EngineHttp, JsonReply
from gateway.engines.openai import OpenAIEngine
from gateway.errors import EngineRejected
from tests.local.conftest import MODEL, SLOT_TOKENS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.local.stack import LocalStack
    from gateway.protocol.body import Json

pytestmark = pytest.mark.models

QUESTIONS = [
    "Why is the sky blue?",
    "Name three colours.",
    "Who wrote Hamlet?",
    "How do birds fly?",
    "What is gravity?",
]
TOKENS = 16


class WatchedHttp(EngineHttp):
    """Records the path of each call."""

    def __init__(self, url: str) -> None:
        super().__init__("small", url, api_key=None, deadlines=EngineDeadlines(first_token_s=60))
        self.paths: list[str] = []

    async def post(self, path: str, payload: Json, *, native: bool = False) -> JsonReply:
        self.paths.append(path)
        return await super().post(path, payload, native=native)


@pytest_asyncio.fixture
async def http(stack: LocalStack) -> WatchedHttp:
    return WatchedHttp(stack.student.url + "/v1")


@pytest_asyncio.fixture
async def engine(http: WatchedHttp) -> AsyncIterator[OpenAIEngine]:
    """Yield the student with lists, after a probe."""
    engine = OpenAIEngine("small", MODEL, http, continuation="none", lists=True)
    await engine.probe()
    http.paths.clear()
    yield engine
    await engine.close()


def teacher_request(question: str, *, raw: bool) -> TeacherRequest:
    if raw:
        return TeacherRequest(TOKENS, prompt=f"Q: {question}\nA:", stop=("\nQ:",))
    return TeacherRequest(TOKENS, messages=[{"role": "user", "content": question}], stop=("\nQ:",))


async def test_llamacpp_is_found_to_take_lists(engine: OpenAIEngine) -> None:
    assert engine.state.facts["owned_by"] == "llamacpp"
    assert engine.state.facts["lists"] == ["chats", "prompts"]
    assert engine.state.warnings == []


@pytest.mark.long
@pytest.mark.parametrize("raw", [False, True])
async def test_a_list_call_equals_single_calls(engine: OpenAIEngine, http: WatchedHttp, *, raw: bool) -> None:
    """Greedy decoding. Another batch changes the last bits, so texts may differ late, but not at the start."""
    requests = [teacher_request(question, raw=raw) for question in QUESTIONS]
    single = [await engine.generate_guidance(request) for request in requests]
    http.paths.clear()
    listed = await asyncio.gather(*(engine.generate_guidance(request, batch="b1") for request in requests))
    assert http.paths == [*([] if raw else ["/apply-template"] * len(QUESTIONS)), "/completion"]
    for one, other in zip(single, listed, strict=True):
        assert other.text.split()[:3] == one.text.split()[:3]
        assert one.usage is not None
        assert other.usage is not None
        assert other.usage.input_tokens == one.usage.input_tokens
        assert not other.usage.estimated
        if other.finish == "length":
            assert other.usage.output_tokens == TOKENS
    assert len({reply.text for reply in listed}) == len(QUESTIONS)


async def test_a_prompt_that_does_not_fit_fails_alone(engine: OpenAIEngine) -> None:
    """llama.cpp rejects the whole list; the others are then sent alone."""
    long = "word " * (2 * SLOT_TOKENS)
    requests = [teacher_request(text, raw=False) for text in (QUESTIONS[0], long, QUESTIONS[1])]
    calls = (engine.generate_guidance(request, batch="b1") for request in requests)
    first, refused, last = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(refused, EngineRejected)
    assert refused.status_sent == 400
    for answered in (first, last):
        assert not isinstance(answered, BaseException)
        assert answered.text
