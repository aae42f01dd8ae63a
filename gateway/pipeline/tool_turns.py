"""Answer a turn with tools by the teacher alone or the student alone, where the policy says `tools: switch`.

`policy/tool_switch.py` has the rules. The student is asked for its first token in a call of its own, because llama.cpp
rejects `logprobs` in a stream with tools. An engine that caches prefixes does not read the prompt again for the answer.
The caller gets the reply of one engine: nothing is sent and then replaced, and `logprobs` are those that it requested.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from msgspec import structs

from gateway.accounting.shares import EngineCall
from gateway.engines.chat import read_usage
from gateway.engines.failures import record_failure
from gateway.engines.replies import first_choice
from gateway.errors import EngineError, EngineRejected, GatewayError, GuidanceUnavailable
from gateway.pipeline.guidance_request import UNGUIDED
from gateway.pipeline.student_warmup import one_token_body, prompt_messages
from gateway.policy.tool_switch import STUDENT_UNSURE, TOO_LONG, TurnChoice, choose_by_probability

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.pipeline.stream import StreamRelay
    from gateway.pipeline.student import StudentCall
    from gateway.policy.plan import Plan, TurnPlan
    from gateway.policy.tool_switch import TurnEngine, TurnSignals
    from gateway.protocol.body import Json
    from gateway.protocol.content_run import ChunkGroup
    from gateway.protocol.requests import CompletionRequest

MAX_TURNS_PER_TENANT = 256
"""Turns of each tenant whose unsure student a process remembers. The oldest is forgotten."""
ASK_EVERY = 100
"""After a reply without log-probabilities, or a rejection of them, one of so many turns of the tenant still asks the
engine."""
_MAX_LOGPROB = 1e-3  # a probability of 1 with a rounding error


class ToolTurns:
    """Choose the engine of a turn, and call it.

    A process remembers the turns that an unsure student left to the teacher, so that the engine does not change back at
    once. Other processes, and this one after a restart, know of such a turn only what the messages show.
    """

    def __init__(self, students: StudentCall) -> None:
        self._students = students
        self._unsure: dict[str, dict[tuple[str, str, int | None], None]] = {}  # by tenant; in the order of their times
        # Turns since a reply without log-probabilities or a rejection of them, by engine and tenant.
        self._skipped: dict[tuple[str, str], int] = {}

    async def complete(self, request: CompletionRequest, builder: ReceiptBuilder) -> Json:
        """Return the reply of the chosen engine. Raises the errors of StudentCall, and GuidanceUnavailable."""
        planned = builder.plan
        await self._choose(request, builder)
        try:
            reply = await self._students.complete(request, UNGUIDED, builder)
        except GatewayError as error:
            _replace_engine(builder, planned, error)
        else:
            self._remember_unsure(builder, planned)
            return reply
        return await self._students.complete(request, UNGUIDED, builder)

    async def stream(
        self, request: CompletionRequest, relay: StreamRelay, builder: ReceiptBuilder
    ) -> AsyncGenerator[ChunkGroup, None]:
        """Yield the chunks of the chosen engine, as `StudentCall.stream`. An engine that fails is replaced only before
        its first chunk."""
        planned, has_output = builder.plan, False
        await self._choose(request, builder)
        try:
            async with aclosing(self._students.stream(request, UNGUIDED, relay, builder)) as groups:
                async for chunks in groups:
                    if not has_output:
                        has_output = True
                        self._remember_unsure(builder, planned)
                    yield chunks
        except GatewayError as error:
            if has_output:
                raise
            _replace_engine(builder, planned, error)
        else:
            return
        async with aclosing(self._students.stream(request, UNGUIDED, relay, builder)) as groups:
            async for chunks in groups:
                yield chunks

    async def _choose(self, request: CompletionRequest, builder: ReceiptBuilder) -> None:
        """Replace the plan by that of the chosen engine."""
        plan, turn = builder.plan, builder.plan.turn
        assert turn is not None, "resolve() plans the turn"
        if turn.at_once is not None:
            choice = TurnChoice("teacher", turn.at_once)
        else:
            builder.student_probability = await self._probability(request, builder, turn)
            previous: TurnEngine = "teacher" if self._follows_teacher(builder, turn.signals) else "student"
            choice = choose_by_probability(turn.rule, previous, builder.student_probability)
        if choice.engine == "teacher":
            _plan_teacher(builder, turn, choice.reason)
        else:
            builder.plan, builder.unguided = structs.replace(plan, unguided=choice.reason), choice.reason

    def _follows_teacher(self, builder: ReceiptBuilder, signals: TurnSignals) -> bool:
        turns = self._unsure.get(builder.tenant, {})
        return signals.follows_teacher or (builder.route, builder.key, signals.previous) in turns

    def _remember_unsure(self, builder: ReceiptBuilder, planned: Plan) -> None:
        """Remember the turn if the teacher answers it because the student was unsure."""
        if builder.plan.unguided != STUDENT_UNSURE or planned.turn is None:
            return
        turns = self._unsure.setdefault(builder.tenant, {})
        turns[builder.route, builder.key, planned.turn.signals.turn] = None
        if len(turns) > MAX_TURNS_PER_TENANT:
            del turns[next(iter(turns))]

    async def _probability(self, request: CompletionRequest, builder: ReceiptBuilder, turn: TurnPlan) -> float | None:
        """Return the probability of the student's most likely first token; None: the engine did not report it in time.

        The receipt contains the cost of the call.
        """
        student = builder.plan.students[0]
        engine, key = builder.engine_set.by_name[student.engine], (student.engine, builder.tenant)
        if not turn.asks_student or builder.caller_left:
            return None
        if key in self._skipped:
            self._skipped[key] = (self._skipped[key] + 1) % ASK_EVERY
            if self._skipped[key]:
                return None
        body = one_token_body(request, student.reasoning) | {"logprobs": True, "top_logprobs": 1}
        call = EngineCall(engine.name, prompt_messages(request), lost_tokens=1, role="warmup")
        try:
            async with asyncio.timeout(turn.deadline_s):
                if engine.must_wait(builder.tenant):
                    await engine.wait_for_slot()
                # Until the engine answers, it is unknown whether it generated the token.
                builder.running = builder.warmup = call
                reply = await engine.complete(body)
        except TimeoutError:
            return None
        except EngineError as error:
            if builder.warmup is call:  # else wait_for_slot() has recorded it
                record_failure(error, builder.id, self._students.metrics)
            if not error.may_have_run:
                builder.warmup = None
            if _rejects_logprobs(error):
                self._skipped[key] = 0
            return None
        finally:
            builder.running = None
        call.usage = read_usage(reply.get("usage"))
        probability = read_probability(first_choice(reply).get("logprobs"))
        if probability is None:
            self._skipped[key] = 0
        else:
            self._skipped.pop(key, None)
        return probability


def _rejects_logprobs(error: EngineError) -> bool:
    """Return whether an engine rejects log-probabilities. Some providers do so as if the credentials were wrong."""
    named = f"{error.message} {error.engine_text} {error.engine_param}"
    return isinstance(error, EngineRejected) and "logprobs" in named


def read_probability(logprobs: Any) -> float | None:
    """Return the probability of the first token in the `logprobs` of a chat's choice; None: there is none."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    first = content[0] if isinstance(content, list) and content else None
    value = first.get("logprob") if isinstance(first, dict) else None
    if not isinstance(value, int | float) or isinstance(value, bool) or not value <= _MAX_LOGPROB:
        return None
    return round(math.exp(min(0.0, value)), 4)


