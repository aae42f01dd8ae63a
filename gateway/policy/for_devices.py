"""(tenant's route, a device's request) -> Plan: the opening alone, for a device that finishes the answer. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from msgspec import structs

from gateway.capabilities.continuation import Continuation
from gateway.errors import RouteWithoutGuidance
from gateway.policy.resolve import EngineSnapshot, resolve
from gateway.policy.routing import NO_HEADERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.policy.resolve import Plan
    from gateway.policy.schema import Route, TenantPolicy
    from gateway.protocol.chat import ChatRequest

# The device goes on with what it is given; how, is its own affair. Whether the gateway's student can is not asked.
_A_DEVICES = EngineSnapshot(Continuation("trailing", echo=False))


def resolve_guidance(
    policy: TenantPolicy, route: Route, asked: ChatRequest, headers: Mapping[str, str] = NO_HEADERS
) -> Plan:
    """What a device gets: the guidance that the route's policy gives a chat, and nobody who finishes the answer.

    Raises:
        RouteWithoutGuidance: the route's answers are not opened by a teacher.
        InvalidRequest: a header asks for what the policy does not allow.
    """
    plan = None if route.mode == "embeddings" else resolve(policy, route, asked, lambda _: _A_DEVICES, headers=headers)
    if plan is None or plan.mode != "guided":
        raise route_without_guidance(route)
    # The student that would be asked how sure it is stands here, and the one that answers does not.
    length = replace(plan.length, probe=None) if plan.length is not None else None
    return structs.replace(plan, mode="guidance", finishers=(), shadow=None, quality=None, length=length)


def route_without_guidance(route: Route) -> RouteWithoutGuidance:
    """What to tell a device whose route opens no answers."""
    return RouteWithoutGuidance(
        f"'{route.model}' gives no guidance: its mode is {route.mode}. Name a route of mode guided, or let the policy "
        "say 'mode: guided' here, with a teacher.",
        param="model",
    )
