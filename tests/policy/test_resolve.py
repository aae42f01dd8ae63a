"""Plans from policies: guidance, students, shadows and comparisons."""

from __future__ import annotations

import random
from typing import Any

import orjson
import pytest

from gateway.errors import InvalidRequest
from gateway.policy.plan import EngineSnapshot, GuidancePlan, Plan, StudentPlan
from gateway.policy.resolve import RAW, resolve, resolve_embeddings
from gateway.policy.route_rules import CollectRule
from gateway.policy.routing import RouteOverride
from gateway.policy.schema import TenantPolicy
from gateway.protocol.capabilities.continuation import Continuation, Known
from gateway.protocol.chat import parse_chat
from gateway.protocol.text import parse_text_completion

CHAT = parse_chat(orjson.dumps({"model": "chat", "messages": [{"role": "user", "content": "Why?"}]}))


def guidance(weight: float = 1.0, **rule: Any) -> GuidancePlan:
    route = {"model": "chat", "mode": "guided", "teacher": "big", "student": "small", "guidance": rule}
    policy = TenantPolicy.model_validate({"tenant": "acme", "weight": weight, "routes": [route]})
    plan = resolve(policy, policy.routes[0], CHAT, lambda _: EngineSnapshot(Continuation("trailing"))).guidance
    assert plan is not None
    return plan


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        (Continuation("trailing"), None),
        (None, None),
        ("not_probed", "student_not_probed"),
    ],
)
@pytest.mark.parametrize("placement", ["prefix", "context"])
def test_a_prefix_wants_a_student_that_is_known_to_continue(known: Known, reason: str | None, placement: str) -> None:
    """Placement context works with any student."""
    route = {"model": "chat", "mode": "guided", "teacher": "big", "student": "small"}
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [route | {"guidance": {"placement": placement}}]})
    plan = resolve(policy, policy.routes[0], CHAT, lambda _: EngineSnapshot(known))
    assert plan.unguided == (reason if placement == "prefix" else None)
    assert (plan.guidance is None) == (plan.unguided is not None)


def test_a_student_whose_mode_drops_parts_of_the_chat_gets_the_guidance_as_context() -> None:
    """A raw prompt cannot carry an image; a student that continues chats still continues."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    chat = parse_chat(orjson.dumps({"model": "chat", "messages": [{"role": "user", "content": [image]}]}))
    route = {"model": "chat", "mode": "guided", "teacher": "big", "students": ["small", "small-b"]}
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [route]})
    ways = {"small": Continuation("completions"), "small-b": Continuation("trailing")}
    plan = resolve(policy, policy.routes[0], chat, lambda engine: EngineSnapshot(ways[engine]))
    assert [one.continuation for one in plan.students] == [None, ways["small-b"]]
    assert plan.guidance is not None
    assert plan.guidance.placement == "context"
    plan = resolve(policy, policy.routes[0], CHAT, lambda engine: EngineSnapshot(ways[engine]))
    assert [one.continuation for one in plan.students] == list(ways.values())
    assert plan.guidance is not None
    assert plan.guidance.placement == "prefix"


@pytest.mark.parametrize(
    ("rule", "known", "warm"),
    [
        ({}, Continuation("trailing"), True),
        ({}, Continuation("instruct"), True),
        ({}, None, False),
        ({"placement": "context"}, Continuation("trailing"), False),
        ({"warm_student": False}, Continuation("trailing"), False),
    ],
)
def test_a_student_that_continues_a_prefix_is_warmed(rule: dict[str, Any], known: Known, *, warm: bool) -> None:
    route = {"model": "chat", "mode": "guided", "teacher": "big", "student": "small"}
    route |= {"guidance": {"warm_student": True} | rule}
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [route]})
    plan = resolve(policy, policy.routes[0], CHAT, lambda _: EngineSnapshot(known))
    assert plan.guidance is not None
    assert plan.guidance.warm_student is warm


@pytest.mark.parametrize(("mode", "ahead"), [("trailing", True), ("completions", True), ("instruct", False)])
def test_guidance_is_not_streamed_before_a_student_that_repeats_it(mode: Any, *, ahead: bool) -> None:
    """The student may begin differently, so the teacher's text is not streamed."""
    chat = parse_chat(orjson.dumps({**CHAT.body, "stream": True}))
    route = {"model": "chat", "mode": "guided", "teacher": "big", "student": "small"}
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [route]})
    plan = resolve(policy, policy.routes[0], chat, lambda _: EngineSnapshot(Continuation(mode)))
    assert plan.guidance is not None
    assert (plan.guidance.placement, plan.guidance.stream) == ("prefix", ahead)


