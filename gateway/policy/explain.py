"""Explain a request: the matching route, the reasons against earlier routes, and the plan. Pure.

No engine is called. Facts that are known only while engines run are assumed and listed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.capabilities.continuation import Continuation
from gateway.errors import GatewayError
from gateway.policy.constraints import excluding_fields
from gateway.policy.plan import EngineSnapshot
from gateway.policy.policies import allowed_key, allowed_tenant
from gateway.policy.resolve import resolve, resolve_embeddings
from gateway.policy.routing import choose, not_found
from gateway.protocol.embeddings import EmbeddingsRequest
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.config.models import ModelSettings
    from gateway.config.settings import Settings
    from gateway.policy.book import Caller
    from gateway.policy.constraints import API
    from gateway.policy.plan import Plan
    from gateway.policy.policies import EffectiveLimits
    from gateway.policy.routing import RouteChoice
    from gateway.policy.schema import Route
    from gateway.protocol.requests import AnyRequest


class Explanation(NamedTuple):
    """The explanation of a request, which counts against the limits of its tenant and of its key."""

    choice: RouteChoice  # the matching route, and the reasons against earlier ones
    plan: Plan | None  # the plan; None if the request would be rejected
    refused: GatewayError | None
    tenant: EffectiveLimits
    key: EffectiveLimits
    assumed: tuple[str, ...]
    fields: tuple[str, ...] = ()


def explain(caller: Caller, request: AnyRequest, headers: Mapping[str, str], settings: Settings) -> Explanation:
    """Explain a request from this caller with these headers."""
    choice = choose(caller, request, headers)
    plan, refused = None, None
    try:
        plan = _plan(caller, choice, request, headers, settings)
    except GatewayError as error:
        refused = error
    policy, defaults = caller.policy, settings.defaults
    return Explanation(
        choice,
        plan,
        refused,
        allowed_tenant(policy, defaults),
        allowed_key(policy, caller.key, defaults),
        () if plan is None else tuple(_assumed(plan, settings)),
        () if plan is None or choice.route is None else tuple(_fields(choice.route, request, plan)),
    )


def _plan(
    caller: Caller, choice: RouteChoice, request: AnyRequest, headers: Mapping[str, str], settings: Settings
) -> Plan:
    route = choice.route
    if route is None:
        raise not_found(caller, request.model, choice)
    # No random numbers: students keep the order of the file, and every request is sampled.
    if isinstance(request, EmbeddingsRequest):
        return resolve_embeddings(route, lambda _: False, lambda: 0.0, headers)
    return resolve(caller.policy, route, request, lambda name: _snapshot(settings.by_name[name]), lambda: 0.0, headers)


def _fields(route: Route, request: AnyRequest, plan: Plan) -> dict[str, None]:
    """Return the names of the fields that give the reason against guidance."""
    if isinstance(request, EmbeddingsRequest):
        return {}
    reason, prefix = (plan.shadow or plan).unguided, route.guidance.placement == "prefix"
    api: API = "completions" if isinstance(request, TextRequest) else "chat"
    excluding = excluding_fields(request.body, api, route.guidance.allow_fields)
    return {one.path: None for one in excluding if one.reason == reason and (prefix or one.placement == "none")}


def _snapshot(model: ModelSettings) -> EngineSnapshot:
    mode = model.continuation
    known = None if mode == "none" else Continuation("trailing" if mode == "auto" else mode)
    return EngineSnapshot(known, reasoning=model.reasoning, takes_prompts=model.protocol != "litellm")


def _assumed(plan: Plan, settings: Settings) -> list[str]:
    engines = [one.engine for each in (plan, plan.shadow) if each is not None for one in each.students]
    guided = plan.guidance is not None or plan.shadow is not None
    probed = [name for name in dict.fromkeys(engines) if settings.by_name[name].continuation == "auto"]
    probes = [f"{name} continues an answer that was begun (continuation: auto finds out)" for name in probed if guided]
    return ["every engine answers, and no circuit is open", *probes]
