"""Overrides by headers: only those that the policy allows, and none by default."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from multidict import CIMultiDict

from gateway.errors import InvalidRequest
from gateway.policy.patterns import to_pattern
from gateway.policy.plan import EngineSnapshot
from gateway.policy.projections import CUTOFF, HINT, SkipRule
from gateway.policy.resolve import resolve, resolve_embeddings
from gateway.policy.routing import RouteOverride
from gateway.policy.schema import TenantPolicy
from gateway.protocol.capabilities.continuation import Continuation
from gateway.protocol.chat import parse_chat

if TYPE_CHECKING:
    from gateway.policy.plan import Plan

CHAT = parse_chat(orjson.dumps({"model": "chat", "messages": [{"role": "user", "content": "Why?"}]}))
GUIDED = {"model": "chat", "mode": "guided", "teacher": "big", "student": "small"}


def planned(
    headers: dict[str, str], route: dict[str, Any] | None = None, of_tenant: dict[str, Any] | None = None
) -> Plan:
    policy = TenantPolicy.model_validate(
        {"tenant": "acme", "routes": [GUIDED | (route or {})], **({"overrides": of_tenant} if of_tenant else {})}
    )
    snapshot = EngineSnapshot(Continuation("trailing"))
    return resolve(policy, policy.routes[0], CHAT, lambda _: snapshot, headers=CIMultiDict(headers))


def refused(headers: dict[str, str], **policy: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        planned(headers, **policy)
    assert caught.value.param in {"x-gkt-mode", "x-gkt-guidance-tokens"}
    assert f"'{caught.value.param}'" in caught.value.message
    return caught.value.message


ALL = {"overrides": {"modes": ["guided", "student", "teacher"], "guidance_tokens": 80}}


@pytest.mark.parametrize("own", ["guided", "student", "teacher", "shadow"])
@pytest.mark.parametrize("requested", ["guided", "student", "teacher"])
def test_a_caller_gets_the_requested_mode(own: str, requested: str) -> None:
    """The route's engines for that mode answer, without a shadow."""
    plan = planned({"X-GKT-Mode": requested.upper()}, ALL | {"mode": own})
    assert plan.mode == requested
    assert plan.student == ("big" if requested == "teacher" else "small")
    assert (plan.guidance is not None) == (requested == "guided")
    assert plan.shadow is None


def test_a_caller_gets_the_requested_length() -> None:
    """The caller's limit still applies; the header has no effect in a mode without guidance."""
    for number in (1, 41, 80):
        plan = planned({"x-gkt-guidance-tokens": str(number)}, ALL)
        assert plan.guidance is not None
        assert plan.guidance.tokens == number
    assert planned({"x-gkt-guidance-tokens": "80", "x-gkt-mode": "student"}, ALL).guidance is None


def test_overrides_are_disabled_by_default() -> None:
    assert refused({"x-gkt-mode": "teacher"}) == (
        "'x-gkt-mode' may not be sent with model 'chat': remove the header, or ask the operator to allow it "
        "(`overrides` in the policy)."
    )
    assert refused({"x-gkt-guidance-tokens": "1"}).startswith("'x-gkt-guidance-tokens' may not be sent with model")
    assert planned({"x-gkt-mode": "guided"}).mode == "guided", "it asks for what it would get"


@pytest.mark.parametrize("value", ["teacher", "shadow", "embeddings", "", "guided,student", "s3cret"])
def test_a_mode_that_is_not_allowed_is_refused_with_those_that_are(value: str) -> None:
    assert refused({"x-gkt-mode": value}, route={"overrides": {"modes": ["student"]}}) == (
        "'x-gkt-mode' must be guided or student with model 'chat': correct or omit it."
    )


@pytest.mark.parametrize("value", ["0", "81", "-1", "1e1", "40.0", "", "\uff14\uff10", "9" * 5000, "s3cret"])
def test_a_length_that_is_none_or_too_great_is_refused_with_the_greatest(value: str) -> None:
    assert refused({"x-gkt-guidance-tokens": value}, route=ALL) == (
        "'x-gkt-guidance-tokens' must be a whole number from 1 to 80 with model 'chat': correct or omit it."
    )


