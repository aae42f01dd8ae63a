"""Step 6: call a student to complete the answer. In mode teacher, the teacher takes this role.

The caller's body is sent unchanged except for the plan's changes. Paper, section 2: the student continues the prompt
and the guidance, with the user's own sampling settings. The policy places the guidance at the beginning of the answer
(placement prefix) or in the prompt (context, input). A call that fails before its first text was sent is retried, by
the same engine or the next. The guidance is kept.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.accounting.shares import EngineCall
from gateway.capabilities.continuation import Prefill
from gateway.capabilities.reasoning import ReasoningFilter, without_reasoning
from gateway.engines.failures import record_failure
from gateway.engines.retry_budget import RetryBudgets
from gateway.errors import EngineError, EngineRejected
from gateway.guidance.projection import place_before_prompt, place_behind_prompt, place_in_context, place_in_input
from gateway.guidance.seam import SeamJoin
from gateway.pipeline.generation import GenerationTracker
from gateway.pipeline.guidance_request import UNGUIDED
from gateway.pipeline.prefill_echo import prefill_echo
from gateway.pipeline.retries import RequestRetries, Retries, retry_or_raise
from gateway.pipeline.stream import join_reply
from gateway.pipeline.student_stream import StudentStream
from gateway.policy.plan import EngineSnapshot
from gateway.protocol.messages import text_of
from gateway.protocol.text import TextRequest
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from types import TracebackType

    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.capabilities.continuation import Continuation
    from gateway.engines.guard import GuardedEngine
    from gateway.pipeline.guidance_request import Guidance
    from gateway.pipeline.stream import StreamRelay
    from gateway.policy.plan import GuidancePlan, Plan, StudentPlan
    from gateway.protocol.body import Json
    from gateway.protocol.content_run import ChunkGroup
    from gateway.protocol.requests import CompletionRequest
    from gateway.telemetry.metrics import Metrics

RESTARTED = "student_started_anew"
"""The `unguided` reason of an answer whose student was to begin with the guidance and began differently."""
# Engines prefer one or the other. With both, an engine could exceed the reserved tokens.
_LIMITS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class StudentCall:
    """Call the engines that complete answers."""

    engines: Mapping[str, GuardedEngine]
    metrics: Metrics
    budgets: RetryBudgets = field(default_factory=RetryBudgets)

    def engine_snapshot(self, engine: str, tenant: str = "") -> EngineSnapshot:
        """Return the current state of an engine for a tenant."""
        guarded, state = self.engines[engine], self.engines[engine].state
        cooldown = guarded.in_cooldown_for(tenant)
        return EngineSnapshot(state.continuation, cooldown, state.reasoning, takes_prompts=state.takes_prompts)

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
        """
        plan = builder.plan
        student, retries = plan.students[0], None
        while True:
            try:
                reply = await self._complete(student, request, guidance, builder)
                break
            except EngineError as error:
                retries = retries or self._new_retries(builder)
                placed = _continuation(plan, student, guidance) is not None
                if placed and isinstance(error, EngineRejected) and error.blames_request:
                    builder.record_failure(error)
                    builder.drop_guidance("student_refused_prefix")
                    guidance = UNGUIDED
                else:
                    await retry_or_raise(retries, error, builder, self.metrics, placed=placed)
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
        self, student: StudentPlan, request: CompletionRequest, guidance: Guidance, builder: ReceiptBuilder
    ) -> Json:
        student_request = build_student_request(builder.plan, student, request, guidance)
        generation = self._begin(student, request, guidance, builder, student_request)
        with _Calling(builder, generation, self.metrics):
            reply = await self.engines[student.engine].complete(student_request.body, student_request.prefill)
            generation.read_reply(reply)
            if (echo := prefill_echo(student, request, stream=False)) is not None:
                echo.reply(reply)
        return reply

    async def stream(
        self, request: CompletionRequest, guidance: Guidance, relay: StreamRelay, builder: ReceiptBuilder
    ) -> AsyncGenerator[ChunkGroup, None]:
        """Yield the guidance and a student's chunks, converted by `relay`. Chunks that arrived together form one group.

        Once guidance was sent, the answer cannot do without it: only students that can continue it are called. Raises
        EngineErrors and InvalidRequest.
        """
        retries = self._new_retries(builder)
        while True:
            student = retries.student
            seam_join, reasoning_filter = build_seam(builder.plan, student, request, guidance)
            if opened := relay.join(seam_join, reasoning_filter):
                builder.mark_first_token()
                yield opened
            if relay.has_sent_guidance:
                retries.keep_only(lambda one: one.continuation is not None and not one.continuation.writes_again)
            has_output = False
            try:
                stream, generation, student_request = self._begin_stream(student, request, guidance, relay, builder)
                engine_stream = self.engines[student.engine].stream
                with _Calling(builder, generation, self.metrics):
                    async with aclosing(engine_stream(student_request.body, student_request.prefill)) as groups:
                        async for chunks in groups:
                            if relayed := stream.read(chunks):
                                has_output = True
                                yield relayed
                            if stream.done:
                                return
                    generation.finish()
                return
            except EngineError as error:
                if has_output:
                    raise
                await retry_or_raise(retries, error, builder, self.metrics, placed=seam_join is not None)

    def _begin_stream(
        self,
        student: StudentPlan,
        request: CompletionRequest,
        guidance: Guidance,
        relay: StreamRelay,
        builder: ReceiptBuilder,
    ) -> tuple[StudentStream, GenerationTracker, StudentRequest]:
        """Record a streamed call that starts now. Return the reader of its chunks."""
        student_request = build_student_request(builder.plan, student, request, guidance)
        # The receipt needs usage even if the caller does not.
        student_request.body["stream_options"] = {**(request.body.get("stream_options") or {}), "include_usage": True}
        generation = self._begin(student, request, guidance, builder, student_request)
        echo = prefill_echo(student, request, stream=True)
        return StudentStream(generation, echo, relay, builder), generation, student_request

    def _begin(
        self,
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
        builder.set_answer_call(call)
        if builder.kept_tokens:
            continuation, plan = _continuation(builder.plan, student, guidance), builder.plan.guidance
            in_prompt = "input" if plan is not None and plan.placement == "input" else "context"
            builder.placed = in_prompt if continuation is None else "prefix"
            builder.rewritten = continuation is not None and continuation.writes_again
        return GenerationTracker(
            call,
            limit=student_request.body.get(request.limit_field),
            choices=request.choices,
            generated_choices=request.generated_choices,
            stops_within_s=self.engines[student.engine].state.stops_within_s,
            preface=_preface(student, request, student_request),
            now=time.perf_counter(),
        )

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


def _preface(student: StudentPlan, request: CompletionRequest, student_request: StudentRequest) -> str | None:
    """Return text that the engine may repeat before its own; None: it repeats text of unknown length."""
    echo = bool(request.body.get("echo"))
    if isinstance(request, TextRequest):
        return None if echo else ""
    if student_request.prefill is not None:
        return student_request.prefill.text if student.continuation is None or student.continuation.echo or echo else ""
    last = request.messages[-1]  # some engines repeat a caller's prefill
    return text_of(last.get("content")) or "" if last["role"] == "assistant" else ""


class StudentRequest(Record, frozen=True):
    """The request to one student."""

    body: Json  # the caller's body with the plan's changes
    prefill: Prefill | None  # the beginning of the answer that the student continues; None: none, or a raw prompt
    reads: Sequence[Json]  # the student's input as messages, for the gateway's own token count


def _continuation(plan: Plan, student: StudentPlan, guidance: Guidance) -> Continuation | None:
    """Return how the student continues the guidance. None: it gets the guidance, if any, in its prompt."""
    if not guidance.text or guidance.finish_reason is not None:
        return None
    return student.continuation if plan.guidance is not None and plan.guidance.placement == "prefix" else None


def build_student_request(
    plan: Plan, student: StudentPlan, request: CompletionRequest, guidance: Guidance
) -> StudentRequest:
    """Return the caller's request as this student gets it."""
    body = {**request.body}
    continuation = _continuation(plan, student, guidance)
    if plan.max_tokens is not None:
        # A student that writes the guidance again needs tokens for it.
        written = guidance.tokens if continuation is not None and not continuation.writes_again else 0
        for name in _LIMITS:
            if body.get(name) is not None:
                del body[name]
        body[request.limit_field] = plan.max_tokens - written
    if isinstance(request, TextRequest):
        if request.prompt is not None and guidance.text:
            body["prompt"] = _prompt(plan, request.prompt, guidance.text, prefix=continuation is not None)
        return StudentRequest(body, None, [{"role": "user", "content": _texts(body["prompt"])}])
    if continuation is not None:
        prefill = Prefill(guidance.text, continuation)
        reads = [*request.messages, {"role": "assistant", "content": guidance.text}]
        return StudentRequest(without_reasoning(student.reasoning, body), prefill, reads)
    if guidance.text and plan.guidance is not None:
        body["messages"] = place_in_messages(plan.guidance, request.messages, guidance.text)
    return StudentRequest(body, None, body["messages"])


def place_in_messages(guidance_plan: GuidancePlan, messages: list[Json], guidance: str) -> list[Json]:
    """Return the caller's messages with the guidance as the policy places it. The student does not continue it."""
    if guidance_plan.placement == "input":
        return place_in_input(messages, guidance)
    return place_in_context(guidance_plan.projection, messages, guidance)


def build_seam(
    plan: Plan, student: StudentPlan, request: CompletionRequest, guidance: Guidance
) -> tuple[SeamJoin | None, ReasoningFilter | None]:
    """Return the join of shown guidance and the student's text; None if the student does not continue the guidance.

    The second value is the filter for reasoning that a student generates although it was disabled; None: it cannot.
    """
    if (continuation := _continuation(plan, student, guidance)) is None:
        return None, None
    reasoning_filter = None if student.reasoning == "none" else ReasoningFilter(guidance.text)
    seam_join = SeamJoin(
        guidance.text,
        pending_space=guidance.pending_space,
        # vLLM and llama.cpp repeat the guidance if the caller sets `echo`, whatever their default is.
        echo=request.body.get("echo") is True or continuation.echo,
        strips_leading_space=continuation.strips_leading_space,
        written_again=continuation.writes_again,
        stop=request.stop,
    )
    return seam_join, reasoning_filter


def _prompt(plan: Plan, prompt: str, guidance: str, *, prefix: bool) -> str:
    if prefix or plan.guidance is None:
        return prompt + guidance
    if plan.guidance.placement == "input":
        return place_behind_prompt(prompt, guidance)
    return place_before_prompt(plan.guidance.projection, prompt, guidance)


def _texts(prompt: str | list[object]) -> str | list[Json]:
    """Return prompts as a message's content. Token ids are not counted: an engine that accepts them counts them."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt[0], str):
        return []
    return [{"type": "text", "text": text} for text in prompt]
