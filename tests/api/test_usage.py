"""Sums that show costs to a tenant."""

from __future__ import annotations

import pytest

from gateway.api.usage import shows_money
from gateway.policy.schema import TenantPolicy
from gateway.usage.rollup import SumDimensions
from gateway.usage.sums import OTHER


def policy(**shows: bool) -> TenantPolicy:
    routes = [
        {"model": name, "mode": "student", "student": "small", "show_cost": shown} for name, shown in shows.items()
    ]
    return TenantPolicy.model_validate({"tenant": "acme", "routes": routes})


@pytest.mark.parametrize(
    ("route", "shows", "has_money"),
    [
        ("chat", {"chat": True, "other": False}, True),
        ("chat", {"chat": False, "other": True}, False),
        ("gone", {"chat": True}, False),
        (OTHER, {"chat": True, "other": True}, True),
        (OTHER, {"chat": True, "other": False}, False),
    ],
)
def test_usage_shows_money_only_for_routes_with_visible_costs(
    route: str, shows: dict[str, bool], *, has_money: bool
) -> None:
    """Removed routes hide costs. A joint sum shows costs only if all its routes do."""
    where = SumDimensions("acme", "only", route, "student", "", "small")
    assert shows_money(policy(**shows), where) is has_money
