"""What of a policy reaches the teacher's queue: whose share, how long guidance is kept, and who shares it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.continuation import Continuation, Known
from gateway.policy.resolve import GuidancePlan, resolve
from gateway.policy.schema import TenantPolicy
from gateway.protocol import parse_chat

CHAT = parse_chat(orjson.dumps({"model": "chat", "messages": [{"role": "user", "content": "Why?"}]}))


def guidance(weight: float = 1.0, **rule: Any) -> GuidancePlan:
    route = {"model": "chat", "mode": "guided", "teacher": "big", "student": "small", "guidance": rule}
    policy = TenantPolicy.model_validate({"tenant": "acme", "weight": weight, "routes": [route]})
    plan = resolve(policy, policy.routes[0], CHAT, lambda _: Continuation("trailing")).guidance
    assert plan is not None
    return plan


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        (Continuation("trailing"), None),
        (None, "student_cannot_continue"),
        ("not_probed", "student_not_probed"),
    ],
)
@pytest.mark.parametrize("placement", ["prefix", "context"])
def test_a_prefix_wants_a_student_that_is_known_to_continue(known: Known, reason: str | None, placement: str) -> None:
    """In the student's prompt guidance needs no such student."""
    route = {"model": "chat", "mode": "guided", "teacher": "big", "student": "small"}
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [route | {"guidance": {"placement": placement}}]})
    plan = resolve(policy, policy.routes[0], CHAT, lambda _: known)
    assert plan.unguided == (reason if placement == "prefix" else None)
    assert (plan.guidance is None) == (plan.unguided is not None)


def test_what_a_raw_prompt_cannot_carry_goes_unguided() -> None:
    """An image is lost when a chat becomes a prompt; a student that continues chats sees it."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    chat = parse_chat(orjson.dumps({"model": "chat", "messages": [{"role": "user", "content": [image]}]}))
    route = {"model": "chat", "mode": "guided", "teacher": "big", "student": "small"}
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [route]})
    reasons = [
        resolve(policy, policy.routes[0], chat, lambda _, how=how: how).unguided
        for how in (Continuation("completions"), Continuation("trailing"))
    ]
    assert reasons == ["not_text", None]


def test_a_ticket_takes_its_tenants_share() -> None:
    assert (guidance(2.5).tenant, guidance(2.5).weight) == ("acme", 2.5)


@pytest.mark.parametrize(("temperature", "kept_s"), [(0.0, 60.0), (0.01, 0.0), (1.0, 0.0)])
def test_only_greedy_guidance_is_kept(temperature: float, kept_s: float) -> None:
    """A sampled opening is one throw of many: the next request gets its own."""
    assert guidance(temperature=temperature, cache_ttl="60s").cache_ttl_s == kept_s


def test_guidance_is_the_tenants_own_unless_its_policy_says_all() -> None:
    assert guidance().share == "acme"
    assert guidance(share="all").share == ""


def test_a_full_queue_and_a_teacher_that_fails_are_two_decisions() -> None:
    """An answer without guidance may be fine in a rush and not otherwise, or the other way round."""
    plan = guidance(on_queue_full="reject")
    assert (plan.reject_when_full, plan.required) == (True, False)
    plan = guidance(on_failure="reject")
    assert (plan.reject_when_full, plan.required) == (False, True)
