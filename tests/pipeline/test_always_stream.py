"""Calls for JSON callers at an engine with `always_stream`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
import pytest

from gateway.engines.base import EngineState
from gateway.engines.breaker import Breaker, BreakerRule
from gateway.engines.guard import GuardedEngine
from gateway.pipeline.guidance_request import UNGUIDED
from gateway.pipeline.student import StudentCall
from gateway.policy.plan import StudentPlan
from gateway.protocol.chat import parse_chat
from gateway.protocol.text import parse_text_completion
from gateway.telemetry.metrics import Metrics
from tests.accounting.receipt_builders import builder, engine_set, plan

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.protocol.requests import CompletionRequest


@dataclass
class Engine:
    """A student that records how it is called."""

    name: str = "small"
    calls: list[str] = field(default_factory=list)
    state: EngineState = field(default_factory=EngineState)

    async def complete(self, _: Any, __: Any = None) -> dict[str, Any]:
        self.calls.append("json")
        message = {"role": "assistant", "content": "Blue."}
        return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}

    async def stream(self, _: Any, __: Any = None) -> AsyncGenerator[list[Any], None]:
        self.calls.append("stream")
        yield [{"choices": [{"index": 0, "delta": {"content": "Blue."}, "finish_reason": "stop"}]}]


def chat(**more: Any) -> CompletionRequest:
    messages = [{"role": "user", "content": "Why?"}]
    return parse_chat(orjson.dumps({"model": "chat", "messages": messages, **more}))


def raw(**more: Any) -> CompletionRequest:
    return parse_text_completion(orjson.dumps({"model": "chat", "prompt": "Why?", **more}))


@pytest.mark.parametrize(
    ("request_", "called"),
    [
        (chat(), "stream"),
        (chat(n=2, logprobs=True, prompt_logprobs=None, use_beam_search=False), "stream"),
        (raw(best_of=1), "stream"),
        (raw(best_of=2), "json"),
        (raw(use_beam_search=True), "json"),
        (raw(prompt_logprobs=0), "json"),
        (chat(prompt_logprobs=1), "json"),
        (chat(modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"}), "json"),
    ],
)
async def test_a_request_that_engines_reject_in_a_stream_is_not_streamed(
    request_: CompletionRequest, called: str
) -> None:
    engine, metrics = Engine(), Metrics()
    guarded = GuardedEngine(engine, Breaker(BreakerRule()), metrics, always_streams=True)
    one = builder(
        msgspec.structs.replace(plan("student"), students=(StudentPlan("small", None),)),
        request=request_,
        engine_set=engine_set({"small": guarded}),
    )
    reply = await StudentCall(metrics).complete(request_, UNGUIDED, one)
    assert reply["choices"][0]["message"]["content"] == "Blue."
    assert engine.calls == [called]
