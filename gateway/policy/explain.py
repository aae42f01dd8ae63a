"""What would become of a request: which route takes it, why those before it do not, and the plan. Pure.

Engines are not asked. What is known of them only while they run is assumed, and said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.capabilities.continuation import Continuation
from gateway.errors import GatewayError
from gateway.policy.allowed import allowed
from gateway.policy.resolve import EngineSnapshot, resolve, resolve_embeddings
from gateway.policy.routing import choose, not_found
from gateway.policy.unguided import fields_against
from gateway.protocol.embeddings import EmbeddingsRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.config.models import ModelSettings
    from gateway.config.settings import Settings
    from gateway.policy.allowed import EffectiveLimits
    from gateway.policy.book import Caller
    from gateway.policy.resolve import Plan
    from gateway.policy.routing import RouteChoice
    from gateway.protocol.requests import AnyRequest


@dataclass(frozen=True, slots=True)
class Explanation:
    """One request, explained.

    Attributes:
        choice: which route takes it, and why others do not.
        plan: what it would get; None where it would be refused.
        refused: with what.
        tenant, key: what both may use; the request counts against each.
        assumed: what was taken to be so of engines that were not asked.
        fields: the request's fields because of which it goes without guidance.
    """

    choice: RouteChoice
    plan: Plan | None
    refused: GatewayError | None
    tenant: EffectiveLimits
    key: EffectiveLimits
    assumed: tuple[str, ...]
    fields: tuple[str, ...] = ()


def explain(caller: Caller, asked: AnyRequest, headers: Mapping[str, str], settings: Settings) -> Explanation:
    """What would become of the request, were it to come from this caller with these headers."""
    choice = choose(caller, asked, headers)
    plan, refused = None, None
    try:
        plan = _plan(caller, choice, asked, headers, settings)
    except GatewayError as error:
        refused = error
    assumed = () if plan is None else tuple(_assumed(plan, settings))
    return Explanation(
        choice, plan, refused, *allowed(caller, settings.defaults), assumed, tuple(_fields(choice, asked, plan))
    )


def _plan(
    caller: Caller, choice: RouteChoice, asked: AnyRequest, headers: Mapping[str, str], settings: Settings
) -> Plan:
    route = choice.route
    if route is None:
        raise not_found(caller, asked.model, choice)
    # Nothing is drawn: students stand as they do in the file, and every request is one of a sample.
    if isinstance(asked, EmbeddingsRequest):
        return resolve_embeddings(route, lambda _: False, lambda: 0.0, headers)
    return resolve(caller.policy, route, asked, lambda name: _look(settings.by_name[name]), lambda: 0.0, headers)


def _fields(choice: RouteChoice, asked: AnyRequest, plan: Plan | None) -> list[str]:
    """Return the names of the fields that give the reason against guidance."""
    guided = plan.shadow or plan if plan is not None else None
    if guided is None or choice.route is None or isinstance(asked, EmbeddingsRequest):
        return []
    found = [one for one in fields_against(choice.route, asked) if one.reason == guided.unguided]
    return list(dict.fromkeys(one.path for one in found))


def _look(model: ModelSettings) -> EngineSnapshot:
    mode = model.continuation
    known = None if mode == "none" else Continuation("trailing" if mode == "auto" else mode)
    return EngineSnapshot(known, reasoning=model.reasoning, takes_prompts=model.protocol != "litellm")


def _assumed(plan: Plan, settings: Settings) -> list[str]:
    engines = [one.engine for each in (plan, plan.shadow) if each is not None for one in each.finishers]
    guided = plan.guidance is not None or plan.shadow is not None
    probed = [name for name in dict.fromkeys(engines) if settings.by_name[name].continuation == "auto"]
    said = [f"{name} continues an answer that was begun (continuation: auto finds out)" for name in probed if guided]
    return ["every engine answers, and none rests after failures", *said]
