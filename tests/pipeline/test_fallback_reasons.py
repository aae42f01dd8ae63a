"""Students that reject a request with a reason: the next student is called, or none is."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
import pytest

from gateway.engines.base import EngineState
from gateway.engines.breaker import Breaker, BreakerRule
from gateway.engines.guard import GuardedEngine
from gateway.engines.refusal import read_error, refusal
from gateway.errors import GatewayError, InvalidRequest
from gateway.pipeline.guidance_request import UNGUIDED, Guidance
from gateway.pipeline.stream import StreamRelay
from gateway.pipeline.student import StudentCall
from gateway.policy.plan import StudentPlan
from gateway.policy.route_rules import RetryRule
from gateway.protocol.capabilities.continuation import Continuation
from gateway.protocol.chat import parse_chat
from gateway.protocol.content_run import each_chunk
from gateway.protocol.reply import ReplyHead
from gateway.telemetry.metrics import Metrics
from tests.accounting.receipt_builders import builder, engine_set, plan

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

GUIDANCE = Guidance("The sky", pending_space=" ", tokens=2)
CONTEXT = {"error": {"message": "This model's maximum context length is 9 tokens.", "code": "context_length_exceeded"}}
FILTERED = {"error": {"message": "Filtered.", "code": "content_filter"}}
INVALID = {"error": {"message": "Not so.", "code": "invalid_value"}}


@dataclass
class Engine:
    """A student with a context of `context_tokens`. `rejects`: the body of its 400; None: it answers."""

    name: str
    context_tokens: int | None = None
    rejects: dict[str, Any] | None = None
    calls: int = 0
    state: EngineState = field(default_factory=EngineState)

    def __post_init__(self) -> None:
        self.state.context_tokens = self.context_tokens

    def _check(self) -> None:
        self.calls += 1
        if self.rejects is not None:
            raise refusal(self.name, 400, read_error(self.rejects), None)

    async def complete(self, body: Any, prefill: Any = None) -> dict[str, Any]:
        self._check()
        message = {"role": "assistant", "content": f" by {self.name}"}
        return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}

    async def stream(self, body: Any, prefill: Any = None) -> AsyncGenerator[list[Any], None]:
        self._check()
        yield [{"choices": [{"index": 0, "delta": {"content": f" by {self.name}"}, "finish_reason": "stop"}]}]


def guard(engine: Any, metrics: Metrics, *, always_streams: bool = False) -> GuardedEngine:
    return GuardedEngine(engine, Breaker(BreakerRule()), metrics, always_streams=always_streams)


async def answer(*engines: Engine, form: str, guided: bool) -> str | GatewayError:
    """Return the text of an answer, or the error with which it ended.

    `form`: json, sse, or collected: the reply is JSON and the engine's is streamed.
    """
    metrics = Metrics()
    guarded = {engine.name: guard(engine, metrics, always_streams=form == "collected") for engine in engines}
    students = tuple([StudentPlan(name, Continuation("trailing", echo=False)) for name in guarded])
    request = parse_chat(orjson.dumps({"model": "chat", "messages": [{"role": "user", "content": "Why?"}]}))
    base = plan("guided" if guided else "student")
    one = builder(
        msgspec.structs.replace(base, students=students, retries=RetryRule(num_retries=0)),
        request=request,
        engine_set=engine_set(guarded),
    )
    guidance = GUIDANCE if guided else UNGUIDED
    one.kept_tokens, one.guidance_text = guidance.tokens, guidance.text
    calls = StudentCall(metrics)
    try:
        if form != "sse":
            reply = await calls.complete(request, guidance, one)
            return str(reply["choices"][0]["message"]["content"])
        chunks: list[Any] = []
        relay = StreamRelay(ReplyHead("ours", 1, "chat"), wants_usage=False)
        async with aclosing(calls.stream(request, guidance, relay, one)) as groups:
            async for group in groups:
                chunks += each_chunk(group)
        return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    except GatewayError as error:
        return error


WAYS = pytest.mark.parametrize(
    ("form", "guided"), [(form, guided) for form in ("json", "sse", "collected") for guided in (False, True)]
)


@WAYS
@pytest.mark.parametrize(("first", "second"), [(9, 10), (9, None), (None, 5), (None, None)])
async def test_a_request_that_is_too_long_goes_to_a_larger_student(
    first: int | None, second: int | None, *, form: str, guided: bool
) -> None:
    small, large = Engine("small", first, CONTEXT), Engine("large", second)
    found = await answer(small, large, form=form, guided=guided)
    assert found == ("The sky by large" if guided else " by large")
    assert (small.calls, large.calls) == (1, 1)


@WAYS
async def test_no_smaller_student_gets_a_request_that_is_too_long(*, form: str, guided: bool) -> None:
    small, same, large = Engine("small", 9, CONTEXT), Engine("same", 9), Engine("large", 99)
    assert str(await answer(small, same, large, form=form, guided=guided)).endswith("by large")
    assert same.calls == 0


@WAYS
async def test_a_request_that_is_too_long_for_all_is_the_callers_error(*, form: str, guided: bool) -> None:
    found = await answer(Engine("small", 9, CONTEXT), Engine("large", 99, CONTEXT), form=form, guided=guided)
    assert isinstance(found, InvalidRequest)
    assert found.code == "context_length_exceeded"


@WAYS
async def test_a_filtered_request_is_sent_once(*, form: str, guided: bool) -> None:
    small, other = Engine("small", None, FILTERED), Engine("other")
    found = await answer(small, other, form=form, guided=guided)
    assert isinstance(found, InvalidRequest)
    assert found.code == "content_filter"
    assert (small.calls, other.calls) == (1, 0)


@pytest.mark.parametrize("form", ["json", "collected"])
async def test_another_rejection_of_a_prefix_is_answered_without_it(form: str) -> None:
    small = Engine("small", None, INVALID)
    assert isinstance(await answer(small, form=form, guided=True), InvalidRequest)
    assert small.calls == 2
