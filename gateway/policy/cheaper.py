"""Cheaper plans for a request whose budget is nearly or wholly spent. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from gateway.policy.constraints import MIN_TOKENS

if TYPE_CHECKING:
    from gateway.policy.plan import Plan

AS_PLANNED, SHORTENED, STUDENT_ALONE = 1, 2, 3
"""Kinds of plan, the most expensive first."""
BUDGET = "budget"
"""Reason for an unguided answer: the budget does not cover the teacher."""


def cheaper_plans(plan: Plan) -> dict[int, Plan]:
    """Return the plan and its cheaper variants by kind: half the guidance, and no guidance."""
    if plan.guidance is None:
        return {AS_PLANNED: plan}
    # Trimming leaves nothing of a single token, whose word may continue.
    min_tokens = min(plan.guidance.tokens, MIN_TOKENS)
    shorter = replace(plan.guidance, tokens=max(min_tokens, (plan.guidance.tokens + 1) // 2))
    return {
        AS_PLANNED: plan,
        SHORTENED: replace(plan, guidance=shorter),
        STUDENT_ALONE: replace(plan, guidance=None, unguided=BUDGET),
    }
