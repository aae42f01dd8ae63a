"""The verdict on quality of GET /summary: for all routes of a filter together, and for each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.admin.replies import time_shown
from gateway.quality.trend import AgreementSums, RouteScope, assess

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.policy.book import PolicySet
    from gateway.policy.guidance_off import GuidanceOff, GuidanceScope
    from gateway.quality.outcome import Estimate
    from gateway.quality.trend import Assessment

_DIGITS = 6
_MAX_ROUTES = 200


def trend_shown(
    policies: PolicySet,
    off: Mapping[GuidanceScope, GuidanceOff],
    only: Mapping[str, str],
    now: Mapping[RouteScope, AgreementSums],
    before: Mapping[RouteScope, AgreementSums],
) -> dict[str, Any]:
    """Return the verdict on the agreements of a period, compared with those of the period before.

    `off` are the switches that are off, and `only` the filters. The list of routes has those with the most samples.
    """
    fallen = {
        (scope.tenant, scope.route): switch
        for scope, switch in off.items()
        if switch.by == "quality" and _is_in(scope, only)
    }

    def bound_of(scope: RouteScope) -> float | None:
        return _bound(policies, scope)

    def of_route(scope: RouteScope) -> dict[str, Any]:
        switch = fallen.get((scope.tenant, scope.route))
        earlier = {scope: before[scope]} if scope in before else {}
        found = assess({scope: now[scope]}, earlier, bound_of, switched_off=switch is not None)
        since = None if switch is None else time_shown(switch.since_s)
        return {**scope._asdict(), **_shown(found), "switched_off": since}

    routes = sorted(now, key=lambda scope: (-now[scope].samples, scope))[:_MAX_ROUTES]
    return {
        **_shown(assess(now, before, bound_of, switched_off=bool(fallen))),
        "ignored": [name for name in ("key",) if name in only],
        "switched_off": [{"tenant": tenant, "route": route} for tenant, route in fallen],
        "routes": [of_route(scope) for scope in routes],
    }


def _is_in(scope: GuidanceScope, only: Mapping[str, str]) -> bool:
    return only.get("tenant", scope.tenant) == scope.tenant and only.get("route", scope.route) == scope.route


def _bound(policies: PolicySet, scope: RouteScope) -> float | None:
    """Return the highest `min_agreement` of the routes with this name and kind of comparison."""
    policy = policies.policy_of(scope.tenant)
    routes = policy.routes_of.get(scope.route, ()) if policy is not None else ()
    rules = [route.quality for _, route in routes if route.quality is not None]
    bounds = [rule.min_agreement for rule in rules if rule.compare == scope.compare and rule.min_agreement is not None]
    return float(max(bounds)) if bounds else None


def _shown(found: Assessment) -> dict[str, Any]:
    return {
        "verdict": found.verdict,
        "reason": found.reason,
        "n": found.now.samples,
        "previous_n": found.before.samples,
        "agreement": _estimate(found.now.estimate()),
        "previous": _estimate(found.before.estimate()),
        "change": _estimate(found.change),
        "bound": found.bound,
    }


def _estimate(one: Estimate | None) -> dict[str, Any] | None:
    if one is None:
        return None
    return {name: None if value is None else round(value, _DIGITS) for name, value in one._asdict().items()}