def test_overrides_of_a_route_replace_those_of_the_tenant() -> None:
    """The route's overrides replace the tenant's; the tenant's modes need the route's engines."""
    both = {"modes": ["student", "teacher"], "guidance_tokens": 50}
    assert planned({"x-gkt-mode": "teacher"}, of_tenant=both).mode == "teacher"
    assert "must be guided or student with" in refused(
        {"x-gkt-mode": "teacher"}, route={"overrides": {"modes": ["student"]}}, of_tenant=both
    )
    assert "may not be sent" in refused({"x-gkt-guidance-tokens": "5"}, route={"overrides": {}}, of_tenant=both)
    alone = {"mode": "student", "teacher": None}
    assert "may not be sent" in refused({"x-gkt-mode": "teacher"}, route=alone, of_tenant=both)


def test_embeddings_have_nothing_to_ask_for() -> None:
    route = {"model": "v", "mode": "embeddings", "student": "small"}
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [route], **ALL})
    with pytest.raises(InvalidRequest, match="'x-gkt-mode' does not apply to embeddings"):
        resolve_embeddings(policy.routes[0], lambda _: False, headers={"x-gkt-mode": "student"})


def test_the_maximum_length_of_a_teacher_includes_overrides() -> None:
    """Engines use it for the longest guidance, and queues for the list of teachers."""

    def most(**route: Any) -> int:
        policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [GUIDED | route]})
        return policy.max_guidance_tokens(policy.routes[0])

    assert most() == 40
    assert most(overrides={"guidance_tokens": 80}) == 80
    assert most(overrides={"guidance_tokens": 8}) == 40
    assert most(mode="student") == most(mode="teacher", overrides={"modes": ["student"]}) == 0
    assert most(mode="student", overrides={"modes": ["guided"], "guidance_tokens": 80}) == 80
    assert most(mode="shadow") == 40


def test_tokens_that_a_projection_skips_are_requested_additionally() -> None:
    skips = replace(CUTOFF, name="direct", skip=SkipRule((to_pattern("Certainly!"),), 24))
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [GUIDED]})
    route = policy.routes[0]
    skipping = route.model_copy(update={"guidance": route.guidance.with_projection(skips)})
    assert policy.max_guidance_tokens(skipping) == 40 + 24
    assert policy.max_guidance_tokens(route) == 40
    assert policy.max_guidance_tokens(skipping.model_copy(update={"mode": "student"})) == 0


def override(wish: RouteOverride, **route: Any) -> Plan:
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [GUIDED | route]})
    snapshot = EngineSnapshot(Continuation("trailing"))
    return resolve(policy, policy.routes[0], CHAT, lambda _: snapshot, headers={"x-gkt-mode": "unread"}, override=wish)


@pytest.mark.parametrize("own", ["guided", "student", "teacher", "shadow"])
@pytest.mark.parametrize("mode", ["guided", "student", "teacher"])
def test_an_operator_gets_any_mode_that_the_route_has_the_engines_for(own: Any, mode: Any) -> None:
    """The override is independent of those allowed to callers, and adds no shadow."""
    plan = override(RouteOverride(mode), mode=own)
    assert plan.mode == mode
    assert (plan.guidance is not None) == (mode == "guided")
    assert plan.shadow is None


def test_omitted_fields_of_an_operator_are_the_routes() -> None:
    rule = {"tokens": 30, "projection": "concise", "placement": "input", "temperature": 0.5}
    as_it_is = override(RouteOverride("guided"), guidance=rule).guidance
    assert as_it_is is not None
    assert (as_it_is.tokens, as_it_is.projection.name, as_it_is.placement) == (30, "concise", "input")
    changed = override(RouteOverride("guided", 5, HINT, "context"), guidance=rule).guidance
    assert changed is not None
    assert (changed.tokens, changed.projection.name, changed.placement) == (5, "hint", "context")
    assert changed.temperature == 0.5


@pytest.mark.parametrize(
    ("mode", "route", "lacks"),
    [
        ("teacher", {"mode": "student", "teacher": None}, "no teacher"),
        ("guided", {"mode": "student", "teacher": None}, "no teacher"),
        ("guided", {"mode": "teacher", "student": None}, "no student"),
        ("student", {"mode": "teacher", "student": None}, "no student"),
    ],
)
def test_a_mode_without_its_engines_is_rejected_with_the_missing_ones(mode: Any, route: Any, lacks: str) -> None:
    with pytest.raises(InvalidRequest, match=f"names {lacks}") as caught:
        override(RouteOverride(mode), **route)
    assert caught.value.param == "mode"
