"""Explain a request: the matching route, the reasons against earlier routes, and the plan. Pure.

No engine is called. Facts that are known only while engines run are assumed and listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.capabilities.continuation import Continuation
from gateway.errors import GatewayError
from gateway.policy.allowed import allowed
from gateway.policy.plan import EngineSnapshot
from gateway.policy.resolve import resolve, resolve_embeddings
from gateway.policy.routing import choose, not_found
from gateway.policy.unguided import fields_against
from gateway.protocol.embeddings import EmbeddingsRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.config.models import ModelSettings
    from gateway.config.settings import Settings
    from gateway.policy.allowed import EffectiveLimits
    from gateway.policy.book import Caller
    from gateway.policy.plan import Plan
    from gateway.policy.routing import RouteChoice
    from gateway.protocol.requests import AnyRequest


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation of a request.

    Attributes:
        choice: the matching route, and the reasons against earlier ones.
        plan: the plan; None if the request would be rejected.
        refused: the error of a rejected request.
        tenant, key: limits of both; the request counts against each.
        assumed: assumptions about the engines.
        fields: request fields that exclude guidance.
    """

    choice: RouteChoice
    plan: Plan | None
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
    assumed = () if plan is None else tuple(_assumed(plan, settings))
    return Explanation(
        choice, plan, refused, *allowed(caller, settings.defaults), assumed, tuple(_fields(choice, request, plan))
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


def _fields(choice: RouteChoice, request: AnyRequest, plan: Plan | None) -> list[str]:
    """Return the names of the fields that give the reason against guidance."""
    guided = plan.shadow or plan if plan is not None else None
    if guided is None or choice.route is None or isinstance(request, EmbeddingsRequest):
        return []
    excluding = [one for one in fields_against(choice.route, request) if one.reason == guided.unguided]
    return list(dict.fromkeys(one.path for one in excluding))


def _snapshot(model: ModelSettings) -> EngineSnapshot:
    mode = model.continuation
    known = None if mode == "none" else Continuation("trailing" if mode == "auto" else mode)
    return EngineSnapshot(known, reasoning=model.reasoning, takes_prompts=model.protocol != "litellm")


def _assumed(plan: Plan, settings: Settings) -> list[str]:
    engines = [one.engine for each in (plan, plan.shadow) if each is not None for one in each.students]
    guided = plan.guidance is not None or plan.shadow is not None
    probed = [name for name in dict.fromkeys(engines) if settings.by_name[name].continuation == "auto"]
    probes = [f"{name} continues an answer that was begun (continuation: auto finds out)" for name in probed if guided]
    return ["every engine answers, and none rests after failures", *probes]
