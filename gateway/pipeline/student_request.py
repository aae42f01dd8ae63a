"""Build a student's request, and the seam between its text and the text that the caller was shown. Pure.

Paper, section 2: the student gets the prompt and the guidance. The policy places the guidance at the beginning of the
answer (placement prefix) or in the prompt (context, input).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.capabilities.continuation import Prefill
from gateway.capabilities.reasoning import ReasoningFilter, without_reasoning
from gateway.guidance.projection import (
    place_before_prompt,
    place_behind_prompt,
    place_in_context,
    place_in_input,
)
from gateway.guidance.seam import SeamJoin
from gateway.protocol.text import TextRequest
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.pipeline.guidance_request import Guidance
    from gateway.policy.plan import GuidancePlan, Plan, StudentPlan
    from gateway.protocol.body import Json
    from gateway.protocol.requests import CompletionRequest


# Engines prefer one or the other. With both, an engine could exceed the reserved tokens.
_LIMITS = ("max_tokens", "max_completion_tokens")


class StudentRequest(Record, frozen=True):
    """The request to one student.

    Attributes:
        body: the caller's body with the plan's changes.
        prefill: the beginning of the answer that the student continues; None: it continues none, or a raw prompt.
        reads: the student's input as messages, for the gateway's own token count.
    """

    body: Json
    prefill: Prefill | None
    reads: Sequence[Json]


def is_prefix(plan: Plan, student: StudentPlan, guidance: Guidance) -> bool:
    """Return whether the student continues the guidance. If not, it gets the guidance, if any, in its prompt."""
    return (
        bool(guidance.text)
        and guidance.finish_reason is None
        and plan.guidance is not None
        and plan.guidance.placement == "prefix"
        and student.continuation is not None
    )


def writes_again(student: StudentPlan) -> bool:
    """Return whether the student writes the guidance itself: it counts the tokens, and it may begin differently."""
    return student.continuation is not None and student.continuation.writes_again


def build_student_request(
    plan: Plan, student: StudentPlan, request: CompletionRequest, guidance: Guidance
) -> StudentRequest:
    """Return the caller's request as this student gets it."""
    body = {**request.body}
    prefix = is_prefix(plan, student, guidance)
    if plan.max_tokens is not None:
        # A student that writes the guidance again needs tokens for it.
        written = guidance.tokens if prefix and not writes_again(student) else 0
        for name in _LIMITS:
            if body.get(name) is not None:
                del body[name]
        body[request.limit_field] = plan.max_tokens - written
    if isinstance(request, TextRequest):
        if request.prompt is not None and guidance.text:
            body["prompt"] = _prompt(plan, request.prompt, guidance.text, prefix=prefix)
        return StudentRequest(body, None, [{"role": "user", "content": _texts(body["prompt"])}])
    if prefix:
        assert student.continuation is not None, "is_prefix() requires it"
        prefill = Prefill(guidance.text, student.continuation)
        return StudentRequest(
            without_reasoning(student.reasoning, body),
            prefill,
            [*request.messages, {"role": "assistant", "content": guidance.text}],
        )
    if guidance.text and plan.guidance is not None:
        body["messages"] = place_in_messages(plan.guidance, request.messages, guidance.text)
    return StudentRequest(body, None, body["messages"])


def place_in_messages(guidance_plan: GuidancePlan, messages: list[Json], guidance: str) -> list[Json]:
    """Return the caller's messages with the guidance in them, for a student that does not continue it.

    The policy decides its position.
    """
    if guidance_plan.placement == "input":
        return place_in_input(messages, guidance)
    return place_in_context(guidance_plan.projection, messages, guidance)


def build_seam(plan: Plan, student: StudentPlan, request: CompletionRequest, guidance: Guidance) -> SeamJoin | None:
    """Return the join of shown guidance and the student's text; None if the student does not continue the guidance."""
    if not is_prefix(plan, student, guidance):
        return None
    assert student.continuation is not None, "is_prefix() requires it"
    return SeamJoin(
        guidance.text,
        pending_space=guidance.pending_space,
        # vLLM and llama.cpp repeat the guidance if the caller sets `echo`, whatever their default is.
        echo=request.body.get("echo") is True or student.continuation.echo,
        strips_leading_space=student.continuation.strips_leading_space,
        written_again=student.continuation.writes_again,
        stop=request.stop,
    )


def build_reasoning_filter(student: StudentPlan, guidance: Guidance) -> ReasoningFilter | None:
    """Return the filter for reasoning that a student generates although it was disabled; None if it cannot reason."""
    return None if student.reasoning == "none" else ReasoningFilter(guidance.text)


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
