"""Guidance that is streamed while it is generated, with a deadline."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
import pytest
from msgspec import structs

from gateway.batching.single_flight import FlightResult
from gateway.batching.ticket import Grant
from gateway.engines.base import EngineState, TeacherReply, TeacherRequest, TokenUsage
from gateway.engines.retry_budget import RetryBudgets
from gateway.errors import EngineFailed
from gateway.pipeline.guidance_deadlines import GuidanceDeadlines
from gateway.pipeline.guidance_request import UNGUIDED, Guidance, build_teacher_request, guidance_from_reply
from gateway.pipeline.teacher import TeacherCall, _dedupe_key
from gateway.policy.patterns import to_pattern
from gateway.policy.projections import SkipRule
from gateway.policy.route_rules import RetryRule
from gateway.protocol.chat import parse_chat
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.accounting.receipt_builders import builder, call, closed, engine_set, plan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.policy.plan import Plan

CHAT = parse_chat(orjson.dumps({"model": "chat", "stream": True, "messages": [{"role": "user", "content": "Why?"}]}))


class Teacher:
    """A teacher that generates a few words, then waits."""

    name = "big"
    state = EngineState(revision="first")

    async def wait_for_trial(self, _: float) -> None:
        """Return at once: no trial is in flight."""

    async def generate_guidance(self, _: Any, *, batch: str | None, on_text: Callable[[str], None]) -> TeacherReply:
        self.on_text = on_text
        on_text("The quick brown")
        await asyncio.Event().wait()
        raise AssertionError


class SharedFlight:
    """A shared call that continues after its first request has left. Its teacher generates at that moment."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

    async def join(
        self, queue: Any, ticket: Any, ask: Callable[[Grant], Awaitable[TeacherReply]], granted: Any, deadline: float
    ) -> FlightResult:
        grant = Grant("batch", 2)
        granted(grant)
        try:
            await ask(grant)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_soon(self._teacher.on_text, " fox jumps over")
            raise
        raise AssertionError


class Batcher:
    def queue(self, _: str) -> None:
        return None


def teacher_call_of(flight: Any) -> TeacherCall:
    batcher: Any = Batcher()
    return TeacherCall(batcher, flight, Metrics(), BackgroundTasks(), GuidanceDeadlines(), RetryBudgets())


async def test_text_of_a_shared_teacher_after_the_deadline_is_not_shown() -> None:
    """The student continues from the text that was shown before the deadline."""
    teacher = Teacher()
    teacher_call = teacher_call_of(SharedFlight(teacher))
    guided = plan()
    assert guided.guidance is not None
    guided = structs.replace(guided, guidance=structs.replace(guided.guidance, stream=True, deadline_s=0.5))
    async with aclosing(teacher_call.stream(CHAT, builder(guided, engine_set=engine_set({"big": teacher})))) as parts:
        pieces = [part async for part in parts]
    guidance = pieces.pop()
    assert isinstance(guidance, Guidance)
    assert "".join(map(str, pieces)) == guidance.text == "The quick"


SKIP = SkipRule((to_pattern("Certainly!"), to_pattern("Let us look.*")), 24)
CHATTY = "Certainly! Let us look at it step by step.\n\nFirst we add 2.5 and 3. That is 5.5 in all. Then we stop"


class WordTeacher:
    """A teacher that sends a word at a time until the reader stops."""

    name = "big"
    state = EngineState(revision="first")

    def __init__(self, text: str) -> None:
        self.words = text.split(" ")
        self.sent_words = 0

    async def wait_for_trial(self, _: float) -> None:
        """Return at once: no trial is in flight."""

    async def generate_guidance(
        self, request: TeacherRequest, *, batch: str | None, on_text: Callable[[str], None] | None
    ) -> TeacherReply:
        words = [word if not at else f" {word}" for at, word in enumerate(self.words[: request.max_tokens])]
        for word in words if on_text is not None else ():
            self.sent_words += 1
            on_text(word)  # type: ignore[misc]
        return TeacherReply("".join(words), "length", TokenUsage(10, len(words)))


class OwnFlight:
    async def join(
        self, queue: Any, ticket: Any, ask: Callable[[Grant], Awaitable[TeacherReply]], granted: Any, deadline: float
    ) -> FlightResult:
        grant = Grant("batch", 1)
        granted(grant)
        return FlightResult(await ask(grant), "")


