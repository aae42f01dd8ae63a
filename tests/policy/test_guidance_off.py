"""Plans of requests whose guidance is switched off."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import orjson
import pytest

from gateway.errors import RouteWithoutGuidance
from gateway.policy.guidance_off import GuidanceOff, GuidanceScope, GuidanceSwitches
from gateway.policy.plan import EngineSnapshot, Plan
from gateway.policy.plan_variants import AS_PLANNED, SHORTENED, STUDENT_ALONE, cheaper_plans
from gateway.policy.resolve import resolve, resolve_guidance
from gateway.policy.routing import RouteOverride
from gateway.policy.schema import TenantPolicy
from gateway.protocol.capabilities.continuation import Continuation
from gateway.protocol.chat import parse_chat
from gateway.protocol.text import parse_text_completion

MESSAGES = [{"role": "user", "content": "Why?"}]
CHAT = parse_chat(orjson.dumps({"model": "chat", "messages": MESSAGES}))
WITH_TOOLS = parse_chat(
    orjson.dumps({"model": "chat", "messages": MESSAGES, "tools": [{"type": "function", "function": {"name": "f"}}]})
)
PROMPT = parse_text_completion(orjson.dumps({"model": "chat", "prompt": "Why?"}))
BY_STUDENT = GuidanceOff(1.0, "operator", "ann", None, "student")
BY_TEACHER = GuidanceOff(1.0, "quality", "quality", None, "teacher")
QUALITY = {"sample": 1, "min_agreement": 0.8}


def policy_of(**route: Any) -> TenantPolicy:
    chat = {"model": "chat", "mode": "guided", "teacher": "big", "student": "small"} | route
    return TenantPolicy.model_validate({"tenant": "acme", "routes": [chat]})


def planned(off: GuidanceOff | None, request: Any = CHAT, *, snapshots: Any = None, **more: Any) -> Plan:
    known = snapshots or {}
    policy = policy_of(**more.pop("route", {}))
    snapshot = EngineSnapshot(Continuation("trailing"))
    return resolve(
        policy, policy.routes[0], request, lambda name: known.get(name, snapshot), lambda: 0.0, off=off, **more
    )


def test_the_most_specific_switch_applies() -> None:
    switches = GuidanceSwitches()
    assert switches.find("acme", "chat") is None
    everything, tenant, route = (GuidanceOff(float(number)) for number in range(3))
    switches.replace({GuidanceScope(): everything, GuidanceScope("acme"): tenant, GuidanceScope("acme", "a/b"): route})
    assert switches.find("acme", "a/b") is route
    assert switches.find("acme", "chat") is tenant
    assert switches.find("globex", "a/b") is everything


def test_the_student_answers_alone_and_the_reason_is_on_the_plan() -> None:
    plan = planned(BY_STUDENT, route={"quality": QUALITY})
    assert (plan.mode, plan.unguided, plan.guidance, plan.student) == ("guided", "switched_off", None, "small")
    assert plan.quality is None, "unguided answers are not compared"


def test_the_teacher_answers_and_a_spent_budget_selects_the_student() -> None:
    plan = planned(BY_TEACHER, route={"quality": QUALITY})
    assert (plan.mode, plan.unguided, plan.student, plan.quality) == ("teacher", "quality_fallback", "big", None)
    cheaper = cheaper_plans(plan)
    assert [cheaper[kind].student for kind in (AS_PLANNED, SHORTENED, STUDENT_ALONE)] == ["big", "big", "small"]
    assert (cheaper[STUDENT_ALONE].unguided, cheaper[STUDENT_ALONE].guidance) == ("budget", None)
    assert cheaper[STUDENT_ALONE].mode == "guided"


def test_a_route_that_forbids_answers_of_the_student_uses_the_teacher() -> None:
    """Otherwise the switch would break a policy, or fail every request."""
    plan = planned(BY_STUDENT, route={"guidance": {"on_failure": "reject"}})
    assert (plan.mode, plan.unguided, plan.student) == ("teacher", "switched_off", "big")


@pytest.mark.parametrize(("on_failure", "student"), [("student", "small"), ("reject", "big")])
def test_a_teacher_with_an_open_circuit_is_replaced_where_the_policy_allows_it(on_failure: str, student: str) -> None:
    down = {"big": EngineSnapshot(Continuation("trailing"), cooldown=True)}
    plan = planned(BY_TEACHER, snapshots=down, route={"guidance": {"on_failure": on_failure}})
    reason = "teacher_circuit_open" if student == "small" else "quality_fallback"
    assert (plan.student, plan.unguided) == (student, reason)


def test_a_prompt_that_the_teacher_does_not_take_is_answered_by_the_student() -> None:
    chats_only = {"big": EngineSnapshot(Continuation("trailing"), takes_prompts=False)}
    plan = planned(BY_TEACHER, PROMPT, snapshots=chats_only)
    assert (plan.student, plan.unguided) == ("small", "quality_fallback")


@pytest.mark.parametrize("off", [BY_STUDENT, BY_TEACHER])
def test_a_request_that_gets_no_guidance_anyway_keeps_its_engine_and_reason(off: GuidanceOff) -> None:
    plan = planned(off, WITH_TOOLS)
    assert (plan.student, plan.unguided) == ("small", "tools")


def test_a_callers_header_does_not_bring_guidance_back() -> None:
    overrides = {"modes": ["guided"], "guidance_tokens": 99}
    route = {"mode": "teacher", "overrides": overrides}
    plan = planned(BY_STUDENT, route=route, headers={"x-gkt-mode": "guided", "x-gkt-guidance-tokens": "9"})
    assert (plan.guidance, plan.unguided) == (None, "switched_off")


def test_an_operators_run_is_guided() -> None:
    plan = planned(BY_STUDENT, override=RouteOverride("guided"))
    assert plan.guidance is not None
    assert plan.unguided is None


@pytest.mark.parametrize("off", [BY_STUDENT, BY_TEACHER])
def test_shadows_make_no_guidance(off: GuidanceOff) -> None:
    assert planned(None, route={"mode": "shadow"}).shadow is not None
    plan = planned(off, route={"mode": "shadow"})
    assert (plan.shadow, plan.unguided, plan.student) == (None, None, "big")


@pytest.mark.parametrize("off", [BY_STUDENT, BY_TEACHER])
def test_a_device_gets_the_reason_instead_of_guidance(off: GuidanceOff) -> None:
    policy = policy_of(guidance={"on_failure": "reject"})
    plan = resolve_guidance(policy, policy.routes[0], CHAT, off=off)
    assert (plan.mode, plan.guidance, plan.unguided) == ("guidance", None, off.unguided)
    unguided = policy_of(mode="student")
    with pytest.raises(RouteWithoutGuidance):
        resolve_guidance(unguided, unguided.routes[0], CHAT, off=off)


def test_only_answers_with_the_routes_own_settings_count_toward_its_bound() -> None:
    overrides = {"overrides": {"guidance_tokens": 99}}
    counted = planned(None, route={"quality": QUALITY}).quality
    unbound = planned(None, route={"quality": {"sample": 1}}).quality
    overridden = planned(None, route={"quality": QUALITY} | overrides, headers={"x-gkt-guidance-tokens": "1"}).quality
    assert counted is not None
    assert unbound is not None
    assert overridden is not None
    assert counted.window is not None
    assert (unbound.window, overridden.window) == (None, None)


def test_variants_of_a_split_are_compared_separately_and_fall_back_together() -> None:
    variants = {"short": {"share": 0.5, "guidance": {"tokens": 10}}, "long": {"share": 0.5}}
    route = {"quality": QUALITY, "split": {"by": "caller", "variants": variants}}
    compared = {}
    for number in range(20):
        plan = planned(None, route=route, key_id=f"key-{number}")
        assert plan.split is not None
        assert plan.quality is not None
        compared.setdefault(plan.split.variant, set()).add(plan.quality.window)
        off = planned(BY_STUDENT, route=route, key_id=f"key-{number}")
        assert (off.unguided, off.split) == ("switched_off", None)
    windows = [window for (window,) in compared.values()]
    assert len(windows) == len(set(windows)) == 2
    assert None not in windows


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"guidance": {"tokens": 41}}, False),
        ({"student": "other"}, False),
        ({"when": {"contains": "x"}}, False),
        ({"quality": QUALITY | {"compare": "exact"}}, False),
        ({"quality": QUALITY | {"min_agreement": 0.9, "max_budget": 7}}, True),
        ({"show_cost": False}, True),
    ],
)
def test_comparisons_of_other_settings_count_separately(change: dict[str, Any], *, same: bool) -> None:
    before, after = (policy_of(quality=QUALITY), policy_of(**({"quality": QUALITY} | change)))
    assert (before.routes[0].quality_window == after.routes[0].quality_window) == same


def test_all_processes_count_the_same_settings_together() -> None:
    """The hash does not depend on a process: its hash seed or its addresses."""
    route = {"quality": QUALITY, "when": {"contains": "a", "matches": "b+", "header": {"x-a": "b"}}}
    route |= {"guidance": {"tokens": 30, "allow_fields": ["b", "a"]}}
    code = (
        "import sys, json; from tests.policy.test_guidance_off import policy_of; "
        "print(policy_of(**json.loads(sys.argv[1])).routes[0].quality_window)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, orjson.dumps(route).decode()], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == policy_of(**route).routes[0].quality_window