def test_a_ticket_takes_its_tenants_share() -> None:
    assert (guidance(2.5).tenant, guidance(2.5).weight) == ("acme", 2.5)


@pytest.mark.parametrize(("temperature", "kept_s"), [(0.0, 60.0), (0.01, 0.0), (1.0, 0.0)])
def test_only_greedy_guidance_is_kept(temperature: float, kept_s: float) -> None:
    """Sampled guidance is random, so each request gets its own."""
    assert guidance(temperature=temperature, cache_ttl="60s").cache_ttl_s == kept_s


def test_guidance_is_private_to_the_tenant_unless_its_policy_has_all() -> None:
    assert guidance().share == "acme"
    assert guidance(share="all").share == ""


def test_a_full_queue_and_a_teacher_that_fails_are_two_decisions() -> None:
    """A full queue and a failed teacher are configured separately."""
    plan = guidance(on_queue_full="reject")
    assert (plan.reject_when_full, plan.required) == (True, False)
    plan = guidance(on_failure="reject")
    assert (plan.reject_when_full, plan.required) == (False, True)


def order(students: list[Any], resting: str = "", random_value: list[float] | None = None) -> list[str]:
    """Return the order in which the students are called."""
    policy = TenantPolicy.model_validate(
        {"tenant": "acme", "routes": [{"model": "chat", "mode": "student", "students": students, "affinity": "none"}]}
    )
    drawn = iter(random_value or [])
    plan = resolve(
        policy,
        policy.routes[0],
        CHAT,
        lambda engine: EngineSnapshot(Continuation("trailing"), cooldown=engine == resting),
        lambda: next(drawn),
    )
    return [student.engine for student in plan.students]


def test_students_are_called_in_the_order_of_the_file() -> None:
    assert order(["a", "b", "c"]) == ["a", "b", "c"]


def test_a_student_with_an_open_circuit_is_called_last() -> None:
    """The other students keep their order."""
    assert order(["a", "b", "c"], resting="a") == ["b", "c", "a"]


def test_students_share_requests_by_weight() -> None:
    """Each student is first in proportion to its weight, within statistical error."""
    chance = random.Random(7)
    students = [{"model": "a", "weight": 3}, {"model": "b", "weight": 1}]
    firsts = [order(students, random_value=[chance.random(), chance.random()])[0] for _ in range(2000)]
    assert 0.72 < firsts.count("a") / len(firsts) < 0.78
    assert set(order(students, random_value=[0.5, 0.5])) == {"a", "b"}


def test_a_student_without_continuation_gets_the_guidance_as_context() -> None:
    """The policy's placement applies to students that can continue."""
    route = {"model": "chat", "mode": "guided", "teacher": "big", "student": "small"}
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [route]})
    for known, placement in ((Continuation("trailing"), "prefix"), (None, "context")):
        plan = resolve(policy, policy.routes[0], CHAT, lambda _, known=known: EngineSnapshot(known))
        assert plan.guidance is not None
        assert plan.guidance.placement == placement


def test_a_route_serves_chats_or_embeddings_and_errors_name_the_path() -> None:
    """On the other path the request is invalid, and the message names the right path."""
    vectors = {"model": "vectors", "mode": "embeddings", "student": "small"}
    chat = {"model": "chat", "mode": "student", "student": "small"}
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [vectors, chat]})
    plan = resolve_embeddings(policy.routes[0], lambda _: False)
    assert (plan.mode, plan.student, plan.baseline, plan.guidance) == ("embeddings", "small", "small", None)
    with pytest.raises(InvalidRequest, match="'vectors' makes embeddings: send this to /v1/embeddings") as caught:
        resolve(policy, policy.routes[0], CHAT, lambda _: EngineSnapshot(None))
    assert caught.value.param == "model"
    with pytest.raises(InvalidRequest, match="'chat' makes no embeddings") as caught:
        resolve_embeddings(policy.routes[1], lambda _: False)
    assert caught.value.param == "model"


