"""Continuation of an assistant message by a real llama.cpp, in each mode."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from gateway.engines.http import EngineDeadlines, EngineHttp
from gateway.engines.openai import OpenAIEngine
from gateway.guidance.seam import SeamJoin
from gateway.protocol.capabilities.continuation import Continuation, Prefill
from gateway.protocol.content_run import each_chunk
from tests.local.conftest import MODEL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.engines.base import Engine
    from gateway.local.stack import LocalStack

pytestmark = pytest.mark.models

BEGUN = [
    ("Why is the sky blue?", "The sky is blue because of a process called"),
    ("Write a Python function that adds two numbers.", "Here is one:\n\n```python\ndef add(a, b):"),
    ("What does HTTP stand for?", "HTTP stands for"),
    ("Was ist die Hauptstadt von \u00d6sterreich?", "Die Hauptstadt von \u00d6sterreich ist"),
]


@asynccontextmanager
async def student(stack: LocalStack, mode: Any) -> AsyncIterator[OpenAIEngine]:
    http = EngineHttp("small", stack.student.url + "/v1", api_key=None, deadlines=EngineDeadlines())
    engine = OpenAIEngine("small", MODEL, http, continuation=mode)
    try:
        await engine.probe()
        yield engine
    finally:
        await engine.close()


def chat_body(question: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "max_tokens": 16, "temperature": 0, **more}


async def answers(engine: Engine, question: str, prefix: str) -> tuple[SeamJoin, str, int]:
    """Return the seam, the answer and the prompt tokens. Assert that the streamed answer is the same."""
    how = engine.state.continuation
    assert isinstance(how, Continuation)

    def seam() -> SeamJoin:
        return SeamJoin(
            prefix,
            pending_space=" ",
            echo=how.echo,
            strips_leading_space=how.strips_leading_space,
            written_again=how.writes_again,
        )

    # Without the prompt cache, whose rounding may change the choice between two likely tokens.
    body = chat_body(question, cache_prompt=False)
    whole, streamed = seam(), seam()
    reply = await engine.complete(body, Prefill(prefix, how))
    text = reply["choices"][0]["message"]["content"]
    answer = whole.initial_text + whole.feed(text) + whole.finish()
    parts = [streamed.initial_text]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async with aclosing(engine.stream({**body, **options}, Prefill(prefix, how))) as groups:
        async for chunks in groups:
            deltas = [choice["delta"] for chunk in each_chunk(chunks) for choice in chunk["choices"]]
            parts += [streamed.feed(delta.get("content") or "") for delta in deltas]
    assert "".join(parts) + streamed.finish() == answer
    return whole, answer, reply["usage"]["prompt_tokens"]


async def test_the_server_continues_a_trailing_message(stack: LocalStack) -> None:
    """The probe expects the same. This build repeats the message."""
    async with student(stack, "auto") as engine:
        assert engine.state.continuation == Continuation("trailing", echo=True)
        assert engine.state.warnings == []


@pytest.mark.long
async def test_its_other_ways_give_the_same_answer(stack: LocalStack) -> None:
    """Identical greedy text from as many tokens: a rendered prompt is read like the chat, without a duplicate token."""
    async with (
        student(stack, "trailing") as usual,
        student(stack, "vllm") as vllm,
        student(stack, "completions") as completions,
    ):
        for engine, mode in ((vllm, "vllm"), (completions, "completions")):
            assert isinstance(engine.state.continuation, Continuation)
            assert (engine.state.continuation.mode, engine.state.warnings) == (mode, [])
        for question, prefix in BEGUN:
            _, answer, read = await answers(usual, question, prefix)
            assert answer.startswith(prefix)
            assert len(answer) > len(prefix)
            for engine in (vllm, completions):
                assert (await answers(engine, question, prefix))[1:] == (answer, read), engine.state.continuation


@pytest.mark.long
async def test_a_model_instructed_to_repeat_the_guidance_does_or_answers_alone(stack: LocalStack) -> None:
    """The small model obeys about every other time. No answer repeats the guidance, and the probe fails."""
    async with student(stack, "instruct") as engine:
        assert engine.state.continuation == Continuation("instruct")
        assert engine.state.warnings == ["the engine did not continue the probe with continuation 'instruct'"]
        obeyed = 0
        for question, prefix in BEGUN:
            seam, answer, _ = await answers(engine, question, prefix)
            assert answer.count(prefix) <= 1
            assert answer.startswith(prefix) is not seam.restarted
            assert seam.echoed is not seam.restarted
            obeyed += seam.echoed
        assert obeyed > 0


async def test_a_call_right_after_a_stream_is_not_lost(stack: LocalStack) -> None:
    """llama.cpp closes a connection about 50 ms after a stream, although it announces keep-alive."""
    async with student(stack, "none") as engine:
        for _ in range(40):
            async with aclosing(engine.stream(chat_body("Why?", max_tokens=1, stream=True))) as groups:
                assert [chunks async for chunks in groups]
            assert (await engine.complete(chat_body("Why?", max_tokens=1)))["choices"]
