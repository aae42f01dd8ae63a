"""Resolve a route, a request and the state of the engines to a Plan. Pure; all later steps read only the Plan."""

from __future__ import annotations

import random
from contextlib import suppress
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

from msgspec import structs

from gateway.errors import InvalidRequest, RouteWithoutGuidance
from gateway.policy.affinity import NO_LOAD, conversation_key, conversation_order
from gateway.policy.constraints import (
    CALLER_PREFILL,
    FIELD_NOT_KNOWN,
    MIN_TOKENS,
    TOKEN_LIMIT,
    UNCONSTRAINED,
    placements,
    shared_constraints,
    unknown_field,
)
from gateway.policy.plan import EngineSnapshot, GuidancePlan, Plan, QualityPlan, StudentPlan
from gateway.policy.plan_variants import without_guidance
from gateway.policy.routing import NO_HEADERS, refuse_overrides, served_route
from gateway.protocol.capabilities.continuation import Continuation
from gateway.protocol.capabilities.reasoning import takes_prefix
from gateway.protocol.chat import ChatRequest
from gateway.protocol.text import DEFAULT_TEXT_TOKENS, TextRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gateway.policy.affinity import EngineLoad
    from gateway.policy.constraints import API, Placements
    from gateway.policy.guidance_off import GuidanceOff
    from gateway.policy.projections import Placement
    from gateway.policy.route_rules import QualityRule
    from gateway.policy.routing import RouteOverride
    from gateway.policy.schema import Mode, Route, TenantPolicy
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.continuation import Known
    from gateway.protocol.requests import CompletionRequest

# How any engine continues a raw prompt: from its end.
RAW = Continuation("completions", echo=False)
# A device continues the guidance in its own way, so the gateway's student does not matter.
_DEVICE = EngineSnapshot(Continuation("trailing", echo=False))


def resolve(
    policy: TenantPolicy,
    route: Route,
    request: CompletionRequest,
    snapshot_of: Callable[[str], EngineSnapshot],
    random_value: Callable[[], float] = random.random,
    headers: Mapping[str, str] = NO_HEADERS,
    override: RouteOverride | None = None,
    load_of: Callable[[str], EngineLoad] = lambda _: NO_LOAD,
    key_id: str | None = None,
    off: GuidanceOff | None = None,
) -> Plan:
    """Return the plan of a request.

    Args:
        random_value: returns a random number from 0 to 1, for weighted students and for samples.
        headers: the caller's headers, which may request overrides that the policy allows, and identify a conversation.
        override: an operator's override, which needs no permission; overrides in headers are ignored then.
        load_of: returns the calls of an engine, for weighted students with affinity.
        key_id: the caller's API key, which may choose the variant of a split; None: the route itself serves the
            request, whatever its split.
        off: the switch that applies to the request. An operator's override is guided all the same.

    Raises:
        InvalidRequest: the route does not serve this kind of request, or a header requests an override that the
            policy does not allow.
    """
    if route.mode == "embeddings":
        raise InvalidRequest(f"'{route.model}' makes embeddings: send this to /v1/embeddings.", param="model")
    configured, split = route, None
    if override is not None:
        route, off = override.apply(route), None
    else:
        route, split = served_route(policy, route, request, headers, key_id)
    collect = route.collect if override is None else None  # operators' requests are not collected
    if collect is not None and random_value() >= collect.sample:
        collect = None

    def plan_in(mode: Mode, headers: Mapping[str, str]) -> Plan:
        in_mode = route if mode == route.mode else route.model_copy(update={"mode": mode})
        plan = _plan(policy, in_mode, request, snapshot_of, random_value, headers, load_of)
        return plan if collect is None else structs.replace(plan, collect=collect)

    if route.mode == "shadow":
        plan = plan_in(route.shadow.serves, headers)
        if off is None and random_value() < route.shadow.sample:
            with suppress(InvalidRequest):  # no student can serve it; the caller still gets the answer
                return structs.replace(plan, shadow=plan_in("guided", headers))
        return plan
    plan = plan_in(route.mode, headers)
    if off is not None and route.teacher is not None and plan.guidance is not None:
        required = route.guidance.on_failure == "reject"
        teacher_plan = partial(plan_in, "teacher", headers)
        # Without the facts of a split: the answer does not show what the variant does.
        return without_guidance(plan, route.teacher, off, snapshot_of, teacher_plan, required=required)
    if split is not None:
        plan = structs.replace(plan, split=split)
    rule, guided = route.quality, plan.guidance
    # The sample covers callers, not operators. Constrained answers and several choices have no single text to compare.
    if override is not None or rule is None or guided is None or not guided.may_answer or random_value() >= rule.sample:
        return plan
    with suppress(InvalidRequest):  # the teacher cannot answer it alone
        teacher = plan_in("teacher", NO_HEADERS)
        # An answer with a caller's own settings does not show how good the route's are.
        counts = rule.min_agreement is not None and (split is not None or route is configured)
        window = route.quality_window if counts else None
        return structs.replace(plan, quality=QualityPlan(rule, teacher, _judge(rule, snapshot_of), window))
    return plan


