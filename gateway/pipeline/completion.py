"""The path of one completion (chat or raw prompt): from a checked request to its answer and its receipt.

`answer` and `stream` perform the same steps. They differ in how the student is called and in when output is sent. Each
request settles exactly one receipt, however it ends (`Admission.settled`).
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import msgspec

from gateway.accounting.receipt_builder import ReceiptBuilder
from gateway.accounting.verdict import Allowance
from gateway.accounting.worst_case import caller_tokens
from gateway.pipeline.context_length import drop_too_small, fitting_limit, may_be_too_small
from gateway.pipeline.guidance_request import UNGUIDED
from gateway.pipeline.quality_sampler import AnswerBuffer
from gateway.pipeline.stream import StreamRelay
from gateway.pipeline.student_engines import RESTARTED
from gateway.policy.caller_fields import check_caller_fields
from gateway.policy.resolve import resolve
from gateway.policy.routing import find_route, first_route
from gateway.protocol.content_run import each_chunk
from gateway.protocol.reply import ReplyHead, TextReplyHead, engine_fields, usage_body
from gateway.protocol.tags import tags_of
from gateway.protocol.text import TextRequest
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Mapping

    from gateway.accounting.engine_set import EngineSet
    from gateway.accounting.labels import Labeler
    from gateway.accounting.ledger import Ledger
    from gateway.accounting.receipt import Receipt
    from gateway.pipeline.admission import Admission
    from gateway.pipeline.guidance_request import Guidance
    from gateway.pipeline.quality_sampler import QualitySampler
    from gateway.pipeline.request_collector import RequestCollector
    from gateway.pipeline.shadow import ShadowRequests
    from gateway.pipeline.student import StudentCall
    from gateway.pipeline.teacher import TeacherCall
    from gateway.pipeline.token_count import TokenCounter
    from gateway.policy.book import Caller
    from gateway.policy.guidance_off import GuidanceSwitches
    from gateway.policy.plan import Plan
    from gateway.policy.routing import RouteOverride
    from gateway.protocol.body import Json
    from gateway.protocol.content_run import ChunkGroup
    from gateway.protocol.requests import AnyRequest, CompletionRequest


@dataclass(slots=True)
class RequestState:
    """State of a request that a disconnect handler reads at any time."""

    builder: ReceiptBuilder | None = None  # None until the plan is resolved

    @property
    def abandoned(self) -> bool:
        """Return whether the caller disconnected and the request continued without it."""
        return self.builder is not None and self.builder.caller_left


class LoopSteps(Protocol):
    """The steps of one request in the event loop; see LoopScheduler.enter."""

    def next_step(self) -> Awaitable[None] | None: ...


class RequestContext(Record, frozen=True):
    """The caller of a request, its start time, and what its answer depends on besides the body."""

    id: str
    caller: Caller
    created: int  # Unix seconds
    started: float  # time.perf_counter() seconds
    headers: Mapping[str, str]  # a route may select by them
    engine_set: EngineSet  # the engines of config.yaml, as they were when the caller was authenticated
    allowance: Allowance = msgspec.field(default_factory=Allowance)  # the caller's remaining limits, after admission
    route_override: RouteOverride | None = None  # an operator's choice, instead of the caller's headers
    state: RequestState = msgspec.field(default_factory=RequestState)
    labeler: Labeler | None = None  # of labels; None: the request has none
    steps: LoopSteps | None = None  # divides the event loop's time between tenants; None: the time is not divided

    def next_step(self) -> Awaitable[None] | None:
        """Request the tenant's turn in the event loop, before a longer computation that follows a wait.

        Return None if the turn is now, else an awaitable to await first.
        """
        return None if self.steps is None else self.steps.next_step()

    def new_receipt(self, plan: Plan, route: str, request: AnyRequest, *, stream: bool) -> ReceiptBuilder:
        """Create the request's receipt builder, and keep it in `state`. Raises InvalidRequest for invalid tags
        and labels, and for fields that the policy does not allow."""
        check_caller_fields(self.caller.policy.caller_fields, request)
        self.state.builder = builder = ReceiptBuilder(
            id=self.id,
            created=self.created,
            tenant=self.caller.policy.tenant,
            key=self.caller.key.id,
            route=route,
            stream=stream,
            started=self.started,
            plan=plan,
            engine_set=self.engine_set,
            allowance=self.allowance,
            tags=tags_of(self.headers, request.tags),
            labels={} if self.labeler is None else self.labeler.of_request(self.caller, self.headers, request),
        )
        return builder


class Answer(Record, frozen=True):
    """A complete answer for a JSON caller, with its receipt."""

    body: Json
    receipt: Receipt
    show_cost: bool


@dataclass(frozen=True, slots=True)
class Completions:
    """Answer completion requests with the given components."""

    teacher_call: TeacherCall
    student_call: StudentCall
    shadows: ShadowRequests
    quality_sampler: QualitySampler
    collector: RequestCollector
    admission: Admission
    ledger: Ledger
    switches: GuidanceSwitches
    counter: TokenCounter

    async def answer(self, context: RequestContext, request: CompletionRequest) -> Answer:
        """Answer a JSON caller. Raises GatewayErrors."""
        builder = await self._new_builder(context, request)
        head = _head(context, request)
        with self.admission.slot(context.caller), self.admission.settled(builder):
            await self.admission.reserve(builder, request, context.caller)
            if (step := context.next_step()) is not None:
                await step
            students = self.student_call
            if may_be_too_small(request, builder):
                await drop_too_small(request, builder)
            students.check_available(builder)
            guidance = UNGUIDED
            if builder.plan.guidance is None:
                builder.unguided = builder.plan.unguided
            else:
                guidance = await self.teacher_call.open(request, builder)
            if guidance.finish_reason is not None:
                reply = _whole_reply(guidance)
            else:
                reply = await students.complete(request, guidance, builder)
                if (step := context.next_step()) is not None:
                    await step
            builder.finish_reason = _finish_reason(reply["choices"])
            plan = builder.plan
            receipt = await self.ledger.close(builder, shown=plan.show_cost)
            if plan.names_engine:
                head = msgspec.structs.replace(head, model=builder.answering_engine)
            body = head.completion(reply["choices"], _caller_usage(request, builder, receipt)) | engine_fields(reply)
            if builder.content is not None:
                builder.content.add([body])
            answer_buffer = AnswerBuffer() if plan.quality is not None else None
            if answer_buffer is not None:
                answer_buffer.add([body])
            self._start_background_work(builder, request, context.caller, answer_buffer)
            return Answer(body, receipt, plan.show_cost)

    async def stream(
        self, context: RequestContext, request: CompletionRequest, relay_of: type[StreamRelay] = StreamRelay
    ) -> AsyncGenerator[ReceiptBuilder | ChunkGroup, None]:
        """Answer an SSE caller.

        Yield the receipt builder first, once the reply's headers are known, then groups of chunks. An error raised
        before the first yield can still become an HTTP status. A later error cannot. `relay_of` creates the object that
        converts the engines' chunks to the caller's.
        """
        builder = await self._new_builder(context, request)
        head = _head(context, request)
        with self.admission.slot(context.caller), self.admission.settled(builder):
            await self.admission.reserve(builder, request, context.caller)
            if (step := context.next_step()) is not None:
                await step
            relay, plan = relay_of(head, wants_usage=request.wants_usage), builder.plan
            answer_buffer = AnswerBuffer() if plan.quality is not None else None
            announced = False
            async with aclosing(self._chunks(request, relay, builder)) as groups:
                async for chunks in groups:
                    if not announced:
                        yield builder
                        announced = True
                    if builder.content is not None:
                        builder.content.add(each_chunk(chunks))
                    if answer_buffer is not None:
                        answer_buffer.add(each_chunk(chunks))
                    yield chunks
            builder.finish_reason = relay.finish_reason
            if request.wants_usage:
                receipt = await self.ledger.close(builder, shown=plan.show_cost)
                facts = receipt.facts(show_cost=plan.show_cost)
                yield [relay.usage_chunk(_caller_usage(request, builder, receipt), facts)]
            self._start_background_work(builder, request, context.caller, answer_buffer)

    async def _chunks(
        self, request: CompletionRequest, relay: StreamRelay, builder: ReceiptBuilder
    ) -> AsyncGenerator[ChunkGroup, None]:
        """Yield groups of chunks that arrived together: the guidance, the student's text and the end."""
        guidance, students = UNGUIDED, self.student_call
        if may_be_too_small(request, builder):
            await drop_too_small(request, builder)
        students.check_available(builder)
        if builder.plan.names_engine:
            relay.name_model(builder.plan.student)
        async with aclosing(self.teacher_call.stream(request, builder)) as pieces:
            async for piece in pieces:
                if isinstance(piece, str):
                    builder.mark_first_token()
                    yield relay.show(piece)
                else:
                    guidance = piece
        try:
            if guidance.finish_reason is None:
                async with aclosing(students.stream(request, guidance, relay, builder)) as groups:
                    async for chunks in groups:
                        yield chunks
            else:
                if builder.plan.names_engine:
                    relay.name_model(builder.answering_engine)
                if rest := relay.show_rest(guidance.lead + guidance.text):
                    builder.mark_first_token()
                    yield rest
            if chunks := relay.end(guidance.finish_reason):
                yield chunks
        finally:
            # A broken student stream or a disconnect also needs this: the receipt must match the shown text.
            if relay.restarted:
                builder.drop_guidance(RESTARTED)

    def _start_background_work(
        self, builder: ReceiptBuilder, request: CompletionRequest, caller: Caller, answer_buffer: AnswerBuffer | None
    ) -> None:
        """Start what the plan contains besides the answer, which the caller has by now.

        That is the shadow request, the quality sample and the collection of the request.
        """
        if builder.caller_left:
            return
        if (rule := builder.plan.collect) is not None:
            self.collector.start(builder, request, rule)
        if (shadow := builder.plan.shadow) is not None:
            child = builder.child_receipt(shadow, "shadow")
            child.measures = builder
            self.shadows.start(child, request, caller)
        if answer_buffer is not None:
            self.quality_sampler.start(builder, request, caller, answer_buffer)

    async def _new_builder(self, context: RequestContext, request: CompletionRequest) -> ReceiptBuilder:
        policy, headers, engines = context.caller.policy, context.headers, context.engine_set
        route = first_route(context.caller, request.model) or await find_route(context.caller, request, headers)
        limit = await fitting_limit(request, route, engines, self.counter, policy.tenant)
        reduced = limit is not None and request.max_tokens is not None and limit < request.max_tokens
        if limit != request.max_tokens:
            request = msgspec.structs.replace(request, max_tokens=limit)
        plan = resolve(
            policy,
            route,
            request,
            partial(engines.snapshot, tenant=policy.tenant),
            headers=headers,
            override=context.route_override,
            load_of=engines.load,
            key_id=context.caller.key.id,
            off=self.switches.find(policy.tenant, route.model),
        )
        if reduced:
            plan = msgspec.structs.replace(plan, reduced_max_tokens=limit)
        return context.new_receipt(plan, route.model, request, stream=request.stream)


