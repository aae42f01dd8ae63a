"""Build the request that a student gets, and the seam between the guidance and its reply."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.guidance.projection import place_before_prompt, place_behind_prompt, place_in_context, place_in_input
from gateway.guidance.seam import SeamJoin, ends_within_stop
from gateway.protocol.capabilities.continuation import Prefill
from gateway.protocol.capabilities.reasoning import ReasoningFilter, without_reasoning
from gateway.protocol.messages import text_of
from gateway.protocol.text import TextRequest
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.pipeline.broken_answer import BrokenAnswer
    from gateway.pipeline.guidance_request import Guidance
    from gateway.policy.plan import GuidancePlan, Plan, StudentPlan
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.continuation import Continuation
    from gateway.protocol.requests import CompletionRequest

# Engines prefer one or the other. With both, an engine could exceed the reserved tokens.
_LIMITS = ("max_tokens", "max_completion_tokens")


def text_before(student: StudentPlan, request: CompletionRequest, student_request: StudentRequest) -> str | None:
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


def continuation_of(plan: Plan, student: StudentPlan, guidance: Guidance) -> Continuation | None:
    """Return how the student continues the guidance. None: it gets the guidance, if any, in its prompt."""
    if not guidance.text or guidance.finish_reason is not None:
        return None
    return student.continuation if plan.guidance is not None and plan.guidance.placement == "prefix" else None


def tokens_before(plan: Plan, student: StudentPlan, guidance: Guidance) -> int:
    """Return the guidance tokens before the student's own. A student that writes the guidance again needs tokens for
    it."""
    continuation = continuation_of(plan, student, guidance)
    return guidance.tokens if continuation is not None and not continuation.writes_again else 0


def build_student_request(
    plan: Plan,
    student: StudentPlan,
    request: CompletionRequest,
    guidance: Guidance,
    broken: BrokenAnswer | None = None,
) -> StudentRequest:
    """Return the caller's request as this student gets it. It continues the `broken` answer, if there is one."""
    body = {**request.body}
    if broken is not None:
        continuation, prefix = student.continuation, broken.text
        added = guidance.text if broken.guidance_in_prompt else ""
    else:
        continuation, prefix = continuation_of(plan, student, guidance), guidance.text
        added = guidance.text if continuation is None else ""
    if continuation is not None and _stops_here(student, continuation, prefix, request):
        body.pop("stop", None)
    if plan.max_tokens is not None:
        written = broken.max_tokens if broken is not None else tokens_before(plan, student, guidance)
        for name in _LIMITS:
            if body.get(name) is not None:
                del body[name]
        body[request.limit_field] = plan.max_tokens - written
    constraints = None if plan.guidance is None else plan.guidance.constraints
    if constraints is not None and (least := constraints.get("min_tokens")) is not None:
        body["min_tokens"] = max(0, least - tokens_before(plan, student, guidance))
    if isinstance(request, TextRequest):
        if request.prompt is not None and (added or (continuation is not None and prefix)):
            prompt = _prompt(plan, request.prompt, added) if added else request.prompt
            body["prompt"] = prompt if continuation is None else prompt + prefix
        return StudentRequest(body, None, [{"role": "user", "content": _texts(body["prompt"])}])
    if added and plan.guidance is not None:
        body["messages"] = place_in_messages(plan.guidance, request.messages, added)
    if continuation is not None:
        reads = [*body["messages"], {"role": "assistant", "content": prefix}]
        return StudentRequest(without_reasoning(student.reasoning, body), Prefill(prefix, continuation), reads)
    return StudentRequest(body, None, body["messages"])


def place_in_messages(guidance_plan: GuidancePlan, messages: list[Json], guidance: str) -> list[Json]:
    """Return the caller's messages with the guidance as the policy places it. The student does not continue it."""
    if guidance_plan.placement == "input":
        return place_in_input(messages, guidance)
    return place_in_context(guidance_plan.projection, messages, guidance)


def build_seam(
    plan: Plan,
    student: StudentPlan,
    request: CompletionRequest,
    guidance: Guidance,
    broken: BrokenAnswer | None = None,
) -> tuple[SeamJoin | None, ReasoningFilter | None]:
    """Return the join of shown guidance and the student's text; None if the student does not continue the guidance.

    The second value is the filter for reasoning that a student generates although it was disabled; None: it cannot.
    """
    text, lead, space, sent = guidance.text, guidance.lead, guidance.pending_space, ""
    continuation = student.continuation if broken is not None else continuation_of(plan, student, guidance)
    if continuation is None:
        return None, None
    if broken is not None:
        text, lead, space, sent = broken.text, broken.lead, broken.space, broken.sent
    reasoning_filter = None if student.reasoning == "none" else ReasoningFilter(text)
    seam_join = SeamJoin(
        text,
        lead=lead,
        pending_space=space,
        # vLLM and llama.cpp repeat the guidance if the caller sets `echo`, whatever their default is.
        echo=request.body.get("echo") is True or continuation.echo,
        strips_leading_space=continuation.strips_leading_space,
        written_again=continuation.writes_again,
        stop=request.stop,
        all_stops=_stops_here(student, continuation, text, request),
        sent=sent,
    )
    return seam_join, reasoning_filter


def _stops_here(student: StudentPlan, continuation: Continuation, prefix: str, request: CompletionRequest) -> bool:
    """Return whether the gateway detects all stop strings, because one of them may begin in the prefix.

    A student with running counts does not get them then, because such an engine (vLLM) holds back text while it
    searches for stop strings. Its count would be ahead of the text. Other students end at stop strings themselves:
    some of them generate on after a disconnect.
    """
    return student.counts_chunks and not continuation.writes_again and ends_within_stop(prefix, request.stop)


def _prompt(plan: Plan, prompt: str, guidance: str) -> str:
    if plan.guidance is None:
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
