"""Step 6: call a student to complete the answer. In mode teacher, the teacher takes this role.

The caller's body is sent unchanged except for the plan's changes. Paper, section 2: the student continues the prompt
and the guidance, with the user's own sampling settings. A call that fails before its first text was sent is retried, by
the same engine or the next. The guidance is kept.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from gateway.accounting.calls import EngineCall
from gateway.engines.failures import record_failure
from gateway.engines.retry_budget import RetryBudgets
from gateway.errors import EngineError, EngineRejected
from gateway.pipeline.generation import GenerationTracker
from gateway.pipeline.guidance_request import UNGUIDED
from gateway.pipeline.prefill_echo import prefill_echo
from gateway.pipeline.retries import RequestRetries, Retries, retry_or_raise
from gateway.pipeline.stream import join_reply
from gateway.pipeline.student_request import (
    build_reasoning_filter,
    build_seam,
    build_student_request,
    is_prefix,
    writes_again,
)
from gateway.policy.plan import EngineSnapshot
from gateway.protocol.messages import text_of
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from types import TracebackType

    from gateway.accounting.draft import ReceiptBuilder
    from gateway.engines.guard import GuardedEngine
    from gateway.pipeline.guidance_request import Guidance
    from gateway.pipeline.stream import StreamRelay
    from gateway.pipeline.student_request import StudentRequest
    from gateway.policy.plan import Plan, StudentPlan
    from gateway.protocol.body import Json
    from gateway.protocol.requests import CompletionRequest
    from gateway.telemetry.metrics import Metrics


RESTARTED = "student_started_anew"
"""The `unguided` reason of an answer whose student was to begin with the guidance and began differently."""


class StudentCall:
    """Call the engines that complete answers."""

    def __init__(
        self, engines: Mapping[str, GuardedEngine], metrics: Metrics, budgets: RetryBudgets | None = None
    ) -> None:
        self._engines = engines
        self._metrics = metrics
        self._budgets = budgets or RetryBudgets()

    def engine_snapshot(self, engine: str, tenant: str = "") -> EngineSnapshot:
        """Return the current state of an engine for a tenant."""
        guarded = self._engines[engine]
        state = guarded.state
        return EngineSnapshot(
            state.continuation, guarded.in_cooldown_for(tenant), state.reasoning, takes_prompts=state.takes_prompts
        )

    def check_available(self, plan: Plan, builder: ReceiptBuilder) -> None:
        """Check that a student can use the guidance. Call it before the teacher.

        Raises:
            CircuitOpen: every student rejects the tenant's calls now.
        """
        if plan.guidance is None:
            return
        refusals = [self._engines[one.engine].refusal(builder.tenant) for one in plan.students]
        resting = [one for one in refusals if one is not None]
        if resting and len(resting) == len(refusals):
            for one in resting:
                record_failure(one, builder.id, self._metrics)
            raise min(resting, key=lambda one: one.retry_after_s or 0.0)

    async def complete(
        self, plan: Plan, request: CompletionRequest, guidance: Guidance, builder: ReceiptBuilder
    ) -> Json:
        """Return a student's reply, with shown guidance in front. Raises EngineErrors and InvalidRequest.

        If a student rejects the request with the prefix, which the caller did not send, it gets the request without it.
        """
        retries = self._new_retries(plan, builder)
        while True:
            student = retries.student
            try:
                reply = await self._complete(plan, student, request, guidance, builder)
                break
            except EngineError as error:
                placed = is_prefix(plan, student, guidance)
                if placed and isinstance(error, EngineRejected) and error.blames_request:
                    builder.record_failure(plan, error)
                    builder.drop_guidance("student_refused_prefix")
                    guidance = UNGUIDED
                else:
                    await retry_or_raise(retries, error, plan, builder, self._metrics, placed=placed)
        seam_join = build_seam(plan, student, request, guidance)
        if seam_join is not None:
            join_reply(reply, seam_join, build_reasoning_filter(student, guidance))
            if seam_join.restarted:
                builder.drop_guidance(RESTARTED)
        return reply

    async def _complete(
        self, plan: Plan, student: StudentPlan, request: CompletionRequest, guidance: Guidance, builder: ReceiptBuilder
    ) -> Json:
        student_request = build_student_request(plan, student, request, guidance)
        generation = self._begin(plan, student, request, guidance, builder, student_request)
        with _Calling(plan, builder, generation, self._metrics):
            reply = await self._engines[student.engine].complete(student_request.body, student_request.prefill)
            generation.read_reply(reply)
            if (echo := prefill_echo(student, request, stream=False)) is not None:
                echo.reply(reply)
        return reply

    async def stream(
        self, plan: Plan, request: CompletionRequest, guidance: Guidance, relay: StreamRelay, builder: ReceiptBuilder
    ) -> AsyncGenerator[list[Json], None]:
        """Yield the guidance and a student's chunks, converted by `relay`. Chunks that arrived together form one group.

        Once guidance was sent, the answer cannot do without it: only students that can continue it are called.

        Raises:
            EngineErrors, InvalidRequest.
        """
        retries = self._new_retries(plan, builder)
        while True:
            student = retries.student
            seam_join = build_seam(plan, student, request, guidance)
            if opened := relay.join(
                seam_join, build_reasoning_filter(student, guidance) if seam_join is not None else None
            ):
                builder.mark_first_token()
                yield opened
            if relay.has_sent_guidance:
                retries.keep_only(_continues)
            has_output = False
            try:
                async with aclosing(self._stream(plan, student, request, guidance, relay, builder)) as groups:
                    async for chunks in groups:
                        has_output = True
                        yield chunks
                return
            except EngineError as error:
                if has_output:
                    raise
                await retry_or_raise(retries, error, plan, builder, self._metrics, placed=seam_join is not None)

    async def _stream(
        self,
        plan: Plan,
        student: StudentPlan,
        request: CompletionRequest,
        guidance: Guidance,
        relay: StreamRelay,
        builder: ReceiptBuilder,
    ) -> AsyncGenerator[list[Json], None]:
        student_request = build_student_request(plan, student, request, guidance)
        # The receipt needs usage even if the caller does not.
        student_request.body["stream_options"] = {**(request.body.get("stream_options") or {}), "include_usage": True}
        generation = self._begin(plan, student, request, guidance, builder, student_request)
        echo = prefill_echo(student, request, stream=True)
        with _Calling(plan, builder, generation, self._metrics):
            async with aclosing(
                self._engines[student.engine].stream(student_request.body, student_request.prefill)
            ) as groups:
                async for chunks in groups:
                    relayed = []
                    now = time.perf_counter()
                    for chunk in chunks:
                        generation.read(chunk, now)
                        if echo is not None:
                            echo.chunk(chunk)
                        if builder.first_token is None and _says(chunk):
                            builder.mark_first_token()
                        if (one := relay.feed(chunk)) is not None:
                            relayed.append(one)
                        if relay.done:
                            break
                    if relayed:
                        yield relayed
                    if relay.done or generation.stopped:
                        return
            generation.finish()

    def _begin(
        self,
        plan: Plan,
        student: StudentPlan,
        request: CompletionRequest,
        guidance: Guidance,
        builder: ReceiptBuilder,
        student_request: StudentRequest,
    ) -> GenerationTracker:
        """Record the call that starts now. Raises ConnectionResetError if the caller disconnected meanwhile."""
        if builder.caller_left:
            raise ConnectionResetError("The caller disconnected.")
        builder.running = call = EngineCall(student.engine, student_request.reads)
        _set_call(plan, builder, call)
        if builder.kept_tokens:
            builder.placed = _placement(plan, student, guidance)
            builder.rewritten = builder.placed == "prefix" and writes_again(student)
        return GenerationTracker(
            call,
            limit=student_request.body.get(request.limit_field),
            choices=request.choices,
            generated_choices=request.generated_choices,
            stops_within_s=self._engines[student.engine].state.stops_within_s,
            preface=_preface(student, request, student_request),
            now=time.perf_counter(),
        )

    def _new_retries(self, plan: Plan, builder: ReceiptBuilder) -> Retries:
        request_retries = RequestRetries(plan, builder, self._budgets, self._metrics)
        return Retries(plan.students, plan.retries, request_retries)


class _Calling:
    """The context of a student's call. It counts a failure, and removes a call that the engine did not receive."""

    __slots__ = ("_builder", "_generation", "_metrics", "_plan")

    def __init__(self, plan: Plan, builder: ReceiptBuilder, generation: GenerationTracker, metrics: Metrics) -> None:
        self._plan = plan
        self._builder = builder
        self._generation = generation
        self._metrics = metrics

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, EngineError):
            record_failure(error, self._builder.id, self._metrics)
            if not error.may_have_run:
                _set_call(self._plan, self._builder, None)
        self._builder.running = None
        self._generation.close(time.perf_counter())


def _continues(student: StudentPlan) -> bool:
    return student.continuation is not None and not student.continuation.writes_again


def _preface(student: StudentPlan, request: CompletionRequest, student_request: StudentRequest) -> str | None:
    """Return text that the engine may repeat before its own; None: it repeats text of unknown length."""
    echo = bool(request.body.get("echo"))
    if isinstance(request, TextRequest):
        return None if echo else ""
    if student_request.prefill is not None:
        return student_request.prefill.text if student.continuation is None or student.continuation.echo or echo else ""
    last = request.messages[-1]  # some engines repeat a caller's prefill
    return text_of(last.get("content")) or "" if last["role"] == "assistant" else ""


def _placement(plan: Plan, student: StudentPlan, guidance: Guidance) -> str:
    if is_prefix(plan, student, guidance):
        return "prefix"
    return "input" if plan.guidance is not None and plan.guidance.placement == "input" else "context"


def _set_call(plan: Plan, builder: ReceiptBuilder, call: EngineCall | None) -> None:
    if plan.mode == "teacher":
        builder.teacher = call
    else:
        builder.student = call


def _says(chunk: Json) -> bool:
    return any(text_of((choice.get("delta") or {}).get("content")) for choice in chunk["choices"])
