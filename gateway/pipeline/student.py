"""Step 6: call a student to complete the answer. In mode teacher, the teacher takes this role.

The caller's body is sent unchanged except for the plan's changes. Paper, section 2: the student continues the prompt
and the guidance, with the user's own sampling settings. The policy places the guidance at the beginning of the answer
(placement prefix) or in the prompt (context, input). A call that fails before its first text was sent is retried, by
the same engine or the next. The guidance is kept. A stream that breaks later is continued by the next engine
(`broken_answer.py`).
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.accounting.shares import EngineCall
from gateway.accounting.worst_case import added_bytes
from gateway.engines.base import is_same_model
from gateway.engines.failures import record_failure
from gateway.engines.retry_budget import RetryBudgets
from gateway.errors import EngineError, EngineRejected
from gateway.pipeline.broken_answer import DEFAULT_ENCODING, BrokenAnswer, may_continue, sent_text, written_tokens
from gateway.pipeline.generation import GenerationTracker
from gateway.pipeline.guidance_request import UNGUIDED
from gateway.pipeline.prefill_echo import prefill_echo
from gateway.pipeline.request_deadline import RequestDeadline, left_s, within
from gateway.pipeline.retries import RequestRetries, Retries, retry_or_raise
from gateway.pipeline.stream import join_reply
from gateway.pipeline.student_request import (
    build_seam,
    build_student_request,
    continuation_of,
    text_before,
    tokens_before,
)
from gateway.pipeline.student_stream import StudentStream
from gateway.policy.plan import EngineSnapshot

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from types import TracebackType

    from gateway.accounting.estimate import Encoding
    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.engines.guard import GuardedEngine
    from gateway.pipeline.guidance_request import Guidance
    from gateway.pipeline.stream import StreamRelay
    from gateway.pipeline.student_request import StudentRequest
    from gateway.policy.plan import StudentPlan
    from gateway.protocol.body import Json
    from gateway.protocol.content_run import ChunkGroup
    from gateway.protocol.requests import CompletionRequest
    from gateway.telemetry.metrics import Metrics

RESTARTED = "student_started_anew"
"""The `unguided` reason of an answer whose student was to begin with the guidance and began differently."""

# The caller's fields that change the prompt of the student, which the teacher does not get.
_TEMPLATE_FIELDS = frozenset({
    "chat_template_kwargs", "extra_body", "nvext", "add_special_tokens", "reasoning", "reasoning_effort", "thinking",
    "enable_thinking", "think",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class StudentCall:
    """Call the engines that complete answers."""

    engines: Mapping[str, GuardedEngine]
    metrics: Metrics
    budgets: RetryBudgets = field(default_factory=RetryBudgets)
    encodings: Mapping[str, Encoding] = field(default_factory=dict)  # the tokenizer, by model

    def engine_snapshot(self, engine: str, tenant: str = "") -> EngineSnapshot:
        """Return the current state of an engine for a tenant."""
        guarded, state = self.engines[engine], self.engines[engine].state
        cooldown = guarded.in_cooldown_for(tenant)
        return EngineSnapshot(
            state.continuation,
            cooldown,
            state.reasoning,
            state.takes_prompts,
            state.revision,
            state.tokenizer,
            state.constraints,
        )

    def check_available(self, builder: ReceiptBuilder) -> None:
        """Raise CircuitOpen if the request has a guidance plan and every student rejects the tenant's calls now."""
        if builder.plan.guidance is None:
            return
        refusals = []
        for student in builder.plan.students:
            if (refusal := self.engines[student.engine].refusal(builder.tenant)) is None:
                return
            refusals.append(refusal)
        for refusal in refusals:
            record_failure(refusal, builder.id, self.metrics)
        if refusals:
            raise min(refusals, key=lambda one: one.retry_after_s or 0.0)

    async def complete(self, request: CompletionRequest, guidance: Guidance, builder: ReceiptBuilder) -> Json:
        """Return a student's reply, with shown guidance in front. Raises EngineErrors and InvalidRequest.

        If a student rejects the request with the prefix, which the caller did not send, it gets the request without it.
        A content filter would reject that, too. A request that is too long goes to a larger student first.
        """
        plan = builder.plan
        student, retries = plan.students[0], None
        deadline: RequestDeadline | None = None  # set once a call failed
        while True:
            try:
                reply = await self._complete(student, request, guidance, builder, deadline)
                break
            except EngineError as error:
                retries = retries or self._new_retries(builder)
                deadline = deadline or RequestDeadline.of(builder, self.engines)
                placed = continuation_of(plan, student, guidance) is not None
                larger = self._keep_larger(retries, error)
                if (
                    placed
                    and isinstance(error, EngineRejected)
                    and error.blames_request
                    and not (larger or error.is_filtered)
                ):
                    builder.record_failure(error)
                    builder.drop_guidance("student_refused_prefix")
                    guidance = UNGUIDED
                else:
                    await retry_or_raise(retries, error, builder, self.metrics, deadline, placed=placed)
                    student = retries.student
        if not guidance.text:
            return reply
        seam_join, reasoning_filter = build_seam(plan, student, request, guidance)
        if seam_join is not None:
            join_reply(reply, seam_join, reasoning_filter)
            if seam_join.restarted:
                builder.drop_guidance(RESTARTED)
        return reply

    async def _complete(
        self,
        student: StudentPlan,
        request: CompletionRequest,
        guidance: Guidance,
        builder: ReceiptBuilder,
        deadline: RequestDeadline | None,
    ) -> Json:
        if (engine := self.engines[student.engine]).is_full:
            await engine.wait_for_slot(left_s(deadline))
        student_request = build_student_request(builder.plan, student, request, guidance)
        generation = self._begin(student, request, guidance, builder, student_request)
        with _Calling(builder, generation, self.metrics):
            called = engine.complete(student_request.body, student_request.prefill)
            reply = await (called if deadline is None else deadline.bound(engine.name, called))
            generation.read_reply(reply)
            if (echo := prefill_echo(student, request, stream=False)) is not None:
                echo.reply(reply)
        return reply

    async def stream(
        self, request: CompletionRequest, guidance: Guidance, relay: StreamRelay, builder: ReceiptBuilder
    ) -> AsyncGenerator[ChunkGroup, None]:
        """Yield the guidance and a student's chunks, converted by `relay`. Chunks that arrived together form one group.

        Once text was sent, the answer cannot do without it: only students that can continue it are called. Raises
        EngineErrors and InvalidRequest.
        """
        retries = self._new_retries(builder)
        broken: BrokenAnswer | None = None  # the answer so far, after a call that failed within it
        deadline: RequestDeadline | None = None  # set once a call failed
        while True:
            student = retries.student
            seam_join, reasoning_filter = build_seam(builder.plan, student, request, guidance, broken)
            if builder.plan.names_engine:
                relay.name_model(student.engine)
            if broken is not None:
                relay.resume(seam_join, reasoning_filter, len(broken.sent))
            elif opened := relay.join(seam_join, reasoning_filter):
                builder.mark_first_token()
                yield opened
            if relay.has_sent_guidance:
                retries.keep_only(lambda one: one.continuation is not None and not one.continuation.writes_again)
            has_output = False
            try:
                if (engine := self.engines[student.engine]).is_full:
                    await engine.wait_for_slot(left_s(deadline))
                stream, generation, student_request = self._begin_stream(
                    student, request, guidance, relay, builder, broken
                )
                called = engine.stream(student_request.body, student_request.prefill)
                with _Calling(builder, generation, self.metrics):
                    async with aclosing(within(deadline, engine.name, called)) as groups:
                        async for chunks in groups:
                            if relayed := stream.read(chunks):
                                has_output = True
                                yield relayed
                            if stream.done:
                                break
                        else:
                            generation.finish()
                self._count_continued(broken, student, "ok")
                return
            except EngineError as error:
                deadline = deadline or RequestDeadline.of(builder, self.engines)
                self._count_continued(broken, student, "failed")
                self._keep_larger(retries, error)
                if has_output:
                    broken = await self._break(
                        error, retries, request, guidance, relay, builder, generation, broken, deadline
                    )
                else:
                    await retry_or_raise(retries, error, builder, self.metrics, deadline, placed=seam_join is not None)

    def _keep_larger(self, retries: Retries, error: EngineError) -> bool:
        """Drop students that cannot read a request which was too long. Return whether another student may read it."""
        if not isinstance(error, EngineRejected) or not error.exceeds_context:
            return False
        too_small = self.engines[error.engine].state.context_tokens

        def is_larger(one: StudentPlan) -> bool:
            context_tokens = self.engines[one.engine].state.context_tokens
            return context_tokens is None or too_small is None or context_tokens > too_small

        return retries.keep_only(is_larger)

    def _count_continued(self, broken: BrokenAnswer | None, student: StudentPlan, outcome: str) -> None:
        if broken is not None:
            self.metrics.streams_continued.labels(student.engine, outcome).inc()

    async def _break(
        self,
        error: EngineError,
        retries: Retries,
        request: CompletionRequest,
        guidance: Guidance,
        relay: StreamRelay,
        builder: ReceiptBuilder,
        generation: GenerationTracker,
        broken: BrokenAnswer | None,
        deadline: RequestDeadline,
    ) -> BrokenAnswer:
        """Return the answer so far when the next call is due. Raise the error if no engine can continue the answer.

        `broken` is the answer so far before the failed call.
        """
        plan, student = builder.plan, retries.student
        if builder.caller_left or deadline.left_s <= 0 or not may_continue(request, relay, error):
            raise error
        seam, reasoning_filter = build_seam(plan, student, request, guidance, broken)
        if broken is None:
            first = seam.initial_text if seam is not None else ""
            in_prompt = bool(guidance.text) and seam is None
            broken = BrokenAnswer(first, tokens_before(plan, student, guidance), in_prompt)
        if (sent := sent_text(broken.sent, generation.text, seam, reasoning_filter)) is None:
            raise error
        tokens = await written_tokens(generation, self.encodings.get(student.engine, DEFAULT_ENCODING))
        longer = broken.longer(sent, tokens, request)
        if plan.max_tokens is not None and longer.max_tokens >= plan.max_tokens:
            raise error

        def can_continue(one: StudentPlan) -> bool:
            return longer.suits(one) and self.engines[one.engine].refusal(builder.tenant) is None

        if (pause_s := retries.continuation_pause_s(error, can_continue)) is None:
            raise error
        if relay.restarted:
            builder.drop_guidance(RESTARTED)
        builder.continue_answer(tokens.likely, generation.input_tokens)
        builder.record_failure(error)
        self.metrics.retries.labels(student.engine, error.label).inc()
        await asyncio.sleep(pause_s)
        return longer

    def _begin_stream(
        self,
        student: StudentPlan,
        request: CompletionRequest,
        guidance: Guidance,
        relay: StreamRelay,
        builder: ReceiptBuilder,
        broken: BrokenAnswer | None,
    ) -> tuple[StudentStream, GenerationTracker, StudentRequest]:
        """Record a streamed call that starts now. Return the reader of its chunks."""
        student_request = build_student_request(builder.plan, student, request, guidance, broken)
        # The receipt needs usage even if the caller does not.
        options = {**(request.body.get("stream_options") or {}), "include_usage": True}
        joined = broken is not None or (guidance.text and request.stop)
        if joined and self.engines[student.engine].state.counts_chunks:
            options["continuous_usage_stats"] = True  # a stop string across the seam ends the call before its usage
        student_request.body["stream_options"] = options
        generation = self._begin(student, request, guidance, builder, student_request, broken)
        echo = prefill_echo(student, request, stream=True)
        return StudentStream(generation, echo, relay, builder), generation, student_request

    def _begin(
        self,
        student: StudentPlan,
        request: CompletionRequest,
        guidance: Guidance,
        builder: ReceiptBuilder,
        student_request: StudentRequest,
        broken: BrokenAnswer | None = None,
    ) -> GenerationTracker:
        """Record the call that starts now. Raises ConnectionResetError if the caller disconnected meanwhile."""
        if builder.caller_left:
            raise ConnectionResetError("The caller disconnected.")
        builder.running = call = EngineCall(student.engine, student_request.reads)
        builder.set_answer_call(call)
        if broken is not None:
            call.prefix_bytes = len(broken.text.encode("utf-8", "replace"))
        elif builder.kept_tokens:
            continuation, plan = continuation_of(builder.plan, student, guidance), builder.plan.guidance
            in_prompt = "input" if plan is not None and plan.placement == "input" else "context"
            builder.placed = in_prompt if continuation is None else "prefix"
            builder.rewritten = continuation is not None and continuation.writes_again
            builder.same_prompt = builder.placed == "prefix" and self._read_same(student, request, builder)
        return GenerationTracker(
            call,
            limit=student_request.body.get(request.limit_field),
            choices=request.choices,
            generated_choices=request.generated_choices,
            stops_within_s=self.engines[student.engine].state.stops_within_s,
            preface=text_before(student, request, student_request),
            now=time.perf_counter(),
        )

    def _read_same(self, student: StudentPlan, request: CompletionRequest, builder: ReceiptBuilder) -> bool:
        """Return whether one model reads the caller's prompt, as the teacher and before the guidance as the student."""
        plan = builder.plan.guidance
        if plan is None or builder.rewritten or added_bytes(plan.projection, request):
            return False
        if not _TEMPLATE_FIELDS.isdisjoint(request.body):
            return False
        teacher = self.engines.get(plan.teacher)
        return teacher is not None and is_same_model(teacher, self.engines[student.engine])

    def _new_retries(self, builder: ReceiptBuilder) -> Retries:
        request_retries = RequestRetries(builder, self.budgets, self.metrics)
        return Retries(builder.plan.students, builder.plan.retries, request_retries)


class _Calling:
    """The context of a student's call. It counts a failure, and removes a call that the engine did not receive."""

    __slots__ = ("_builder", "_generation", "_metrics")

    def __init__(self, builder: ReceiptBuilder, generation: GenerationTracker, metrics: Metrics) -> None:
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
                self._builder.set_answer_call(None)
        self._builder.running = None
        self._generation.close(time.perf_counter())
        if self._builder.kept_estimated:
            self._builder.settle_kept_tokens()
