"""The choices of the playground's form: tenants, routes and each route's own settings. It does no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from gateway.policy.overrides import modes_of
from gateway.policy.projections import Placement
from gateway.policy.schema import MAX_GUIDANCE_TOKENS, OverrideMode

if TYPE_CHECKING:
    from gateway.engines.guard import GuardedEngine
    from gateway.policy.book import PolicySet
    from gateway.policy.schema import GuidanceRule, Route, TenantPolicy

MODES: tuple[OverrideMode, ...] = get_args(OverrideMode)


def options_shown(book: PolicySet, engines: list[dict[str, Any]], base_url: str) -> dict[str, Any]:
    """Return the choices of the form. They contain no keys, limits or budgets."""
    return {
        "object": "playground.options",
        "base_url": base_url,
        "modes": list(MODES),
        "projections": [{"name": one.name, "placement": one.default_placement} for one in book.projections.values()],
        "placements": list(get_args(Placement)),
        "max_guidance_tokens": MAX_GUIDANCE_TOKENS,
        "engines": engines,
        "tenants": [_tenant(policy) for policy in book.policies],
    }


def _tenant(policy: TenantPolicy) -> dict[str, Any]:
    """Return a tenant's chat routes, the first of each name. `conditional` marks names with several routes."""
    routes = []
    for named in policy.routes_of.values():
        answering = [route for _, route in named if any(map(route.has_engines_of, MODES))]
        if answering:
            routes.append(_route(policy, answering[0], conditional=len(named) > 1 or named[0][1].when is not None))
    return {"tenant": policy.tenant, "routes": routes}


def _route(policy: TenantPolicy, route: Route, *, conditional: bool) -> dict[str, Any]:
    rule, overrides = route.guidance, policy.overrides_of(route)
    return {
        "model": route.model,
        "mode": route.mode,
        "modes": [mode for mode in MODES if route.has_engines_of(mode)],
        "conditional": conditional,
        "teacher": route.teacher,
        "students": [one.model for one in route.all_students],
        "baseline": route.baseline,
        "default_max_tokens": route.default_max_tokens,
        "guidance": {"tokens": rule.tokens, "projection": rule.projection, "placement": rule.placement},
        "auto": _auto(rule),
        "callers_may": {"modes": list(modes_of(policy, route)), "guidance_tokens": overrides.guidance_tokens},
    }


def _auto(rule: GuidanceRule) -> dict[str, int] | None:
    """Return the bounds of the route's automatic length, or None if its length is a number."""
    if rule.tokens != "auto":
        return None
    return {"min": rule.auto.min, "max": rule.auto.max, "default": rule.auto.default}


def engine_shown(engine: GuardedEngine) -> dict[str, Any]:
    """Return an engine's state. `continues`: whether it continues a given prefix of an answer; null if not probed."""
    known = engine.state.continuation
    continues = None if known == "not_probed" else known is not None
    return {"name": engine.name, "up": engine.state.up, "rests": engine.in_cooldown, "continues": continues}