def _replace_engine(builder: ReceiptBuilder, planned: Plan, error: GatewayError) -> None:
    """Plan the answer of the other engine after `error`. Raise an error where that is not possible.

    The student replaces a teacher that failed. The teacher replaces students whose context is too small.
    """
    turn, cause = planned.turn, error if isinstance(error, EngineError) else error.__cause__
    if turn is None or not isinstance(cause, EngineError) or builder.caller_left:
        raise error
    if builder.plan.mode != "teacher":
        if not (isinstance(cause, EngineRejected) and cause.exceeds_context):
            raise error
        builder.record_failure(cause)
        _plan_teacher(builder, turn, TOO_LONG)
        return
    if isinstance(cause, EngineRejected) and cause.is_filtered and planned.retries.is_filter_final:
        raise error
    reason = "teacher_" + cause.label.removeprefix("engine_")
    if turn.required:
        if not isinstance(error, EngineError):  # the caller's request is wrong, in its own terms
            raise error
        raise GuidanceUnavailable(
            f"The teacher did not answer this turn ({reason}), and this route's policy forbids answers of the student.",
            retry_after_s=cause.retry_after_s or 1.0,
        ) from cause
    if not turn.student_fits:
        raise error
    builder.record_failure(cause)
    builder.plan = structs.replace(planned, unguided=reason)
    builder.unguided = reason


def _plan_teacher(builder: ReceiptBuilder, turn: TurnPlan, reason: str) -> None:
    planned = builder.plan
    plan = structs.replace(
        turn.teacher,
        max_tokens=planned.max_tokens,
        reduced_max_tokens=planned.reduced_max_tokens,
        split=planned.split,
    )
    builder.plan, builder.unguided = structs.replace(plan, unguided=reason), reason
