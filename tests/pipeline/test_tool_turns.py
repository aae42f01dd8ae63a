"""Turns with tools that the teacher or the student writes alone: calls, failures and costs."""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import orjson
import pytest

from gateway.accounting.worst_case import worst_case
from gateway.engines.base import EngineState
from gateway.engines.breaker import Breaker, BreakerRule
from gateway.engines.guard import GuardedEngine
from gateway.engines.refusal import read_error, refusal
from gateway.engines.replies import unsupported
from gateway.errors import EngineOverloaded, EngineTimeout, GatewayError, GuidanceUnavailable, InvalidRequest
from gateway.pipeline.context_length import drop_too_small, may_be_too_small
from gateway.pipeline.stream import StreamRelay
from gateway.pipeline.student import StudentCall
from gateway.pipeline.tool_turns import ASK_EVERY, MAX_TURNS_PER_TENANT, ToolTurns, read_probability
from gateway.policy.plan import EngineSnapshot
from gateway.policy.resolve import resolve
from gateway.policy.schema import TenantPolicy
from gateway.protocol.chat import parse_chat
from gateway.protocol.content_run import each_chunk
from gateway.protocol.reply import ReplyHead
from gateway.telemetry.metrics import Metrics
from tests.accounting.receipt_builders import ENCODINGS, PRICES, builder, engine_set
from tests.policy.test_tool_switch import FAILED, TOOLS, called, user

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.accounting.receipt import Receipt

Form = Literal["json", "sse"]
FORMS = pytest.mark.parametrize("form", ["json", "sse"])
FIRST, SECOND = [user()], [user(), *called(0)]
THIRD = [*SECOND, *called(1)]


