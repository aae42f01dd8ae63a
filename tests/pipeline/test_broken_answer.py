"""Streams whose student fails after its first text was sent: the next engine continues the answer."""

from __future__ import annotations

import re
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.accounting.worst_case import worst_case
from gateway.engines.base import EngineState
from gateway.engines.breaker import Breaker, BreakerRule
from gateway.engines.guard import GuardedEngine
from gateway.errors import EngineError, EngineFailed, EngineRejected, EngineTimeout, EngineUnreachable
from gateway.guidance.trim import trim
from gateway.pipeline.completion import _caller_usage
from gateway.pipeline.guidance_request import UNGUIDED, Guidance
from gateway.pipeline.stream import StreamRelay
from gateway.pipeline.student import StudentCall
from gateway.policy.plan import StudentPlan
from gateway.policy.route_rules import RetryRule
from gateway.protocol.capabilities.continuation import Continuation
from gateway.protocol.chat import parse_chat
from gateway.protocol.content_run import each_chunk
from gateway.protocol.reply import ReplyHead
from gateway.protocol.text import parse_text_completion
from gateway.telemetry.metrics import Metrics
from tests.accounting.receipt_builders import ENCODINGS, PRICES, builder, engine_set, plan

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.accounting.receipt import Receipt
    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.protocol.requests import CompletionRequest

ANSWER = "The quick brown fox jumps over the lazy dog.\n\nThen it sleeps."
TOKENS = re.findall(r"\s*\S+", ANSWER)
PLAIN = Continuation("trailing", echo=False)
PROMPT_TOKENS = 30


@dataclass
class Engine:
    """An engine whose model always gives `answer`: it continues any beginning of it, a word per token.

    Attributes:
        fails_after: the chunks before each call's failure; further calls succeed.
        counts: whether each chunk has a running count.
        whitespace: whether whitespace is a token of its own.
    """

    name: str
    fails_after: list[int] = field(default_factory=list)
    error: type[EngineError] = EngineUnreachable
    counts: bool = False
    whitespace: bool = False
    echoes: bool = False
    strips: bool = False
    more: Any = None  # another field of each delta
    connects: bool = True
    answer: str = ANSWER
    prompt: str = "Hello"
    bodies: list[dict[str, Any]] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    state: EngineState = field(default_factory=EngineState)

    async def stream(self, body: Any, prefill: Any = None) -> AsyncGenerator[list[Any], None]:
        begun = prefill.text if prefill is not None else body.get("prompt", self.prompt).removeprefix(self.prompt)
        assert self.answer.startswith(begun)
        self.bodies.append(body)
        self.prefixes.append(begun)
        rest = self.answer[len(begun) :]
        tokens = re.findall(r"\s+|\S+" if self.whitespace else r"\s*\S+", rest.lstrip() if self.strips else rest)
        limit = body.get("max_tokens") or len(tokens)
        finish_reason, tokens = "length" if len(tokens) > limit else "stop", tokens[:limit]
        failing = self.fails_after.pop(0) if self.fails_after else None
        prompt_tokens = PROMPT_TOKENS + len(re.findall(r"\s*\S+", begun))
        if begun and self.echoes:
            yield [_chunk({"content": begun})]
        for count, token in enumerate(tokens, 1):
            if failing is not None and count > failing:
                raise self.failure()
            usage = _usage(prompt_tokens, count) if self.counts else {}
            yield [_chunk({"role": "assistant", "content": token, **(self.more or {})}) | usage]
        if failing is not None:
            raise self.failure()
        yield [_chunk({}, finish_reason)]
        yield [{"choices": []} | _usage(prompt_tokens, len(tokens))]

    def failure(self) -> EngineError:
        more: dict[str, Any] = {"status_sent": 400} if self.error is EngineRejected else {}
        error = self.error("It failed.", engine=self.name, **more)
        error.may_have_run = error.connected = self.connects
        return error


