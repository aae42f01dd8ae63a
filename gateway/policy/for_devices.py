"""Plan the guidance of a device's request; the device completes the answer. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from msgspec import structs

from gateway.capabilities.continuation import Continuation
from gateway.errors import RouteWithoutGuidance
from gateway.policy.plan import EngineSnapshot
from gateway.policy.resolve import resolve
from gateway.policy.routing import NO_HEADERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.policy.plan import Plan
    from gateway.policy.schema import Route, TenantPolicy
    from gateway.protocol.chat import ChatRequest

# The device continues the guidance in its own way, so the gateway's student does not matter.
_DEVICE = EngineSnapshot(Continuation("trailing", echo=False))


def resolve_guidance(
    policy: TenantPolicy, route: Route, request: ChatRequest, headers: Mapping[str, str] = NO_HEADERS
) -> Plan:
    """Return the plan of a device's request: guidance by the route's policy, without a student.

    Raises:
        RouteWithoutGuidance: the route gives no guidance.
        InvalidRequest: a header requests an override that the policy does not allow.
    """
    plan = None if route.mode == "embeddings" else resolve(policy, route, request, lambda _: _DEVICE, headers=headers)
    if plan is None or plan.mode != "guided":
        raise route_without_guidance(route)
    # The confidence probe uses the gateway's student, which does not answer this request.
    length = replace(plan.length, probe=None) if plan.length is not None else None
    return structs.replace(plan, mode="guidance", students=(), shadow=None, quality=None, length=length)


def route_without_guidance(route: Route) -> RouteWithoutGuidance:
    """Return the error for a device whose route gives no guidance."""
    return RouteWithoutGuidance(
        f"'{route.model}' gives no guidance: its mode is {route.mode}. Name a route of mode guided, or let the policy "
        "say 'mode: guided' here, with a teacher.",
        param="model",
    )
