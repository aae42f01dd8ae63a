"""The engines that complete answers: their state, and the start and the end of one call."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.accounting.shares import EngineCall
from gateway.accounting.worst_case import added_bytes
from gateway.engines.base import is_same_model
from gateway.engines.failures import record_failure
from gateway.engines.retry_budget import RetryBudgets
from gateway.errors import EngineError, EngineRejected
from gateway.pipeline.generation import GenerationTracker
from gateway.pipeline.guidance_request import UNGUIDED
from gateway.pipeline.retries import RequestRetries, Retries
from gateway.pipeline.student_request import continuation_of, text_before

if TYPE_CHECKING:
    from types import TracebackType

    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.pipeline.broken_answer import BrokenAnswer
    from gateway.pipeline.guidance_request import Guidance
    from gateway.pipeline.student_request import StudentRequest
    from gateway.policy.plan import StudentPlan
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
class StudentEngines:
    """Calls of the engines that complete answers, common to whole replies and streams."""

    metrics: Metrics
    budgets: RetryBudgets = field(default_factory=RetryBudgets)

    def check_available(self, builder: ReceiptBuilder) -> None:
        """Raise CircuitOpen if the request has a guidance plan and every student rejects the tenant's calls now."""
        if builder.plan.guidance is None:
            return
        refusals = []
        for student in builder.plan.students:
            if (refusal := builder.engine_set.by_name[student.engine].refusal(builder.tenant)) is None:
                return
            refusals.append(refusal)
        for refusal in refusals:
            record_failure(refusal, builder.id, self.metrics)
        if refusals:
            raise min(refusals, key=lambda one: one.retry_after_s or 0.0)

    @staticmethod
    def keep_larger(builder: ReceiptBuilder, retries: Retries, error: EngineError) -> bool:
        """Drop students that cannot read a request which was too long. Return whether another student may read it."""
        if not isinstance(error, EngineRejected) or not error.exceeds_context:
            return False
        engines = builder.engine_set.by_name
        too_small = engines[error.engine].state.context_tokens

        def is_larger(one: StudentPlan) -> bool:
            context_tokens = engines[one.engine].state.context_tokens
            return context_tokens is None or too_small is None or context_tokens > too_small

        return retries.keep_only(is_larger)

    def begin(
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
            stops_within_s=builder.engine_set.by_name[student.engine].state.stops_within_s,
            preface=text_before(student, request, student_request),
            now=time.perf_counter(),
        )

    @staticmethod
    def _read_same(student: StudentPlan, request: CompletionRequest, builder: ReceiptBuilder) -> bool:
        """Return whether one model reads the caller's prompt, as the teacher and before the guidance as the student."""
        plan = builder.plan.guidance
        if plan is None or builder.rewritten or added_bytes(plan.projection, request):
            return False
        if not _TEMPLATE_FIELDS.isdisjoint(request.body):
            return False
        engines = builder.engine_set.by_name
        teacher = engines.get(plan.teacher)
        return teacher is not None and is_same_model(teacher, engines[student.engine])

    def new_retries(self, builder: ReceiptBuilder) -> Retries:
        request_retries = RequestRetries(builder, self.budgets, self.metrics)
        return Retries(builder.plan.students, builder.plan.retries, request_retries)


def may_refuse_prefix(error: EngineError) -> bool:
    """Return whether an engine may have rejected the prefix of a request, instead of the request itself."""
    return isinstance(error, EngineRejected) and error.blames_request and not error.is_filtered


def drop_prefix(builder: ReceiptBuilder, error: EngineError) -> Guidance:
    """Record that a student rejected the request with the guidance, and why. Return the guidance of the next call."""
    builder.record_failure(error)
    too_long = isinstance(error, EngineRejected) and error.exceeds_context
    builder.drop_guidance("student_context_exceeded" if too_long else "student_refused_prefix")
    return UNGUIDED


class Calling:
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