def prompts(students: list[str], **request: Any) -> Plan:
    """Return the plan of a raw prompt for students that continue no chat; `lite` takes only chats."""
    text = parse_text_completion(orjson.dumps({"model": "chat", "prompt": "Q: Why?\nA:", **request}))
    route = {"model": "chat", "mode": "guided", "teacher": "big", "students": students}
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [route]})
    return resolve(
        policy, policy.routes[0], text, lambda engine: EngineSnapshot("not_probed", takes_prompts=engine != "lite")
    )


def test_every_engine_with_raw_prompts_continues_them() -> None:
    """Chat continuation need not be known; students without raw prompts are skipped."""
    plan = prompts(["lite", "small", "other"])
    assert plan.students == (StudentPlan("small", RAW), StudentPlan("other", RAW))
    assert plan.guidance is not None
    assert (plan.guidance.placement, plan.unguided) == ("prefix", None)


def test_a_raw_prompt_for_chat_models_is_rejected_without_cost() -> None:
    """The error names the field, and the route by its public name."""
    with pytest.raises(InvalidRequest, match="'chat': its models take chats alone") as refused:
        prompts(["lite"])
    assert refused.value.param == "prompt"


@pytest.mark.parametrize(
    ("reasoning", "effort", "placement"),
    [
        ("none", "high", "prefix"),
        ("switchable", None, "prefix"),
        ("switchable", "high", "context"),
        ("always", None, "context"),
    ],
)
def test_a_reasoning_student_gets_the_guidance_as_context(reasoning: Any, effort: str | None, placement: str) -> None:
    """A prefix would be treated as reasoning."""
    route = {"model": "chat", "mode": "guided", "teacher": "big", "student": "small"}
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [route]})
    body = {"model": "chat", "messages": [{"role": "user", "content": "Why?"}], "reasoning_effort": effort}
    snapshot = EngineSnapshot(Continuation("trailing"), reasoning=reasoning)
    plan = resolve(policy, policy.routes[0], parse_chat(orjson.dumps(body)), lambda _: snapshot)
    assert plan.guidance is not None
    assert plan.guidance.placement == placement


SHADOW = {"model": "chat", "mode": "shadow", "teacher": "big", "student": "small"}


def shadowed(
    request: Any = CHAT, random_value: float = 0.5, snapshot: EngineSnapshot | None = None, **shadow: Any
) -> Plan:
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [SHADOW | {"shadow": shadow}]})
    seen = snapshot or EngineSnapshot(Continuation("trailing"))
    return resolve(policy, policy.routes[0], request, lambda _: seen, lambda: random_value)


@pytest.mark.parametrize(("serves", "by"), [("teacher", "big"), ("student", "small")])
def test_a_shadow_is_planned_for_answers_of_a_single_engine(serves: str, by: str) -> None:
    """The caller's plan is that of the serving mode, and the shadow's plan is that of mode guided."""
    plan = shadowed(serves=serves)
    assert (plan.mode, plan.student, plan.guidance) == (serves, by, None)
    assert plan.shadow is not None
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [SHADOW | {"mode": "guided"}]})
    assert plan.shadow == resolve(policy, policy.routes[0], CHAT, lambda _: EngineSnapshot(Continuation("trailing")))


@pytest.mark.parametrize(("sample", "random_value", "cast"), [(1, 0.999, True), (0, 0.0, False), (0.1, 0.09, True),
                                                       (0.1, 0.1, False)])  # fmt: skip
def test_the_policys_fraction_of_requests_has_a_shadow(sample: float, random_value: float, *, cast: bool) -> None:
    assert (shadowed(random_value=random_value, sample=sample).shadow is not None) == cast


def test_a_request_that_the_students_cannot_take_is_answered_without_a_shadow() -> None:
    """The teacher answers the request."""
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [SHADOW]})
    text = parse_text_completion(orjson.dumps({"model": "chat", "prompt": "Q: Why?\nA:"}))
    plan = resolve(
        policy, policy.routes[0], text, lambda engine: EngineSnapshot("not_probed", takes_prompts=engine != "small")
    )
    assert (plan.mode, plan.shadow) == ("teacher", None)


GUIDED = {"model": "chat", "mode": "guided", "teacher": "big", "student": "small"}


def compared(
    request: Any = CHAT, random_value: float = 0.0, override: RouteOverride | None = None, **route: Any
) -> Plan:
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [GUIDED | {"quality": {"sample": 0.1}} | route]})
    seen = EngineSnapshot(Continuation("trailing"))
    return resolve(policy, policy.routes[0], request, lambda _: seen, lambda: random_value, override=override)