def _head(context: RequestContext, request: CompletionRequest) -> ReplyHead:
    if isinstance(request, TextRequest):
        return TextReplyHead(f"cmpl-{context.id}", context.created, request.model)
    return ReplyHead(f"chatcmpl-{context.id}", context.created, request.model)


def _whole_reply(guidance: Guidance) -> Json:
    message = {"role": "assistant", "content": guidance.lead + guidance.text, "refusal": None}
    return {"choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": guidance.finish_reason}]}


def _finish_reason(choices: list[Json]) -> str | None:
    """Return "length" if a choice ended at its limit, else the first choice's finish_reason."""
    reasons = [choice.get("finish_reason") for choice in choices]
    return "length" if "length" in reasons else reasons[0]


def _caller_usage(request: CompletionRequest, builder: ReceiptBuilder, receipt: Receipt) -> Json:
    """Return OpenAI's usage for the caller: its own prompt, and the whole answer of teacher and student.

    A student counts the guidance as part of its prompt, and a teacher counts its exemplars. The caller did not send
    them, so they are subtracted. So is the text of a failed call that another one continued.
    """
    plan = builder.plan
    answerer = receipt.student or (receipt.teacher if plan.mode == "teacher" else None)
    if answerer is None:
        read = receipt.teacher.input_tokens if receipt.teacher is not None else 0
        read = caller_tokens(plan.guidance.projection, request, read) if plan.guidance is not None else read
        return usage_body(read, builder.kept_tokens)
    teacher = receipt.teacher
    if builder.same_prompt and teacher is not None and not teacher.estimated and teacher is not answerer:
        read = teacher.input_tokens
    elif builder.prompt_tokens is not None:
        read = max(0, builder.prompt_tokens - builder.kept_tokens)
    else:
        read = max(0, answerer.input_tokens - builder.kept_tokens - builder.continued_tokens)
    stored = min(read, answerer.cache_write_input_tokens)
    cached = min(read - stored, answerer.cached_input_tokens)
    call = builder.student or builder.teacher
    ended_at = None if call is None else call.answer_tokens
    written = answerer.output_tokens if ended_at is None else ended_at
    return usage_body(read, builder.shown_tokens + builder.continued_tokens + written, cached, stored)
