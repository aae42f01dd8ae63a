"""What a finisher is sent, and how its words join what the caller was shown. Pure.

Paper, section 2: the student gets the prompt and the guidance. Where the guidance stands is the policy's to say: as the
beginning of the answer (placement prefix), or in the prompt (context, input).
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
    from gateway.policy.resolve import GuidancePlan, Plan, StudentPlan
    from gateway.protocol.body import Json
    from gateway.protocol.requests import CompletionRequest


# An engine may put one before the other: with both a caller would write more than was reserved.
_LIMITS = ("max_tokens", "max_completion_tokens")


class StudentRequest(Record, frozen=True):
    """What one finisher is asked.

    Attributes:
        body: the caller's, changed only where the plan says so.
        prefill: the answer that it goes on with, where it is asked to as its own message.
        reads: what it reads, as messages, for a count of our own.
    """

    body: Json
    prefill: Prefill | None
    reads: Sequence[Json]


def is_prefix(plan: Plan, student: StudentPlan, guidance: Guidance) -> bool:
    """Whether the finisher is to go on with the opening. Else it gets it in its prompt, if there is one."""
    return (
        bool(guidance.text)
        and guidance.finish_reason is None
        and plan.guidance is not None
        and plan.guidance.placement == "prefix"
        and student.continuation is not None
    )


def writes_again(student: StudentPlan) -> bool:
    """Whether the finisher writes the opening itself: it counts its tokens then, and it may begin otherwise."""
    return student.continuation is not None and student.continuation.writes_again


def build_student_request(
    plan: Plan, student: StudentPlan, request: CompletionRequest, guidance: Guidance
) -> StudentRequest:
    """The caller's request as this finisher gets it."""
    body = {**request.body}
    prefix = is_prefix(plan, student, guidance)
    if plan.max_tokens is not None:
        # Who writes the opening again does so within the limit.
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
        assert student.continuation is not None, "as is_prefix says"
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
    """The caller's messages with the opening among them, as the policy places it: for who does not go on with it."""
    if guidance_plan.placement == "input":
        return place_in_input(messages, guidance)
    return place_in_context(guidance_plan.projection, messages, guidance)


def build_seam(plan: Plan, student: StudentPlan, request: CompletionRequest, guidance: Guidance) -> SeamJoin | None:
    """Joins guidance that the caller is shown to what the finisher says; None when there is none to join."""
    if not is_prefix(plan, student, guidance):
        return None
    assert student.continuation is not None, "as is_prefix says"
    return SeamJoin(
        guidance.text,
        pending_space=guidance.pending_space,
        # vLLM and llama.cpp repeat the opening when the caller asks them to, whatever they do by themselves.
        echo=request.body.get("echo") is True or student.continuation.echo,
        strips_leading_space=student.continuation.strips_leading_space,
        written_again=student.continuation.writes_again,
        stop=request.stop,
    )


def build_reasoning_filter(student: StudentPlan, guidance: Guidance) -> ReasoningFilter | None:
    """Parts what a finisher thinks, though it was told not to, from what it says; None where it cannot think."""
    return None if student.reasoning == "none" else ReasoningFilter(guidance.text)


def _prompt(plan: Plan, prompt: str, guidance: str, *, prefix: bool) -> str:
    if prefix or plan.guidance is None:
        return prompt + guidance
    if plan.guidance.placement == "input":
        return place_behind_prompt(prompt, guidance)
    return place_before_prompt(plan.guidance.projection, prompt, guidance)


def _texts(prompt: str | list[object]) -> str | list[Json]:
    """Prompts as a message's content. Token ids are not counted: an engine that was sent them counts."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt[0], str):
        return []
    return [{"type": "text", "text": text} for text in prompt]