def test_a_sampled_guided_answer_is_compared_with_mode_teacher() -> None:
    plan = compared(quality={"sample": 0.1, "compare": "judge", "judge": "grader"}, default_max_tokens=70)
    assert plan.guidance is not None
    assert plan.quality is not None
    policy = TenantPolicy.model_validate(
        {"tenant": "acme", "routes": [GUIDED | {"mode": "teacher", "default_max_tokens": 70}]}
    )
    assert plan.quality.teacher == resolve(
        policy, policy.routes[0], CHAT, lambda _: EngineSnapshot(Continuation("trailing"))
    )
    assert plan.quality.judge is not None
    assert (plan.quality.judge.student, plan.quality.judge.guidance) == ("grader", None)
    assert compared().quality is not None
    assert compared(random_value=0.1).quality is None, "beyond the sample"


@pytest.mark.parametrize("short", ["5%", 0.05])
def test_a_part_alone_is_short_for_the_sample_of_the_routes_mode(short: Any) -> None:
    assert compared(quality=None, shadow=short).quality is None, "what stands there goes before"
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [GUIDED | {"shadow": short}]})
    assert policy.routes[0].quality is not None
    assert policy.routes[0].quality.sample == 0.05
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [SHADOW | {"shadow": short}]})
    assert (policy.routes[0].shadow.sample, policy.routes[0].quality) == (0.05, None)
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [GUIDED | {"shadow": {"sample": 0.05}}]})
    assert policy.routes[0].quality is None, "a whole rule is mode shadow's alone"


@pytest.mark.parametrize(
    "more", [{"n": 2}, {"tools": [{"type": "function"}]}, {"response_format": {"type": "json_object"}}]
)
@pytest.mark.parametrize("placement", ["prefix", "context"])
def test_answers_other_than_a_single_text_are_not_compared(more: dict[str, Any], placement: str) -> None:
    request = parse_chat(orjson.dumps(CHAT.body | more))
    assert compared(request, guidance={"placement": placement}).quality is None


def test_only_guided_answers_are_compared_and_none_of_an_operators_trial() -> None:
    assert compared(mode="student").quality is None
    assert compared(mode="teacher").quality is None
    assert compared(mode="shadow").quality is None
    plan = compared(override=RouteOverride("guided"))
    assert (plan.guidance is not None, plan.quality) == (True, None)


@pytest.mark.parametrize("mode", ["guided", "student", "teacher", "shadow"])
def test_a_part_of_the_requests_is_collected_if_the_route_consents(mode: str) -> None:
    assert compared(mode=mode).collect is None
    plan = compared(mode=mode, collect={"sample": 0.2}, random_value=0.1)
    assert plan.collect == CollectRule(sample=0.2)
    assert compared(mode=mode, collect={"sample": 0.2}, random_value=0.2).collect is None, "beyond the sample"
    assert compared(collect={"sample": 1}, override=RouteOverride("student")).collect is None, "an operator's trial"


def test_a_teacher_that_takes_no_prompts_is_compared_with_on_none() -> None:
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [GUIDED | {"quality": {"sample": 1}}]})
    text = parse_text_completion(orjson.dumps({"model": "chat", "prompt": "Q: Why?\nA:"}))
    plan = resolve(
        policy, policy.routes[0], text, lambda engine: EngineSnapshot("not_probed", takes_prompts=engine != "big")
    )
    assert (plan.guidance is not None, plan.quality) == (True, None)


@pytest.mark.parametrize(
    ("mode", "students", "retries", "most"),
    [
        ("student", ["small"], {}, 2),
        ("guided", ["small"], {}, 3),
        ("guided", ["small", "small-b"], {"num_retries": 5}, 7),
        ("guided", ["small"], {"num_retries": 0}, 1),
    ],
)
def test_a_request_may_make_a_bounded_number_of_calls_in_the_place_of_failed_ones(
    mode: str, students: list[str], retries: dict[str, int], most: int
) -> None:
    """num_retries, one for each further student, and one for the teacher of a guided answer."""
    route = {"model": "chat", "mode": mode, "teacher": "big", "students": students, "retries": retries}
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [route]})
    plan = resolve(policy, policy.routes[0], CHAT, lambda _: EngineSnapshot(Continuation("trailing")))
    assert plan.max_retries == most