def _judge(rule: QualityRule, snapshot_of: Callable[[str], EngineSnapshot]) -> Plan | None:
    if rule.compare != "judge" or rule.judge is None:
        return None
    judge = StudentPlan(rule.judge, None, snapshot_of(rule.judge).reasoning)
    return Plan("student", (judge,), None, None, baseline=rule.judge, max_tokens=None, show_cost=False)


def _plan(
    policy: TenantPolicy,
    route: Route,
    request: CompletionRequest,
    snapshot_of: Callable[[str], EngineSnapshot],
    random_value: Callable[[], float],
    headers: Mapping[str, str],
    load_of: Callable[[str], EngineLoad],
) -> Plan:
    students: list[tuple[bool, StudentPlan, Known]] = []  # each with its cooldown and continuation
    for engine in _in_order(route, random_value):
        snapshot = snapshot_of(engine)
        if isinstance(request, ChatRequest):
            known = _usable_continuation(request, snapshot)
        elif snapshot.takes_prompts:
            known = RAW
        else:
            continue
        student = StudentPlan(
            engine, None if isinstance(known, str) else known, snapshot.reasoning, snapshot.counts_chunks
        )
        students.append((snapshot.cooldown, student, known))
    if not students:
        raise InvalidRequest(
            f"'prompt' cannot be answered by '{route.model}': its models take chats alone.", param="prompt"
        )
    if len(students) > 1:
        _sort_students(students, policy, route, request, headers, load_of)
    continuation = students[0][2]
    max_tokens = request.max_tokens if request.max_tokens is not None else route.default_max_tokens
    unguided = unguided_field = guidance = constraints = None
    if route.mode == "guided":
        limit = max_tokens
        if limit is None and isinstance(request, TextRequest):
            limit = DEFAULT_TEXT_TOKENS  # an engine's own default would not include the guidance
        api: API = "chat" if isinstance(request, ChatRequest) else "completions"
        allowed = placements(request.body, api, route.guidance.allow_fields)
        if allowed.shared:
            engines = [student for _, student, _ in students]
            constraints = _teacher_constraints(route, request, allowed.shared, engines, snapshot_of)
            if constraints is not None:
                allowed = UNCONSTRAINED
        unguided = _reason_against(route, request, continuation, limit, allowed)
        if unguided is None:
            guidance = _guidance(policy, route, request, limit, continuation, allowed, constraints)
            max_tokens = limit
        elif unguided == FIELD_NOT_KNOWN:
            unguided_field = unknown_field(request.body, api, route.guidance.allow_fields)
    return Plan(
        mode=route.mode,
        students=tuple([student for _, student, _ in students]),
        guidance=guidance,
        unguided=unguided,
        baseline=route.baseline,
        max_tokens=max_tokens,
        show_cost=route.show_cost,
        names_engine=route.reply_model == "engine",
        unguided_field=unguided_field,
        retries=route.retries,
    )


