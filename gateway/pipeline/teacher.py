"""Step 5: call the teacher for the guidance that begins the answer.

Paper, section 2: guidance G = F(teacher, prompt), at most m tokens; the student then completes the prompt and G.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import orjson

from gateway.accounting.estimate import count_text
from gateway.accounting.receipt import BatchFacts
from gateway.accounting.shares import EngineCall, FailedCall
from gateway.accounting.worst_case import TEACHER_RETRIES, added_bytes
from gateway.batching.ticket import Ticket
from gateway.engines.base import CONTENT_FILTER
from gateway.engines.failures import REASONS, record_failure
from gateway.engines.refusal import CONTEXT_EXCEEDED
from gateway.engines.replies import unsupported
from gateway.errors import (
    EngineError,
    EngineOverloaded,
    EngineRejected,
    GatewayError,
    GuidanceUnavailable,
    InvalidRequest,
    PermitUnavailable,
    QueueFull,
    TicketUnreadable,
)
from gateway.guidance.keep import GrowingKeep
from gateway.pipeline.context_length import least_tokens, may_be_too_long
from gateway.pipeline.guidance_request import (
    TEACHER_FILTERED,
    UNGUIDED,
    Guidance,
    GuidanceStream,
    answered_call,
    build_teacher_request,
    guidance_from_reply,
    kept_of_tokens,
    teacher_input,
)
from gateway.pipeline.retries import RequestRetries
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from gateway.accounting.engine_set import EngineSet
    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.batching.batcher import Batcher
    from gateway.batching.single_flight import SingleFlight
    from gateway.batching.ticket import Grant
    from gateway.engines.base import Engine, TeacherReply, TeacherRequest
    from gateway.engines.retry_budget import RetryBudgets
    from gateway.pipeline.guidance_deadlines import GuidanceDeadlines
    from gateway.pipeline.student_warmup import StudentWarmup
    from gateway.policy.plan import GuidancePlan
    from gateway.protocol.requests import CompletionRequest
    from gateway.runtime.tasks import BackgroundTasks
    from gateway.telemetry.metrics import Metrics

# English has about four bytes per token. Batches are filled by this estimate; nothing is billed by it.
_BYTES_PER_TOKEN = 4
# Hashing a larger request takes milliseconds: it runs in a thread.
_INLINE_HASH_BYTES = 256_000


@dataclass(slots=True)
class TeacherCall:
    """Call teachers for guidance. Each call has a permit of the teacher's batch, and identical calls are made once."""

    batcher: Batcher
    flights: SingleFlight
    metrics: Metrics
    tasks: BackgroundTasks
    deadlines: GuidanceDeadlines
    budgets: RetryBudgets
    warmup: StudentWarmup | None = None  # None: students are not warmed

    async def stream(self, request: CompletionRequest, builder: ReceiptBuilder) -> AsyncGenerator[str | Guidance, None]:
        """Yield the guidance while it is generated: pieces that may be shown at once, then all of it.

        The complete text begins with the shown pieces. If the teacher fails after a piece was shown, the guidance is
        short. Raises the errors of `open`, but never after a piece.
        """
        guidance_plan = builder.plan.guidance
        if guidance_plan is None or not guidance_plan.stream:
            yield await self.open(request, builder)
            return
        skip = guidance_plan.projection.skip
        stream = GuidanceStream(
            GrowingKeep(skip, guidance_plan.tokens, boundary=guidance_plan.boundary, stop=request.stop),
            sends_lead=isinstance(request, TextRequest),
            sends_tokens=builder.engine_set.by_name[guidance_plan.teacher].state.sends_tokens,
        )
        # A separate task, so that the teacher's deadline does not cancel the caller's work on shown pieces.
        task = self.tasks.spawn("guidance", self._open_or_error(request, builder, stream))
        task.add_done_callback(lambda _: stream.pieces.put_nowait(""))
        try:
            while piece := await stream.pieces.get():
                yield piece
            result = task.result()
        finally:
            task.cancel()
        if isinstance(result, GatewayError):
            raise result
        yield result

    async def _open_or_error(
        self, request: CompletionRequest, builder: ReceiptBuilder, stream: GuidanceStream
    ) -> Guidance | GatewayError:
        try:
            return await self.open(request, builder, stream)
        except GatewayError as error:
            return error
        finally:
            stream.closed = True

    async def open(
        self, request: CompletionRequest, builder: ReceiptBuilder, stream: GuidanceStream | None = None
    ) -> Guidance:
        """Return the guidance. It is empty, with the reason in the builder, if the teacher did not deliver.

        Raises:
            GuidanceUnavailable: the teacher did not deliver, and the policy forbids unguided answers.
            InvalidRequest: the teacher rejected the request, and the policy forbids unguided answers, or its content
                filter refused the request.
            QueueFull: too many requests of the tenant wait, and the policy rejects requests then.
            StoreUnavailable: Redis is unavailable and the configuration says `reject`.
        """
        plan, guidance_plan = builder.plan, builder.plan.guidance
        if guidance_plan is None:
            builder.unguided = plan.unguided
            return UNGUIDED
        # One deadline for the caller's timer, the ticket, and the requests that share the call.
        deadline_s = self.deadlines.deadline_s(guidance_plan)
        deadline = asyncio.get_running_loop().time() + deadline_s
        try:
            limit = builder.engine_set.by_name[guidance_plan.teacher].state.max_prompt_tokens
            if may_be_too_long(request, limit):
                await _check_length(guidance_plan.teacher, request, builder.engine_set)
            async with asyncio.timeout_at(deadline):
                reply = await self._ask(guidance_plan, request, builder, deadline, deadline_s, stream)
        except TimeoutError:
            builder.guided = time.perf_counter()
            self._missed(guidance_plan, deadline_s, builder, stream)
            return self._without(guidance_plan, builder, "teacher_late", None, stream)
        except QueueFull as full:
            builder.guided = time.perf_counter()
            builder.unguided = full.label
            if guidance_plan.reject_when_full:
                raise
            return UNGUIDED
        except PermitUnavailable:
            builder.guided = time.perf_counter()
            return self._without(guidance_plan, builder, "teacher_no_permit", None)
        except TicketUnreadable as unreadable:
            builder.guided = time.perf_counter()
            return self._without(guidance_plan, builder, unreadable.label, None)
        except EngineError as error:
            builder.guided = time.perf_counter()
            if not error.may_have_run:
                builder.teacher = None
            filtered = isinstance(error, EngineRejected) and error.is_filtered
            reason = TEACHER_FILTERED if filtered else "teacher_" + error.label.removeprefix("engine_")
            return self._without(guidance_plan, builder, reason, error, stream)
        counter = _counter(guidance_plan.teacher, builder.engine_set)
        guidance = guidance_from_reply(plan, guidance_plan, request, builder, reply, stream, counter)
        return self._without(guidance_plan, builder, guidance, None) if isinstance(guidance, str) else guidance

    async def _ask(
        self,
        guidance_plan: GuidancePlan,
        request: CompletionRequest,
        builder: ReceiptBuilder,
        deadline: float,
        deadline_s: float,
        stream: GuidanceStream | None,
    ) -> TeacherReply:
        engine, plan = builder.engine_set.by_name[guidance_plan.teacher], builder.plan
        in_thread = request.size_bytes > _INLINE_HASH_BYTES
        teacher_request = build_teacher_request(guidance_plan, request)
        facts = (guidance_plan.share, engine, teacher_request, builder.id)
        dedupe_key = await asyncio.to_thread(_dedupe_key, *facts) if in_thread else _dedupe_key(*facts)
        prompt_bytes = request.size_bytes + added_bytes(guidance_plan.projection, request)
        ticket = Ticket(
            builder.id,
            tenant=guidance_plan.tenant,
            prompt_tokens=max(1, prompt_bytes // _BYTES_PER_TOKEN),
            max_wait_s=guidance_plan.max_wait_s,
            deadline_s=deadline_s,
            weight=guidance_plan.weight,
            dedupe_key=dedupe_key,
            cache_ttl_s=guidance_plan.cache_ttl_s,
        )

        warmup = self.warmup if guidance_plan.warm_student else None
        origin = None if warmup is None else copy_context()  # the call may run in another request's context
        warming: asyncio.Task[None] | None = None

        def granted(grant: Grant) -> None:
            nonlocal warming
            builder.granted = time.perf_counter()
            builder.batch = BatchFacts(grant.batch_id, grant.batch_size)
            max_tokens = guidance_plan.requested_tokens
            builder.running = builder.teacher = EngineCall(
                guidance_plan.teacher,
                teacher_input(teacher_request),
                lost_tokens=max_tokens,  # until the teacher answers, it is unknown how many of them it generated
                limit_tokens=max_tokens,
                role="guidance",
            )
            if warmup is not None and origin is not None:
                warming = origin.run(warmup.start, request, builder)

        async def ask(grant: Grant) -> TeacherReply:
            retries = min(TEACHER_RETRIES, plan.retries.num_retries)
            on_piece = stream.feed if stream is not None else None
            while True:
                try:
                    # The other half of the deadline is left for the call.
                    await engine.wait_for_trial(deadline_s / 2)
                    return await engine.generate_guidance(teacher_request, batch=grant.batch_id, on_text=on_piece)
                except EngineError as error:
                    # Count the failure here: many requests may share this call, or none any more.
                    record_failure(error, builder.id, self.metrics)
                    # A retry does not help an overloaded teacher, and the answer can do without guidance.
                    has_output = stream is not None and stream.tokens > 0
                    given_up = builder.caller_left or not retries or not error.retryable
                    if has_output or given_up or isinstance(error, EngineOverloaded):
                        raise
                    if not RequestRetries(builder, self.budgets, self.metrics).may_retry(error.engine):
                        raise
                    builder.failed.append(
                        FailedCall(error.engine, error.label, builder.teacher if error.may_have_run else None)
                    )
                    self.metrics.retries.labels(error.engine, error.label).inc()
                retries -= 1
                await asyncio.sleep(plan.retries.backoff_s * (0.5 + random.random() / 2))  # noqa: S311  spreads, hides nothing

        builder.guidance_requested = time.perf_counter()
        queue = self.batcher.queue(guidance_plan.teacher)
        try:
            flight = await self.flights.join(queue, ticket, ask, granted, deadline)
            if warmup is not None and warming is not None and not warming.done():
                warmup.outlasted(request, builder)
        finally:
            builder.running = None
            if warming is not None:
                warming.cancel()
        builder.guided, reply = time.perf_counter(), flight.reply
        if not flight.shared and builder.shadow_of is None:
            self.deadlines.arrived(
                builder.route,
                guidance_plan,
                builder.guided - builder.guidance_requested,
                builder.guided - (builder.granted or builder.guidance_requested),
                stopped=reply.finish == "stop" and bool(teacher_request.stop),
            )
        builder.teacher = answered_call(guidance_plan, teacher_request, reply, flight.shared)
        return reply

    def _missed(
        self, guidance_plan: GuidancePlan, deadline_s: float, builder: ReceiptBuilder, stream: GuidanceStream | None
    ) -> None:
        """Record late guidance. Set the hint, which names the setting to change, if it is often late."""
        if builder.guidance_requested is None or builder.guided is None or builder.shadow_of is not None:
            return  # no guidance was awaited
        builder.hint = self.deadlines.missed(
            builder.route,
            guidance_plan,
            deadline_s,
            builder.guided - builder.guidance_requested,
            stream.tokens if stream is not None else 0,
            called_s=builder.guided - builder.granted if builder.granted is not None else None,
        )

    @staticmethod
    def _without(
        guidance_plan: GuidancePlan,
        builder: ReceiptBuilder,
        reason: str,
        cause: EngineError | None,
        stream: GuidanceStream | None = None,
    ) -> Guidance:
        is_refused = reason == TEACHER_FILTERED and builder.plan.retries.is_filter_final
        if stream is not None and stream.shown:
            return _cut_short(guidance_plan, builder, reason, stream, CONTENT_FILTER if is_refused else None)
        builder.unguided = reason
        if isinstance(cause, EngineRejected) and (is_refused or (guidance_plan.required and cause.blames_request)):
            # An engine may quote its input, a part of which is not the caller's.
            quoted = bool(guidance_plan.projection.shown)
            message = "This route's teacher rejected the request." if quoted else cause.message
            code = cause.caller_code if not quoted or cause.caller_code in REASONS else None
            raise InvalidRequest(message, code=code) from cause
        if is_refused:
            raise InvalidRequest("The content filter of this route's teacher refused the request.", code=CONTENT_FILTER)
        if guidance_plan.required:
            raise GuidanceUnavailable(
                f"The teacher gave no guidance ({reason}), and this route's policy forbids unguided answers.",
                retry_after_s=(cause.retry_after_s if cause is not None else None) or 1.0,
            ) from cause
        return UNGUIDED


async def _check_length(teacher: str, request: CompletionRequest, engines: EngineSet) -> None:
    """Raise EngineUnsupported if the teacher would reject the prompt as too long."""
    limit = engines.by_name[teacher].state.max_prompt_tokens
    if limit is not None and await least_tokens(request, limit, engines.encodings.get(teacher)) > limit:
        error = unsupported(teacher, f"has a context of {limit} tokens, and the prompt has more.", status=400)
        error.engine_code = CONTEXT_EXCEEDED
        raise error


def _counter(teacher: str, engines: EngineSet) -> Callable[[str], int] | None:
    """Return a function that counts tokens with the teacher's own tokenizer; None: config.yaml names none."""
    encoding = engines.encodings.get(teacher)
    return partial(count_text, encoding.name) if encoding is not None and encoding.own else None


def _cut_short(
    guidance_plan: GuidancePlan,
    builder: ReceiptBuilder,
    reason: str,
    stream: GuidanceStream,
    finish_reason: str | None,
) -> Guidance:
    """Return the guidance that was shown before the teacher failed.

    The student continues from there, unless `finish_reason` ends the answer.
    """
    text, max_tokens = stream.text.getvalue(), builder.plan.max_tokens
    tokens = kept_of_tokens(text, stream.ends, stream.shown)
    if builder.teacher is not None:
        builder.teacher.text.write(text)
        builder.teacher.lost_tokens = max(0, guidance_plan.requested_tokens - stream.tokens)
    builder.kept_tokens, builder.kept_estimated = tokens, not stream.sends_tokens
    builder.guidance_text, builder.cut_short = stream.shown, reason
    # A student cannot be called for zero tokens.
    if finish_reason is None and max_tokens is not None and tokens >= max_tokens:
        finish_reason = "length"
    return Guidance(stream.shown, stream.lead, tokens=tokens, finish_reason=finish_reason)


def _dedupe_key(share: str, engine: Engine, teacher_request: TeacherRequest, request_id: str) -> str:
    """Return a hash of everything that the guidance depends on, and of the group that may share it."""
    parts: tuple[object, ...] = (
        share,
        engine.name,
        engine.state.revision or request_id,  # an unknown revision: the guidance is not shared
        engine.state.address,  # models of different servers may have the same revision
        teacher_request.messages,
        teacher_request.prompt,
        teacher_request.max_tokens,
        teacher_request.temperature,
        teacher_request.top_p,
        teacher_request.seed,
        teacher_request.stop,
    )
    if teacher_request.constraints is not None:
        parts = (*parts, teacher_request.constraints)
    return hashlib.blake2b(orjson.dumps(parts), digest_size=16).hexdigest()
