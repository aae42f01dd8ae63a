"""Plans of devices' requests: the guidance of a chat, without a student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from gateway.errors import InvalidRequest, RouteWithoutGuidance
from gateway.policy.resolve import resolve_guidance
from gateway.policy.schema import TenantPolicy
from gateway.protocol.chat import parse_chat

if TYPE_CHECKING:
    from gateway.policy.plan import Plan

GUIDED = {"model": "chat", "mode": "guided", "teacher": "big", "student": "small"}


def planned(route: dict[str, Any], headers: dict[str, str] | None = None, **body: Any) -> Plan:
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [route]})
    request = {"model": "chat", "messages": [{"role": "user", "content": "Why?"}]} | body
    return resolve_guidance(policy, policy.routes[0], parse_chat(orjson.dumps(request)), headers or {})


@pytest.mark.parametrize("placement", ["prefix", "context"])
def test_the_routes_placement_does_not_depend_on_the_gateways_student(placement: str) -> None:
    """The gateway's student was not probed, and is not used."""
    plan = planned(GUIDED | {"guidance": {"placement": placement}})
    assert (plan.mode, plan.students, plan.unguided) == ("guidance", (), None)
    assert plan.guidance is not None
    assert plan.guidance.placement == placement


def test_requests_of_devices_are_not_collected() -> None:
    assert planned(GUIDED | {"collect": {"sample": 1}}).collect is None


@pytest.mark.parametrize(
    ("route", "mode"),
    [
        ({"model": "chat", "mode": "student", "student": "small"}, "student"),
        ({"model": "chat", "mode": "teacher", "teacher": "big"}, "teacher"),
        (GUIDED | {"mode": "shadow"}, "shadow"),
        ({"model": "chat", "mode": "embeddings", "student": "small"}, "embeddings"),
    ],
)
def test_a_route_without_guidance_is_an_error_with_a_remedy(route: dict[str, Any], mode: str) -> None:
    with pytest.raises(RouteWithoutGuidance, match=f"its mode is {mode}.*mode: guided") as caught:
        planned(route)
    assert (caught.value.param, caught.value.status) == ("model", 400)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"grammar": "g"}, "structured_output"),
        ({"nvext": {"ignore_eos": True}}, "stop_condition"),
        ({"unlisted_fields": True}, "field_not_known"),
        ({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "A"}]}, "caller_prefill"),
        ({"max_tokens": 1}, "token_limit"),
    ],
)
def test_requests_without_possible_guidance_state_the_reason(body: dict[str, Any], reason: str) -> None:
    """The rules of chats apply."""
    plan = planned(GUIDED, **body)
    assert (plan.guidance, plan.unguided) == (None, reason)


def test_a_route_may_allow_unknown_fields_of_a_device() -> None:
    route = GUIDED | {"guidance": {"allow_fields": ["unlisted_fields"]}}
    assert planned(route, unlisted_fields=True).guidance is not None


def test_an_allowed_length_override_applies_and_another_mode_has_no_guidance() -> None:
    route = GUIDED | {"overrides": {"modes": ["student"], "guidance_tokens": 64}}
    plan = planned(route, {"x-gkt-guidance-tokens": "7"})
    assert plan.guidance is not None
    assert plan.guidance.tokens == 7
    with pytest.raises(RouteWithoutGuidance):
        planned(route, {"x-gkt-mode": "student"})
    with pytest.raises(InvalidRequest):
        planned(GUIDED, {"x-gkt-mode": "student"})


def test_plans_for_devices_have_no_warmup_shadow_or_sample() -> None:
    plan = planned(GUIDED | {"quality": {"sample": 1, "compare": "words"}}, max_tokens=200)
    assert (plan.quality, plan.shadow) == (None, None)
    plan = planned(GUIDED | {"guidance": {"warm_student": True}})
    assert plan.guidance is not None
    assert not plan.guidance.warm_student