def _chunk(delta: Any, finish_reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def _usage(read: int, written: int) -> dict[str, Any]:
    counts = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return {"usage": counts}


@dataclass
class Result:
    chunks: list[Any]
    error: EngineError | None
    builder: ReceiptBuilder
    request: CompletionRequest
    metrics: Metrics

    @property
    def text(self) -> str:
        choices = [choice for chunk in self.chunks for choice in chunk["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)

    @property
    def finish_reasons(self) -> list[str]:
        choices = [choice for chunk in self.chunks for choice in chunk["choices"]]
        return [choice["finish_reason"] for choice in choices if choice["finish_reason"]]

    @property
    def receipt(self) -> Receipt:
        return self.builder.close("ok" if self.error is None else self.error.label, PRICES, ENCODINGS)

    @property
    def usage(self) -> dict[str, Any]:
        return _caller_usage(self.request, self.builder, self.receipt)

    def continued(self, engine: str, outcome: str) -> float:
        labels = {"engine": engine, "outcome": outcome}
        return self.metrics.registry.get_sample_value("gkt_streams_continued_total", labels) or 0.0


def chat(**fields: Any) -> CompletionRequest:
    body = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": "Hello"}], **fields}
    return parse_chat(orjson.dumps(body))


def guard(engine: Any, metrics: Metrics) -> GuardedEngine:
    breaker = Breaker(BreakerRule(failures=5, cooldown_s=60.0))
    return GuardedEngine(engine, breaker, metrics, always_streams=True)


async def answer(
    *engines: Engine,
    guidance: Guidance = UNGUIDED,
    request: CompletionRequest | None = None,
    placement: str = "prefix",
    continuation: Continuation | None = PLAIN,
    retries: RetryRule | None = None,
    client_leaves: bool = False,
    open_circuits: tuple[str, ...] = (),
    mode: str = "student",
    as_json: bool = False,
) -> Result:
    """Return an answer of the engines, the first of which is `small`. `as_json`: the caller requested JSON."""
    request = request or chat()
    metrics = Metrics()
    guarded = {engine.name: guard(engine, metrics) for engine in engines}
    for name in 5 * open_circuits:
        with suppress(EngineError):
            await anext(guarded[name].stream({"messages": []}))
    student_plans = []
    for number, engine in enumerate(engines):
        known = continuation if not number else PLAIN
        if known is not None:
            known = Continuation(known.mode, engine.echoes or known.echo, engine.strips)
        student_plans.append(StudentPlan(engine.name, known, counts_chunks=engine.state.counts_chunks))
    base = plan("guided" if guidance.text else mode, placement=placement)
    one = builder(
        msgspec.structs.replace(
            base,
            students=tuple(student_plans),
            max_tokens=request.max_tokens,
            retries=retries or RetryRule(num_retries=2, backoff_s=0.001),
        ),
        request=request,
        engine_set=engine_set(guarded),
    )
    one.reserved = worst_case(one.plan, request, PRICES)
    if guidance.text:
        one.kept_tokens, one.guidance_text = guidance.tokens, guidance.text
    relay = StreamRelay(ReplyHead("ours", 1, "chat"), wants_usage=request.wants_usage)
    chunks: list[Any] = []
    caught: EngineError | None = None
    students = StudentCall(metrics)
    try:
        if as_json:
            reply = await students.complete(request, guidance, one)
            chunks.append(_chunk(reply["choices"][0]["message"], reply["choices"][0]["finish_reason"]))
        else:
            async with aclosing(students.stream(request, guidance, relay, one)) as groups:
                async for group in groups:
                    chunks += each_chunk(group)
                    one.caller_left = client_leaves
            chunks += relay.end()
    except EngineError as error:
        caught = error
    return Result(chunks, caught, one, request, metrics)


@pytest.mark.parametrize("error", [EngineUnreachable, EngineTimeout, EngineFailed])
async def test_the_next_student_continues_a_broken_stream(error: type[EngineError]) -> None:
    first, second = Engine("small", [4], error), Engine("big")
    found = await answer(first, second)
    assert found.error is None
    assert (found.text, found.finish_reasons) == (ANSWER, ["stop"])
    assert second.prefixes == ["The quick brown fox"]
    assert [choice["delta"].get("role") for chunk in found.chunks for choice in chunk["choices"]].count(
        "assistant"
    ) == 1
    receipt = found.receipt
    assert [(one.engine, one.error) for one in receipt.attempts] == [("small", error.label)]
    assert receipt.attempts[0].share is not None
    assert receipt.attempts[0].share.cost_usd > 0
    assert receipt.student is not None
    assert (receipt.student.model, receipt.student.output_tokens) == ("big", len(TOKENS) - 4)
    assert receipt.continued_tokens == 4
    assert receipt.facts(show_cost=False)["continued_tokens"] == 4
    assert found.usage["completion_tokens"] == len(TOKENS)
    assert found.usage["prompt_tokens"] == PROMPT_TOKENS
    assert (found.continued("big", "ok"), found.continued("small", "ok")) == (1, 0)


async def test_a_guided_stream_is_continued_behind_the_guidance() -> None:
    guidance = Guidance("The quick brown", pending_space=" ", tokens=3)
    first, second = Engine("small", [2], EngineTimeout), Engine("big")
    found = await answer(first, second, guidance=guidance)
    assert (found.text, found.error) == (ANSWER, None)
    assert (first.prefixes, second.prefixes) == (["The quick brown"], ["The quick brown fox jumps"])
    assert found.usage == _usage(PROMPT_TOKENS, len(TOKENS))["usage"]
    assert found.receipt.continued_tokens == 2


@pytest.mark.parametrize("placement", ["context", "input"])
async def test_guidance_in_the_prompt_stays_there(placement: str) -> None:
    first, second = Engine("small", [2], EngineTimeout), Engine("big")
    found = await answer(first, second, guidance=Guidance("Mind the fox", tokens=3), placement=placement)
    assert found.text == ANSWER
    assert first.bodies[0]["messages"] == second.bodies[0]["messages"]
    assert "Mind the fox" in str(second.bodies[0]["messages"])
    assert second.prefixes == ["The quick"]


@pytest.mark.parametrize("guidance", [UNGUIDED, Guidance("The quick brown", pending_space=" ", tokens=3)])
async def test_a_collected_reply_is_continued(guidance: Guidance) -> None:
    first, second = Engine("small", [4], EngineTimeout), Engine("big")
    found = await answer(first, second, guidance=guidance, as_json=True)
    assert (found.text, found.finish_reasons, found.error) == (ANSWER, ["stop"], None)
    assert second.prefixes == [" ".join(ANSWER.split()[: guidance.tokens + 4])]
    assert found.usage == _usage(PROMPT_TOKENS, len(TOKENS))["usage"]
    assert found.receipt.timings.first_token_ms is None


@pytest.mark.parametrize("guidance", [UNGUIDED, Guidance("The quick brown", pending_space=" ", tokens=3)])
async def test_a_collected_reply_that_cannot_be_continued_starts_anew(guidance: Guidance) -> None:
    """The second engine gets the guidance again, and nothing of the first one's text."""
    first, second = Engine("small", [4], EngineTimeout, more={"reasoning_content": "Hm."}), Engine("big")
    found = await answer(first, second, guidance=guidance, as_json=True)
    assert (found.text, found.error) == (ANSWER, None)
    assert second.prefixes == [guidance.text]
    assert found.receipt.continued_tokens == 0
    assert [(one.engine, one.error) for one in found.receipt.attempts] == [("small", "engine_timeout")]


async def test_the_only_engine_continues_once_after_a_lost_connection() -> None:
    once, twice, stalled = Engine("small", [3]), Engine("small", [3, 2]), Engine("small", [3], EngineTimeout)
    assert (await answer(once)).text == ANSWER
    found = await answer(twice)
    assert (found.text, type(found.error)) == ("The quick brown fox jumps", EngineUnreachable)
    assert len(twice.bodies) == 2
    assert found.continued("small", "failed") == 1
    assert type((await answer(stalled)).error) is EngineTimeout


async def test_a_teacher_that_answers_alone_continues_its_own_answer() -> None:
    found = await answer(Engine("big", [3], counts=True), mode="teacher")
    assert (found.text, found.error) == (ANSWER, None)
    receipt = found.receipt
    assert receipt.teacher is not None
    assert (receipt.mode, receipt.student, receipt.teacher.output_tokens) == ("teacher", None, len(TOKENS) - 3)
    assert receipt.continued_tokens == 3
    assert found.usage == _usage(PROMPT_TOKENS, len(TOKENS))["usage"]


async def test_the_baseline_covers_the_whole_answer() -> None:
    """The price of a broken answer's baseline is close to that of the same answer by one student."""
    broken = (await answer(Engine("small", [8], counts=True), Engine("huge"))).receipt
    whole = (await answer(Engine("small"))).receipt
    assert broken.baseline_error_usd is not None
    assert abs(broken.baseline_usd - whole.baseline_usd) <= broken.baseline_error_usd


async def test_without_retries_the_only_engine_does_not_continue() -> None:
    engine = Engine("small", [3])
    assert type((await answer(engine, retries=RetryRule(num_retries=0))).error) is EngineUnreachable
    assert len(engine.bodies) == 1


async def test_several_breaks_are_one_answer() -> None:
    engines = Engine("small", [3]), Engine("big", [2]), Engine("huge")
    found = await answer(*engines)
    assert found.text == ANSWER
    assert found.usage == _usage(PROMPT_TOKENS, len(TOKENS))["usage"]
    assert [one.engine for one in found.receipt.attempts] == ["small", "big"]
    assert (found.continued("big", "failed"), found.continued("huge", "ok")) == (1, 1)


@pytest.mark.parametrize("counts", [True, False])
async def test_the_callers_limit_is_never_exceeded(counts: bool) -> None:
    for limit in range(2, len(TOKENS)):
        for failing in range(1, limit):
            first, second = Engine("small", [failing], EngineTimeout, counts=counts), Engine("big")
            found = await answer(first, second, request=chat(max_tokens=limit))
            written = len(re.findall(r"\S+", found.text))
            assert ANSWER.startswith(found.text)
            assert written <= limit
            if counts:
                assert (written, found.finish_reasons, found.usage["completion_tokens"]) == (limit, ["length"], limit)
                assert second.bodies[0]["max_tokens"] == limit - failing
            elif found.error is not None:
                assert second.bodies == []


async def test_guidance_counts_toward_the_limit_once() -> None:
    first, second = Engine("small", [2], EngineTimeout, counts=True), Engine("big")
    await answer(
        first, second, guidance=Guidance("The quick brown", pending_space=" ", tokens=3), request=chat(max_tokens=9)
    )
    assert (first.bodies[0]["max_tokens"], second.bodies[0]["max_tokens"]) == (6, 4)


async def test_a_stop_string_across_the_seam_ends_the_answer() -> None:
    found = await answer(Engine("small", [5]), Engine("big"), request=chat(stop=["jumps over"]))
    assert (found.text, found.finish_reasons) == ("The quick brown fox jumps", ["stop"])
    beside = await answer(Engine("small", [5]), Engine("big"), request=chat(stop=["jumps off"]))
    assert beside.text == ANSWER


async def test_an_answer_that_a_stop_string_ends_across_the_seam_is_counted() -> None:
    """The call is canceled before its usage. A continued call requests running counts where the engine has them."""
    first, second = Engine("small", [5], counts=True), Engine("big", counts=True)
    second.state.counts_chunks = True
    found = await answer(first, second, request=chat(stop=["jumps over"]))
    assert found.usage == _usage(PROMPT_TOKENS, 6)["usage"]
    bodies = (*first.bodies, *second.bodies)
    assert [body["stream_options"].get("continuous_usage_stats") for body in bodies] == [None, True]
    assert [body.get("stop") for body in bodies] == [["jumps over"], None]


async def test_a_teachers_own_answer_that_a_stop_string_ends_across_the_seam_is_counted() -> None:
    teacher = Engine("big", [5], counts=True)
    teacher.state.counts_chunks = True
    found = await answer(teacher, mode="teacher", request=chat(stop=["jumps over"]))
    assert (found.text, found.finish_reasons) == ("The quick brown fox jumps", ["stop"])
    assert found.usage == _usage(PROMPT_TOKENS, 6)["usage"]


@pytest.mark.parametrize("as_json", [False, True])
async def test_without_running_counts_an_answer_that_a_stop_string_ends_has_its_deltas(as_json: bool) -> None:
    guidance = Guidance("The quick brown", pending_space=" ", tokens=3)
    request = chat(stop=["brown fox jumps"], max_tokens=12)
    found = await answer(Engine("small"), guidance=guidance, request=request, as_json=as_json)
    assert (found.text, found.finish_reasons) == ("The quick ", ["stop"])
    assert found.usage["completion_tokens"] == 3 + 2


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ({"n": 2}, None),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, None),
        ({"response_format": {"type": "json_object"}}, None),
        ({"logprobs": True}, None),
        ({"some_field": 1}, None),
        ({"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Well,"}]}, None),
        ({}, {"reasoning_content": "Hm."}),
        ({}, {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]}),
        ({}, {"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "So,"}]}),
        ({}, {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]}),
    ],
)
async def test_what_is_not_plain_text_is_not_continued(fields: dict[str, Any], more: Any) -> None:
    second = Engine("big")
    found = await answer(Engine("small", [3], more=more), second, request=chat(**fields))
    assert type(found.error) is EngineUnreachable
    assert second.bodies == []
    assert found.receipt.continued_tokens == 0


