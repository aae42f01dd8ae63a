"""Step 5, while the teacher writes: have the student read the prompt, where the policy says `warm_student`.

An engine that caches prefixes then reads only the guidance when it continues the answer. The warm-up requests one token
of the prompt that the student will continue. No step waits for it. Its failure changes the receipt, and counts for the
circuit breaker like that of any call.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from gateway.accounting.shares import EngineCall
from gateway.engines.chat import read_usage
from gateway.engines.failures import record_failure
from gateway.errors import EngineError
from gateway.protocol.capabilities.reasoning import without_reasoning
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.engines.guard import GuardedEngine
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.reasoning import Reasoning
    from gateway.protocol.requests import CompletionRequest
    from gateway.runtime.tasks import BackgroundTasks
    from gateway.telemetry.metrics import Metrics


RETRY_AFTER_S = 60.0
"""Seconds for which an engine is not warmed for prompts as long as one that it did not read while the teacher wrote.

An engine that reads such a prompt twice at once may start the answer later than without a warm-up.
"""

# The caller's fields that affect the student's input, its reasoning, and the destination of the call. Any other field
# may make the engine reject the request.
_FORWARDED = frozenset({
    "model", "messages", "prompt", "tools", "functions", "tool_choice", "function_call", "chat_template",
    "chat_template_kwargs", "documents", "add_special_tokens", "mm_processor_kwargs", "media_io_kwargs", "lora",
    "lora_path", "adapter_id", "reasoning", "reasoning_effort", "thinking", "enable_thinking", "think", "user",
    "cache_salt", "prompt_cache_key", "priority", "provider", "service_tier",
})  # fmt: skip


class _UnfinishedPrompt(NamedTuple):
    """The size of a prompt whose warm-up was canceled, and the time until which it counts."""

    size_bytes: int
    until: float


class StudentWarmup:
    """Warm the prefix cache of students.

    `clock` returns seconds. An engine with `max_concurrency` calls in flight is not warmed.
    """

    def __init__(self, metrics: Metrics, tasks: BackgroundTasks, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics, self._tasks, self._clock = metrics, tasks, clock
        self._unfinished: dict[tuple[str, str], _UnfinishedPrompt] = {}  # by engine and tenant

    def start(self, request: CompletionRequest, builder: ReceiptBuilder) -> asyncio.Task[None] | None:
        """Start to warm the first student; None where the plan or the state of the engine prevents it.

        The caller cancels the task when the guidance has ended, after `outlasted` if the guidance came first. Until the
        engine answers, the receipt has the largest possible share.
        """
        plan = builder.plan
        if plan.guidance is None or not plan.guidance.warm_student or builder.caller_left:
            return None
        student = plan.students[0]
        engine = builder.engine_set.by_name[student.engine]
        if not engine.is_closed_for(builder.tenant):
            return None  # the trial of an open circuit is left to the answer
        max_calls = builder.engine_set.models[engine.name].max_concurrency
        if engine.calls >= min(max_calls, engine.state.max_concurrency or max_calls):
            return None
        unfinished = self._unfinished.get((engine.name, builder.tenant))
        if unfinished is not None and request.size_bytes >= unfinished.size_bytes and self._clock() < unfinished.until:
            return None
        call = builder.warmup = EngineCall(engine.name, prompt_messages(request), lost_tokens=1, role="warmup")
        body = one_token_body(request, student.reasoning)
        return self._tasks.spawn("warm_student", self._call(engine, body, builder, call))

    def outlasted(self, request: CompletionRequest, builder: ReceiptBuilder) -> None:
        """Record that the guidance came before the end of this request's warm-up."""
        key = builder.plan.students[0].engine, builder.tenant
        self._unfinished[key] = _UnfinishedPrompt(request.size_bytes, self._clock() + RETRY_AFTER_S)

    async def _call(self, engine: GuardedEngine, body: Json, builder: ReceiptBuilder, call: EngineCall) -> None:
        try:
            reply = await engine.complete(body)
        except EngineError as error:
            record_failure(error, builder.id, self._metrics)
            if not error.may_have_run and builder.warmup is call:
                builder.warmup = None
        else:
            call.usage = read_usage(reply.get("usage"))


def one_token_body(request: CompletionRequest, reasoning: Reasoning) -> Json:
    """Return a body that requests one token of the prompt that the student continues, without sampling."""
    forwarded = {name: value for name, value in request.body.items() if name in _FORWARDED}
    body: Json = {**forwarded, request.limit_field: 1, "temperature": 0}
    return body if isinstance(request, TextRequest) else without_reasoning(reasoning, body)


def prompt_messages(request: CompletionRequest) -> Sequence[Json]:
    """Return the caller's prompt as messages, for the gateway's own token count."""
    return [{"role": "user", "content": request.prompt}] if isinstance(request, TextRequest) else request.messages