class FailsFirst:
    """A teacher whose first call fails."""

    name = "big"
    state = EngineState(revision="first")

    def __init__(self) -> None:
        self.batches: list[str | None] = []  # the batch of each call

    async def wait_for_trial(self, _: float) -> None:
        """Return at once: no trial is in flight."""

    async def generate_guidance(self, _: Any, *, batch: str | None, on_text: Any) -> TeacherReply:
        self.batches.append(batch)
        if len(self.batches) == 1:
            raise EngineFailed("It failed.", engine="big", status_sent=500)
        return TeacherReply("The answer is", "length", TokenUsage(10, 3))


@pytest.mark.parametrize(("num_retries", "batches"), [(0, ["batch"]), (2, ["batch", "batch"])])
async def test_the_retry_of_a_failed_call_belongs_to_its_batch_and_both_are_charged(
    num_retries: int, batches: list[str | None]
) -> None:
    teacher = FailsFirst()
    teacher_call = teacher_call_of(OwnFlight())
    guided = structs.replace(plan(), retries=RetryRule(num_retries=num_retries, backoff_s=0.001))
    one = builder(guided, engine_set=engine_set({"big": teacher}))
    await teacher_call.open(CHAT, one)
    assert teacher.batches == batches
    assert [failed.call and failed.call.lost_tokens for failed in one.failed] == [40] * (len(batches) - 1)
    assert one.unguided == (None if num_retries else "teacher_failed")


def test_estimated_guidance_tokens_are_limited_by_the_request() -> None:
    """Long words have more than four bytes per token. The student must still get the rest of the limit."""
    guided = plan()
    assert guided.guidance is not None
    guided = structs.replace(guided, guidance=structs.replace(guided.guidance, tokens=8))
    assert guided.guidance is not None
    one = builder(guided)
    text = "Incontrovertibly photosynthesising microorganisms characteristically predominate. "
    guidance = guidance_from_reply(guided, guided.guidance, CHAT, one, TeacherReply(text + "Then", "length", None))
    assert isinstance(guidance, Guidance)
    assert guidance.tokens == one.kept_tokens == 8


KEPT_CASES: list[tuple[TeacherReply, int, bool]] = [
    (TeacherReply("a b cde", "length", TokenUsage(9, 4), token_ends=(1, 2, 3, 7)), 3, False),
    (TeacherReply("a b cde", "stop", TokenUsage(9, 5), token_ends=(1, 2, 3, 7)), 5, False),  # with the end token
    (TeacherReply("a b cde", "length", TokenUsage(9, 4)), 2, True),
    (TeacherReply("a b cde", "length", None), 1, True),
    (TeacherReply("a b \n\n", "length", TokenUsage(9, 5)), 5, True),  # the student writes the empty line again
    (TeacherReply("a b.", "length", TokenUsage(9, 4)), 4, False),
]


@pytest.mark.parametrize(("reply", "tokens", "estimated"), KEPT_CASES)
def test_kept_tokens_are_the_engines_or_marked_as_estimated(
    reply: TeacherReply, tokens: int, *, estimated: bool
) -> None:
    guided = plan()
    assert guided.guidance is not None
    one = builder(guided)
    guidance_from_reply(guided, guided.guidance, CHAT, one, reply)
    assert (one.kept_tokens, one.kept_estimated) == (tokens, estimated)


def test_the_configured_tokenizer_counts_what_the_teacher_does_not() -> None:
    guided = plan()
    assert guided.guidance is not None
    one = builder(guided)
    reply = TeacherReply("a b cde", "length", TokenUsage(9, 4))
    guidance_from_reply(guided, guided.guidance, CHAT, one, reply, count=len)
    assert (one.kept_tokens, one.kept_estimated) == (len("a b"), False)


def test_a_long_text_is_estimated_rather_than_counted_on_the_event_loop() -> None:
    guided = plan()
    assert guided.guidance is not None
    one, counted = builder(guided), list[str]()
    reply = TeacherReply("word " * 1_000 + "half", "length", TokenUsage(9, 1_001))

    def count(text: str) -> int:
        counted.append(text)
        return 1

    guidance_from_reply(guided, guided.guidance, CHAT, one, reply, count=count)
    assert (counted, one.kept_estimated) == ([], True)
    assert one.kept_tokens > 900