async def test_an_engine_that_sends_empty_lists_sends_text_alone() -> None:
    second = Engine("big")
    found = await answer(Engine("small", [3], more={"tool_calls": []}), second)
    assert (found.text, found.error) == (ANSWER, None)
    assert second.prefixes == ["The quick brown"]


class TooLong(Engine):
    """An engine whose context the continued text exceeds."""

    def failure(self) -> EngineError:
        error = EngineRejected("It is too long.", engine=self.name, status_sent=400)
        error.engine_code, error.may_have_run = "context_length_exceeded", False
        return error


@pytest.mark.parametrize("as_json", [False, True])
async def test_a_rejected_continuation_is_not_the_callers_error(as_json: bool) -> None:
    """The first engine accepted the request. The text so far is not the caller's."""
    found = await answer(Engine("small", [3], EngineTimeout), TooLong("big", [0]), as_json=as_json)
    assert isinstance(found.error, EngineRejected)


async def test_an_answer_that_begins_with_reasoning_is_not_continued() -> None:
    second = Engine("big")
    assert (await answer(Engine("small", [3], answer="<think>Hm, a fox.</think>"), second)).error is not None
    assert second.bodies == []


async def test_a_rejection_and_a_caller_that_left_end_the_stream() -> None:
    second = Engine("big")
    assert type((await answer(Engine("small", [3], EngineRejected), second)).error) is EngineRejected
    assert type((await answer(Engine("small", [3]), second, client_leaves=True)).error) is EngineUnreachable
    assert second.bodies == []


