"""What a request may get instead of what its route says, when its budget is nearly or wholly spent. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from gateway.policy.constraints import LEAST_TOKENS

if TYPE_CHECKING:
    from gateway.policy.resolve import Plan

AS_PLANNED, SHORTENED, STUDENT_ALONE = 1, 2, 3
"""The kinds of plan, from the dearest down."""
BUDGET = "budget"
"""Why an answer is unguided for which the teacher would have cost too much."""


def cheaper_plans(plan: Plan) -> dict[int, Plan]:
    """The plan and those that cost less, by kind: half the guidance, and none at all. A plan without has none."""
    if plan.guidance is None:
        return {AS_PLANNED: plan}
    # Of one token the trimming leaves nothing: its word may go on.
    least = min(plan.guidance.tokens, LEAST_TOKENS)
    shorter = replace(plan.guidance, tokens=max(least, (plan.guidance.tokens + 1) // 2))
    return {
        AS_PLANNED: plan,
        SHORTENED: replace(plan, guidance=shorter),
        STUDENT_ALONE: replace(plan, guidance=None, unguided=BUDGET),
    }