@dataclass
class Engine:
    """An engine that answers with its name. `probability` is that of its first token; None: it reports none."""

    name: str
    probability: float | None = 1.0
    error: GatewayError | None = None
    asking_error: GatewayError | None = None
    slow_s: float = 0.0
    bodies: list[Any] = field(default_factory=list)
    state: EngineState = field(default_factory=EngineState)

    @property
    def questions(self) -> int:
        return sum("logprobs" in body for body in self.bodies)

    @property
    def answers(self) -> int:
        return len(self.bodies) - self.questions

    async def complete(self, body: Any, prefill: Any = None) -> dict[str, Any]:
        self.bodies.append(body)
        asked = "logprobs" in body
        if (error := self.asking_error if asked else self.error) is not None:
            raise error
        if asked:
            await asyncio.sleep(self.slow_s)
        choice = {"index": 0, "message": {"role": "assistant", "content": f"by {self.name}"}, "finish_reason": "stop"}
        if asked and self.probability is not None:
            choice["logprobs"] = {"content": [{"token": "by", "logprob": math.log(self.probability)}]}
        written = 1 if asked else 20
        return {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": written}}

    async def stream(self, body: Any, prefill: Any = None) -> AsyncGenerator[list[Any], None]:
        self.bodies.append(body)
        if self.error is not None:
            raise self.error
        yield [{"choices": [{"index": 0, "delta": {"content": f"by {self.name}"}, "finish_reason": "stop"}]}]
        yield [{"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 20}}]


class World:
    """A route with the teacher `big` and the student `small`, whose requests one process answers."""

    def __init__(self, **guidance: Any) -> None:
        route = {"model": "chat", "mode": "guided", "teacher": "big", "student": "small"}
        route |= {"guidance": {"tools": "switch"} | guidance, "retries": {"num_retries": 0}}
        self.policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [route]})
        self.big, self.small = Engine("big"), Engine("small")
        metrics = Metrics()
        breaker = BreakerRule(50, 1.0, 5.0)
        self.engine_set = engine_set({
            one.name: GuardedEngine(one, Breaker(breaker), metrics) for one in (self.big, self.small)
        })  # fmt: skip
        self.turns = ToolTurns(StudentCall(metrics))
        self.text = ""

    async def answer(
        self, messages: Any, form: Form = "json", tenant: str = "acme", **more: Any
    ) -> tuple[Receipt, GatewayError | None]:
        """Answer a request. Return its receipt, and the error with which it ended."""
        body = {"model": "chat", "messages": messages, "tools": TOOLS, "max_tokens": 50, "stream": form == "sse"}
        request = parse_chat(orjson.dumps(body | more))
        plan = resolve(self.policy, self.policy.routes[0], request, lambda _: EngineSnapshot(None))
        one = builder(plan, request=request, reserved=worst_case(plan, request, PRICES), engine_set=self.engine_set)
        one.tenant, self.text = tenant, ""
        error = None
        if may_be_too_small(request, one):
            await drop_too_small(request, one)
        try:
            if form == "json":
                reply = await self.turns.complete(request, one)
                self.text = reply["choices"][0]["message"]["content"]
                assert "logprobs" not in reply["choices"][0]
            else:
                relay = StreamRelay(ReplyHead("ours", 1, "chat"), wants_usage=False)
                async with aclosing(self.turns.stream(request, relay, one)) as groups:
                    async for group in groups:
                        for choice in (choice for chunk in each_chunk(group) for choice in chunk["choices"]):
                            self.text += choice["delta"].get("content") or ""
                            assert choice["logprobs"] is None
        except GatewayError as raised:
            error = raised
        receipt = one.close("ok" if error is None else error.label, PRICES, ENCODINGS)
        assert one.reserved is not None
        assert receipt.cost_usd <= one.reserved.usd
        return receipt, error


def facts(receipt: Receipt) -> tuple[str, str | None, Any]:
    return receipt.mode, receipt.unguided, receipt.facts(show_cost=False).get("student_probability")


@FORMS
async def test_the_teacher_writes_the_first_turn_and_the_turn_after_an_error(form: Form) -> None:
    world = World()
    for messages, reason in ((FIRST, "switch_first_turn"), ([user(), *called(0, FAILED)], "switch_tool_error")):
        receipt, error = await world.answer(messages, form)
        assert (error, world.text, facts(receipt)) == (None, "by big", ("teacher", reason, None))
        assert (receipt.student, receipt.warmup, receipt.attempts) == (None, None, ())
        assert receipt.cost_usd == receipt.baseline_usd
        assert (receipt.savings_class, receipt.savings_usd) == ("teacher", 0)
    assert world.small.bodies == []


@FORMS
async def test_a_confident_student_writes_the_turn(form: Form) -> None:
    world = World()
    world.small.probability = 0.95
    receipt, error = await world.answer(SECOND, form)
    assert (error, world.text, facts(receipt)) == (None, "by small", ("student", "switch_confident", 0.95))
    assert world.big.bodies == []
    assert receipt.student is not None
    assert receipt.warmup is not None
    assert receipt.teacher is None
    assert receipt.cost_usd == receipt.student.cost_usd + receipt.warmup.cost_usd
    assert (receipt.warmup.output_tokens, receipt.savings_class) == (1, "student_by_policy")
    assert receipt.savings_usd == receipt.baseline_usd - receipt.cost_usd > 0


@FORMS
async def test_the_teacher_writes_the_turn_of_an_unsure_student_whose_token_is_a_loss(form: Form) -> None:
    world = World()
    world.small.probability = 0.5
    receipt, error = await world.answer(SECOND, form)
    assert (error, world.text, facts(receipt)) == (None, "by big", ("teacher", "switch_unsure", 0.5))
    assert (world.small.questions, world.small.answers, world.big.answers) == (1, 0, 1)
    assert receipt.teacher is not None
    assert receipt.warmup is not None
    assert receipt.baseline_usd == receipt.teacher.cost_usd
    assert receipt.cost_usd == receipt.teacher.cost_usd + receipt.warmup.cost_usd
    assert (receipt.savings_class, receipt.savings_usd) == ("not_guidable", -receipt.warmup.cost_usd)


async def test_the_question_has_the_tools_and_none_of_the_callers_other_fields() -> None:
    world = World()
    await world.answer(SECOND, tool_choice="auto", response_format={"type": "json_object"}, n=2)
    question = world.small.bodies[0]
    assert (question["tools"], question["tool_choice"], question["max_tokens"]) == (TOOLS, "auto", 1)
    assert (question["logprobs"], question["top_logprobs"], question["temperature"]) == (True, 1, 0)
    assert question.keys().isdisjoint({"response_format", "n", "stream"})


async def test_a_process_remembers_that_the_teacher_wrote_the_turn_of_an_unsure_student() -> None:
    """Within the margin the engine does not change back. A turn of another conversation is not affected."""
    world = World()
    fourth = [*THIRD, *called(2)]
    for messages, probability, text in (
        (SECOND, 0.95, "by small"),
        (THIRD, 0.75, "by small"),  # the student stays
        (THIRD, 0.65, "by big"),
        (fourth, 0.85, "by big"),  # the teacher stays
        ([*fourth, *called(3)], 0.95, "by small"),
        ([*fourth, *called(3), *called(4)], 0.75, "by small"),
    ):
        world.small.probability = probability
        await world.answer(messages)
        assert world.text == text
    world.small.probability = 0.85
    await world.answer([*THIRD, *called(9)])
    assert world.text == "by big", "the same previous turn"
    await world.answer([*SECOND, *called(1, "other"), *called(2)])
    assert world.text == "by small"


@FORMS
async def test_a_turn_that_the_teacher_failed_to_write_counts_as_the_students(form: Form) -> None:
    world = World()
    world.small.probability, world.big.error = 0.65, EngineTimeout("late", engine="big")
    await world.answer(THIRD, form)
    assert (world.text, world.big.answers) == ("by small", 1)
    world.small.probability, world.big.error = 0.75, None  # enough for a student that stays
    await world.answer([*THIRD, *called(2)], form)
    assert world.text == "by small"


async def test_each_tenant_has_a_memory_of_its_own_with_a_limit() -> None:
    world = World()
    world.small.probability = 0.1
    await world.answer(THIRD)
    for number in range(MAX_TURNS_PER_TENANT + 5):
        await world.answer([*SECOND, *called(number, "other")], tenant="globex")
    world.small.probability = 0.85
    await world.answer([*THIRD, *called(2)])
    assert world.text == "by big"
    await world.answer([*SECOND, *called(0, "other"), *called(2)], tenant="globex")
    assert world.text == "by small", "forgotten"
    await world.answer([*SECOND, *called(9, "other"), *called(2)], tenant="globex")
    assert world.text == "by big"


@FORMS
async def test_without_probabilities_the_student_writes_later_turns_and_is_rarely_asked(form: Form) -> None:
    world = World()
    world.small.probability = None
    for _ in range(ASK_EVERY + 1):
        receipt, _ = await world.answer(SECOND, form)
        assert facts(receipt) == ("student", "switch_no_probability", None)
    assert world.small.questions == 2
    await world.answer(SECOND, form, tenant="globex")
    assert world.small.questions == 3, "one tenant's requests do not decide for another"


@pytest.mark.parametrize(
    ("error", "charged"),
    [(EngineTimeout("late", engine="small"), True), (refusal("small", 400, read_error({}), None), False)],
)
async def test_a_failed_question_is_no_signal(error: Any, *, charged: bool) -> None:
    world = World()
    error.may_have_run = charged
    world.small.asking_error = error
    receipt, raised = await world.answer(SECOND)
    assert (raised, world.text, receipt.unguided) == (None, "by small", "switch_no_probability")
    assert (receipt.warmup is not None) == charged
    assert receipt.estimated == charged


TOO_LONG_BODY = {"error": {"code": "context_length_exceeded", "message": "The prompt has 900 tokens."}}
LONG = [{"role": "system", "content": "word " * 500}]


@FORMS
@pytest.mark.parametrize("asks", [False, True])
async def test_the_teacher_writes_a_turn_that_the_students_engine_finds_too_long(form: Form, asks: bool) -> None:
    """The one-token question may fit where the answer does not."""
    world = World()
    world.small.error = refusal("small", 400, read_error(TOO_LONG_BODY), None)
    world.small.asking_error = None if asks else world.small.error
    receipt, error = await world.answer(SECOND, form)
    assert (error, world.text, facts(receipt)[:2]) == (None, "by big", ("teacher", "switch_too_long"))
    assert (world.small.answers, world.big.answers, len(receipt.attempts)) == (1, 1, 1)
    assert (receipt.warmup is not None) == asks


@FORMS
async def test_other_rejections_of_the_student_are_the_callers(form: Form) -> None:
    world = World()
    world.small.error = refusal("small", 400, read_error({"error": {"message": "No such role."}}), None)
    receipt, error = await world.answer(SECOND, form)
    assert isinstance(error, GatewayError)
    assert world.big.bodies == []
    assert receipt.mode == "student"


@FORMS
@pytest.mark.parametrize(("messages", "reason"), [(SECOND, "switch_too_long"), (FIRST, "switch_first_turn")])
async def test_the_teacher_writes_a_turn_that_is_too_long_for_the_student_by_its_words(
    messages: Any, reason: str, form: Form
) -> None:
    """The student gets no call, also if the teacher fails."""
    world = World()
    world.small.state.max_prompt_tokens = 100
    receipt, error = await world.answer([*LONG, *messages], form)
    assert (error, world.text, facts(receipt)) == (None, "by big", ("teacher", reason, None))
    world.big.error = EngineOverloaded("busy", engine="big")
    receipt, error = await world.answer([*LONG, *messages], form)
    assert isinstance(error, EngineOverloaded)
    assert world.small.bodies == []


async def test_a_policy_that_forbids_the_student_rejects_a_turn_that_is_too_long_for_it() -> None:
    world = World(on_failure="reject")
    world.small.state.max_prompt_tokens = 100
    world.big.error = EngineTimeout("late", engine="big")
    _, error = await world.answer([*LONG, *SECOND])
    assert isinstance(error, GuidanceUnavailable)
    assert world.small.bodies == []


async def test_a_turn_that_is_too_long_for_both_is_rejected_without_a_call() -> None:
    world = World()
    world.small.state.max_prompt_tokens, world.big.state.max_prompt_tokens = 100, 200
    with pytest.raises(InvalidRequest, match="maximum context length is 200 tokens"):
        await world.answer([*LONG, *SECOND])
    assert world.small.bodies == world.big.bodies == []


@pytest.mark.parametrize(
    "error",
    [
        unsupported("small", "does not support the request: no 'logprobs'.", 400, "logprobs"),
        refusal("small", 400, read_error({"error": {"message": "Unknown field.", "param": "top_logprobs"}}), None),
        refusal("small", 403, read_error({"error": {"message": "No logprobs from this model."}}), None),
    ],
)
async def test_an_engine_that_rejects_log_probabilities_is_rarely_asked(error: GatewayError) -> None:
    """A provider may reject them with a status that counts against the engine."""
    world = World()
    world.small.asking_error = error
    for _ in range(ASK_EVERY + 1):
        receipt, raised = await world.answer(SECOND)
        assert (raised, facts(receipt)) == (None, ("student", "switch_no_probability", None))
    assert world.small.questions == 2


async def test_a_late_probability_is_no_signal_and_charged_at_its_bound() -> None:
    world = World(deadline="20ms", max_wait="1ms")
    world.small.slow_s = 5.0
    receipt, _ = await world.answer(SECOND)
    assert (world.text, receipt.unguided) == ("by small", "switch_no_probability")
    assert receipt.warmup is not None
    assert (receipt.warmup.estimated, receipt.warmup.output_tokens) == (True, 1)


@FORMS
@pytest.mark.parametrize("messages", [FIRST, SECOND])
async def test_the_student_replaces_a_teacher_that_fails(messages: Any, form: Form) -> None:
    world = World()
    world.small.probability = 0.5
    world.big.error = EngineTimeout("late", engine="big")
    receipt, error = await world.answer(messages, form)
    assert (error, world.text, receipt.mode, receipt.unguided) == (None, "by small", "student", "teacher_timeout")
    assert [(one.engine, one.share is not None) for one in receipt.attempts] == [("big", True)]
    assert receipt.teacher is None
    assert receipt.student is not None
    assert receipt.savings_class == "teacher_unavailable"
    assert receipt.savings_usd <= Decimal(0)


@FORMS
async def test_where_the_policy_forbids_answers_of_the_student_the_request_fails(form: Form) -> None:
    world = World(on_failure="reject")
    world.big.error = EngineOverloaded("busy", engine="big", retry_after_s=7.0)
    receipt, error = await world.answer(FIRST, form)
    assert isinstance(error, GuidanceUnavailable)
    assert (error.status, error.retry_after_s, world.small.bodies) == (503, 7.0, [])
    assert "teacher_overloaded" in error.message
    assert (receipt.mode, receipt.unguided) == ("teacher", "switch_first_turn")


@pytest.mark.parametrize(("on_failure", "answered"), [("student", True), ("reject", False)])
async def test_a_request_that_the_teacher_rejects_is_the_students_or_the_callers_error(
    on_failure: str, *, answered: bool
) -> None:
    world = World(on_failure=on_failure)
    world.big.error = refusal("big", 400, read_error({"error": {"message": "No tools here."}}), None)
    receipt, error = await world.answer(FIRST)
    if answered:
        assert (error, world.text, receipt.unguided) == (None, "by small", "teacher_rejected")
    else:
        assert isinstance(error, InvalidRequest)
        assert "No tools here." in error.message


@FORMS
async def test_a_student_that_fails_after_the_teacher_is_the_error_of_the_request(form: Form) -> None:
    world = World()
    world.big.error, world.small.error = EngineTimeout("late", engine="big"), EngineTimeout("late", engine="small")
    receipt, error = await world.answer(FIRST, form)
    assert isinstance(error, EngineTimeout)
    assert error.engine == "small"
    assert len(receipt.attempts) == 1


@FORMS
async def test_a_chosen_student_that_fails_is_the_error_of_the_request(form: Form) -> None:
    world = World()
    world.small.error = EngineTimeout("late", engine="small")
    _, error = await world.answer(SECOND, form)
    assert isinstance(error, EngineTimeout)
    assert world.big.bodies == []


@pytest.mark.parametrize(
    ("logprobs", "probability"),
    [
        ({"content": [{"logprob": 0.0}]}, 1.0),
        ({"content": [{"logprob": 0.0005}]}, 1.0),
        ({"content": [{"logprob": -9999.0}]}, 0.0),
        ({"content": [{"logprob": math.log(0.25)}, {"logprob": 0.0}]}, 0.25),
        ({"content": [{"logprob": 3.0}]}, None),
        ({"content": [{"logprob": math.nan}]}, None),
        ({"content": [{"logprob": True}]}, None),
        ({"content": ["x"]}, None),
        ({"content": []}, None),
        ([], None),
        (None, None),
    ],
)
def test_a_probability_is_read_only_from_a_valid_logarithm(logprobs: Any, probability: float | None) -> None:
    assert read_probability(logprobs) == probability