def resolve_embeddings(
    route: Route,
    in_cooldown: Callable[[str], bool],
    random_value: Callable[[], float] = random.random,
    headers: Mapping[str, str] = NO_HEADERS,
) -> Plan:
    """Return the plan of a request for embeddings. Raises InvalidRequest as `resolve` does."""
    if route.mode != "embeddings":
        raise InvalidRequest(f"'{route.model}' makes no embeddings: it answers chats.", param="model")
    refuse_overrides(headers)
    engines = sorted(_in_order(route, random_value), key=in_cooldown)
    students = tuple(StudentPlan(engine, None) for engine in engines)
    return Plan(
        mode=route.mode,
        students=students,
        guidance=None,
        unguided=None,
        baseline=route.baseline,
        max_tokens=0,
        show_cost=route.show_cost,
        names_engine=route.reply_model == "engine",
        retries=route.retries,
    )


def _in_order(route: Route, random_value: Callable[[], float]) -> list[str]:
    """Return the engines that may complete an answer, in the order of calls."""
    if route.mode == "teacher":
        assert route.teacher is not None, "the schema refuses a route without the engines of its mode"
        return [route.teacher]
    students = route.all_students
    assert students, "the schema refuses a route without the engines of its mode"
    if len(students) == 1 or students[0].weight is None:
        return [one.model for one in students]
    # Weighted random order (Efraimidis and Spirakis, 2006).
    return [one.model for one in sorted(students, key=lambda one: -(random_value() ** (1 / (one.weight or 1.0))))]


def _sort_students(
    students: list[tuple[bool, StudentPlan, Known]],
    policy: TenantPolicy,
    route: Route,
    request: CompletionRequest,
    headers: Mapping[str, str],
    load_of: Callable[[str], EngineLoad],
) -> None:
    """Sort weighted students by the conversation and their loads. Students with an open circuit come last."""
    weights = {one.model: one.weight for one in route.all_students if one.weight is not None}
    if weights and route.affinity == "conversation":
        key = conversation_key(policy.tenant, request, headers)
        if key is not None:
            loads = {student.engine: load_of(student.engine) for cooldown, student, _ in students if not cooldown}
            order = conversation_order(key, weights, loads)
            students.sort(key=lambda one: order[one[1].engine])
    students.sort(key=itemgetter(0))


def _usable_continuation(chat: ChatRequest, snapshot: EngineSnapshot) -> Known:
    """Return how an engine continues this chat; None if that drops a part of it or makes the model reason."""
    known = snapshot.continuation
    if known is None or isinstance(known, str):  # faster than a comparison with "not_probed"
        return known
    if known.unsupported(chat.body) is not None or not takes_prefix(snapshot.reasoning, chat.body):
        return None
    return known


def _teacher_constraints(
    route: Route,
    request: CompletionRequest,
    fields: Sequence[str],
    students: Sequence[StudentPlan],
    snapshot_of: Callable[[str], EngineSnapshot],
) -> Json | None:
    """Return these fields if the teacher applies them to a prefix as the students do; None: it does not."""
    rule = route.guidance
    assert route.teacher is not None
    if rule.placement != "prefix" or not rule.resolved_projection.teacher_may_finish:
        return None
    teacher, *others = map(snapshot_of, (route.teacher, *(student.engine for student in students)))
    if students[0].continuation is None or not all(map(teacher.has_vocabulary_of, others)):
        return None
    if not all(one.constraints.issuperset(fields) for one in (teacher, *others)):
        return None
    return shared_constraints(request.body, fields)