async def test_only_engines_that_continue_a_text_are_called() -> None:
    """The engine that failed need not be one of them."""
    first, second = Engine("small", [3], EngineTimeout), Engine("big")
    found = await answer(first, second, continuation=None)
    assert found.text == ANSWER
    alone = Engine("small", [3])
    assert type((await answer(alone, continuation=None)).error) is EngineUnreachable
    assert len(alone.bodies) == 1


@pytest.mark.parametrize(("failing", "continues"), [(6, False), (7, True)])
async def test_an_engine_that_strips_spaces_continues_only_after_a_space(failing: int, *, continues: bool) -> None:
    """Token 7 is the space after the third word and further ones alternate, so that its loss would join two words."""
    first = Engine("small", [failing - 1], EngineTimeout, whitespace=True)
    found = await answer(first, Engine("big", strips=True))
    assert (found.error is None) is continues
    assert not continues or found.text == ANSWER


async def test_whitespace_before_a_chats_answer_is_not_sent_to_the_next_engine() -> None:
    first, second = Engine("small", [3], EngineTimeout, answer="\n\n" + ANSWER), Engine("big")
    found = await answer(first, second)
    assert (found.text, second.prefixes) == ("\n\n" + ANSWER, ["The quick brown"])


async def test_a_raw_prompt_is_continued() -> None:
    request = parse_text_completion(orjson.dumps({"model": "chat", "prompt": "Hello", "stream": True}))
    second = Engine("big")
    found = await answer(Engine("small", [3]), second, request=request)
    assert found.text == ANSWER
    assert second.bodies[0]["prompt"] == "HelloThe quick brown"