@pytest.mark.parametrize(
    ("same_prompt", "read", "kept"), [(True, 15, (6, False)), (False, 15, (2, True)), (True, 9, (2, True))]
)
def test_two_counts_of_one_model_replace_an_estimate(*, same_prompt: bool, read: int, kept: tuple[int, bool]) -> None:
    """The student's prompt is the teacher's with the guidance."""
    one = builder(plan(), teacher=call("big", 9, 4), student=call("small", read, 4))
    one.kept_tokens, one.kept_estimated, one.same_prompt = 2, True, same_prompt
    one.settle_kept_tokens()
    assert (one.kept_tokens, one.kept_estimated) == kept


@pytest.mark.parametrize("estimated", [False, True])
def test_a_receipt_shows_whether_the_kept_tokens_are_estimated(*, estimated: bool) -> None:
    one = builder(plan(), teacher=call("big", 9, 4), student=call("small", 15, 4))
    one.kept_tokens, one.kept_estimated, one.guided = 2, estimated, one.started
    receipt = closed(one)
    assert (b"kept_estimated" in msgspec.json.encode(receipt.guidance)) == estimated


def constrained(**constraints: Any) -> Plan:
    guided = plan()
    assert guided.guidance is not None
    return structs.replace(guided, guidance=structs.replace(guided.guidance, constraints=constraints))


def kept(guided: Plan, reply: TeacherReply) -> tuple[Any, str | None]:
    assert guided.guidance is not None
    one = builder(guided)
    return guidance_from_reply(guided, guided.guidance, CHAT, one, reply), one.unguided


@pytest.mark.parametrize(("least", "sent"), [(7, 7), (40, 40), (500, 40)])
def test_the_teacher_gets_the_constraints_and_at_most_its_own_limit_as_min_tokens(least: int, sent: int) -> None:
    guided = constrained(min_tokens=least, bad_words=["x"])
    assert guided.guidance is not None
    assert build_teacher_request(guided.guidance, CHAT).constraints == {"min_tokens": sent, "bad_words": ["x"]}
    assert guided.guidance.constraints == {"min_tokens": least, "bad_words": ["x"]}


def test_requests_with_different_constraints_share_no_guidance() -> None:
    engine: Any = Teacher()
    requests = [
        TeacherRequest(40, messages=CHAT.messages, constraints=constraints)
        for constraints in (None, {"min_tokens": 5}, {"min_tokens": 6}, {"bad_words": ["x"]}, {"bad_words": ["y"]})
    ]
    keys = [_dedupe_key("acme", engine, request, "id") for request in requests]
    assert len(set(keys)) == len(keys)
    assert keys == [_dedupe_key("acme", engine, request, "id") for request in requests]


@pytest.mark.parametrize("constraint", [{"min_tokens": 5}, {"ignore_eos": True}])
def test_a_constraint_on_the_number_of_tokens_needs_an_exact_count(constraint: dict[str, Any]) -> None:
    cut = TeacherReply("a b cde", "length", TokenUsage(9, 4))
    assert kept(constrained(**constraint), cut) == (UNGUIDED, "stop_condition")
    assert kept(constrained(logit_bias={"5": 1}), cut)[0].text == "a b"
    exact = structs.replace(cut, token_ends=(1, 2, 3, 7))
    assert kept(constrained(**constraint), exact)[0].tokens == 3


@pytest.mark.parametrize(("least", "finish"), [(5, "stop"), (6, None)])
def test_an_answer_of_the_teacher_is_whole_only_with_enough_tokens(least: int, finish: str | None) -> None:
    """A stop token, too, ends the answer."""
    reply = TeacherReply("a b cde", "stop", TokenUsage(9, 5), token_ends=(1, 2, 3, 7))
    assert kept(constrained(min_tokens=least, stop_token_ids=[7]), reply)[0].finish_reason == finish


@pytest.mark.parametrize("ends", [(1, 6, 9, 13, 16), None])
def test_guidance_does_not_end_within_a_bad_word(ends: tuple[int, ...] | None) -> None:
    guided = constrained(bad_words=["New York"])
    cut = TeacherReply("I flew to New Yo", "length", TokenUsage(9, 5), token_ends=ends)
    guidance, _ = kept(guided, cut)
    assert (guidance.text, guidance.pending_space, guidance.dropped) == ("I flew to", " ", "New Yo")
    assert guidance.tokens == 3
    whole = structs.replace(cut, text="I flew to New", finish="stop")
    assert kept(guided, whole)[0].text == "I flew to New"
    begins = structs.replace(cut, text="New Yo", token_ends=None if ends is None else (3, 6))
    assert kept(guided, begins)[0] == "guidance_empty"
