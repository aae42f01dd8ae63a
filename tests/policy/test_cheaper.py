"""Cheaper plans of a request whose budget is nearly spent."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gateway.policy.plan_variants import AS_PLANNED, SHORTENED, STUDENT_ALONE, cheaper_plans
from tests.accounting.receipt_builders import plan


@pytest.mark.parametrize(("planned", "shortened"), [(40, 20), (5, 3), (3, 2), (2, 2), (1, 1)])
def test_shortened_guidance_has_half_the_length_and_at_least_the_minimum(planned: int, shortened: int) -> None:
    """Trimming leaves nothing of a single token, whose word may continue."""
    whole = plan()
    assert whole.guidance is not None
    plans = cheaper_plans(replace(whole, guidance=replace(whole.guidance, tokens=planned)))
    assert [one.guidance.tokens if one.guidance is not None else 0 for one in plans.values()] == [planned, shortened, 0]
    assert list(plans) == [AS_PLANNED, SHORTENED, STUDENT_ALONE]