async def test_an_engine_with_an_open_circuit_is_not_called() -> None:
    """The stream then ends with the error that broke it."""
    second = Engine("big", [0] * 5, connects=False)
    found = await answer(Engine("small", [3], EngineTimeout), second, open_circuits=("big",))
    assert type(found.error) is EngineTimeout
    assert len(second.bodies) == 5


async def test_a_continued_call_costs_at_most_its_reservation() -> None:
    """The continued text may be longer than the whole prompt that was reserved."""
    words = " ".join(["word"] * 2000)
    first, second = Engine("small", [1900], EngineTimeout, counts=True, answer=words), Engine("big", answer=words)
    found = await answer(first, second, request=chat(max_tokens=2000))
    assert found.text == words
    receipt = found.receipt
    assert receipt.student is not None
    assert receipt.student.usage_error == ""
    assert receipt.student.input_tokens == PROMPT_TOKENS + 1900
    assert found.builder.reserved is not None
    assert receipt.cost_usd <= found.builder.reserved.usd
    assert found.usage == _usage(PROMPT_TOKENS, 2000)["usage"]


@settings(max_examples=150, deadline=None)
@given(
    failures=st.lists(st.integers(1, 9), max_size=2),
    counts=st.booleans(),
    whitespace=st.lists(st.booleans(), min_size=3, max_size=3),
    echoes=st.booleans(),
    guided=st.integers(0, len(ANSWER) - 20),
    stop=st.sampled_from([(), ("fox jumped",), ("\n\nQ:", "dog!"), ("\n\n\n",)]),
)
async def test_the_joined_text_is_the_answer(
    failures: list[int], counts: bool, whitespace: list[bool], echoes: bool, guided: int, stop: tuple[str, ...]
) -> None:
    trimmed = trim(ANSWER[:guided], cut=True)
    tokens = trimmed.text.count(" ") + 1
    guidance = Guidance(trimmed.text, pending_space=trimmed.pending_space, tokens=tokens) if trimmed.text else UNGUIDED
    engines = [
        Engine(name, failures[number : number + 1], EngineTimeout, counts, whitespace[number], echoes and number > 0)
        for number, name in enumerate(["small", "big", "huge"])
    ]
    found = await answer(*engines, guidance=guidance, request=chat(stop=list(stop)))
    assert (found.text, found.error, found.finish_reasons) == (ANSWER, None, ["stop"])
