"""Variants of a plan: for a budget, for a part of its students, and without guidance. Pure."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec import structs

from gateway.errors import InvalidRequest
from gateway.policy.constraints import MIN_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.policy.guidance_off import GuidanceOff
    from gateway.policy.plan import EngineSnapshot, Plan, StudentPlan

AS_PLANNED, SHORTENED, STUDENT_ALONE = 1, 2, 3
"""Kinds of plan for a budget, the most expensive first."""
BUDGET = "budget"
"""Reason for an unguided answer: the budget does not cover the teacher."""
TEACHER_CIRCUIT_OPEN = "teacher_circuit_open"
"""Reason for an unguided answer: calls of the teacher failed before."""


def without_guidance(
    plan: Plan,
    teacher: str,
    off: GuidanceOff,
    snapshot_of: Callable[[str], EngineSnapshot],
    teacher_plan: Callable[[], Plan],
    *,
    required: bool,
) -> Plan:
    """Return the plan of a request whose guidance is switched off.

    If the policy forbids answers of the student alone, the teacher answers, whatever the switch says.
    """
    alone = structs.replace(plan, guidance=None, unguided=off.unguided)
    if not required:
        if off.answer_by == "student":
            return alone
        if snapshot_of(teacher).cooldown:
            return structs.replace(alone, unguided=TEACHER_CIRCUIT_OPEN)
    with suppress(InvalidRequest):  # the teacher cannot answer it alone
        return structs.replace(teacher_plan(), unguided=off.unguided, student_alone=alone)
    return alone


def cheaper_plans(plan: Plan) -> dict[int, Plan]:
    """Return the plan and its cheaper variants by kind: half the guidance, and no guidance."""
    if plan.student_alone is not None:
        alone = structs.replace(
            plan.student_alone,
            unguided=BUDGET,
            max_tokens=plan.max_tokens,
            reduced_max_tokens=plan.reduced_max_tokens,
        )
        return {AS_PLANNED: plan, SHORTENED: plan, STUDENT_ALONE: alone}
    if plan.guidance is None:
        return {AS_PLANNED: plan}
    # Trimming leaves nothing of a single token, whose word may continue.
    min_tokens = min(plan.guidance.tokens, MIN_TOKENS)
    shorter = structs.replace(plan.guidance, tokens=max(min_tokens, (plan.guidance.tokens + 1) // 2))
    return {
        AS_PLANNED: plan,
        SHORTENED: structs.replace(plan, guidance=shorter),
        STUDENT_ALONE: structs.replace(plan, guidance=None, unguided=BUDGET),
    }


def with_students(plan: Plan, students: tuple[StudentPlan, ...]) -> Plan:
    """Return the plan with a part of its students. The first of them may not continue an answer as the planned one."""
    guidance = plan.guidance
    if guidance is not None and students[0] != plan.students[0]:
        continuation = students[0].continuation
        in_prompt = guidance.placement == "prefix" and continuation is None
        # Nothing is reserved for a warm-up of another student than the planned one.
        guidance = structs.replace(
            guidance,
            placement="context" if in_prompt else guidance.placement,
            stream=guidance.stream and continuation is not None and not continuation.writes_again,
            warm_student=False,
        )
    return structs.replace(plan, students=students, guidance=guidance)