def _reason_against(
    route: Route, request: CompletionRequest, continuation: Known, max_tokens: int | None, allowed: Placements
) -> str | None:
    """Return the reason in the request against guidance.

    A student that cannot continue an answer gets guidance in its prompt.
    """
    prefix = route.guidance.placement == "prefix"
    reason = allowed.prefix if prefix else allowed.context
    if reason is None and isinstance(request, ChatRequest):
        if request.messages[-1]["role"] == "assistant":
            reason = CALLER_PREFILL
        elif prefix and isinstance(continuation, str):
            reason = "student_not_probed"
    if reason is None and max_tokens is not None and max_tokens < MIN_TOKENS:
        reason = TOKEN_LIMIT
    return reason


def _guidance(
    policy: TenantPolicy,
    route: Route,
    request: CompletionRequest,
    max_tokens: int | None,
    continuation: Known,
    allowed: Placements,
    constraints: Json | None,
) -> GuidancePlan:
    rule = route.guidance
    assert route.teacher is not None
    assert rule.placement is not None
    projection, tokens = rule.resolved_projection, rule.tokens
    prefix, may_finish = rule.placement == "prefix", projection.teacher_may_finish
    if max_tokens is not None:
        # A visible hint is no answer, so at least one token is left for the student.
        tokens = min(tokens, max_tokens - 1 if prefix and not may_finish else max_tokens)
    placement: Placement = "context" if prefix and continuation is None else rule.placement
    # An engine that regenerates the guidance may change it, so it must not be streamed ahead.
    ahead = continuation is not None and (isinstance(continuation, str) or not continuation.writes_again)
    return GuidancePlan(
        teacher=route.teacher,
        tokens=tokens,
        projection=projection,
        placement=placement,
        boundary=rule.boundary,
        temperature=rule.temperature,
        top_p=rule.top_p,
        seed=rule.seed,
        max_wait_s=rule.max_wait_s,
        deadline_s=rule.max_deadline_s,
        auto_deadline=rule.auto_deadline if rule.deadline == "auto" else None,
        required=rule.on_failure == "reject",
        # Constrained guidance may end before its last word, so it is not shown before it is complete.
        stream=rule.stream and request.stream and ahead and prefix and may_finish and constraints is None,
        may_answer=allowed.prefix is None,
        reject_when_full=rule.on_queue_full == "reject",
        tenant=policy.tenant,
        weight=policy.weight,
        share="" if rule.share == "all" else policy.tenant,
        cache_ttl_s=rule.cache_ttl_s if rule.temperature == 0 else 0.0,
        warm_student=rule.warm_student and placement == "prefix",
        constraints=constraints,
    )


def resolve_guidance(
    policy: TenantPolicy,
    route: Route,
    request: ChatRequest,
    headers: Mapping[str, str] = NO_HEADERS,
    off: GuidanceOff | None = None,
) -> Plan:
    """Return the plan of a device's request: guidance by the route's policy, without a student.

    `off` is the switch that applies: the device then completes the answer without guidance.

    Raises:
        RouteWithoutGuidance: the route gives no guidance.
        InvalidRequest: a header requests an override that the policy does not allow.
    """
    plan = None if route.mode == "embeddings" else resolve(policy, route, request, lambda _: _DEVICE, headers=headers)
    if plan is None or plan.mode != "guided":
        raise route_without_guidance(route)
    # The warm-up uses the gateway's student, which does not answer this request.
    guidance = structs.replace(plan.guidance, warm_student=False) if plan.guidance is not None else None
    if off is not None and guidance is not None:
        plan, guidance = structs.replace(plan, unguided=off.unguided), None
    return structs.replace(
        plan, mode="guidance", students=(), guidance=guidance, shadow=None, quality=None, collect=None
    )


def route_without_guidance(route: Route) -> RouteWithoutGuidance:
    """Return the error for a device whose route gives no guidance."""
    return RouteWithoutGuidance(
        f"'{route.model}' gives no guidance: its mode is {route.mode}. Name a route of mode guided, or let the policy "
        "say 'mode: guided' here, with a teacher.",
        param="model",
    )
