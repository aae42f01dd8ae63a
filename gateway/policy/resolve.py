"""Resolve a route, a request and the state of the engines to a Plan. Pure; all later steps read only the Plan."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from msgspec import structs

from gateway.capabilities.continuation import Continuation
from gateway.capabilities.reasoning import takes_prefix
from gateway.errors import InvalidRequest
from gateway.policy.length import choose_length
from gateway.policy.overrides import apply_headers, refuse_overrides
from gateway.policy.plan import GuidancePlan, Plan, QualityPlan, RetryPlan, StudentPlan
from gateway.policy.routing import NO_HEADERS
from gateway.policy.unguided import judge_request
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.capabilities.continuation import Known
    from gateway.policy.length import LengthChoice
    from gateway.policy.overrides import RouteOverride
    from gateway.policy.plan import EngineSnapshot
    from gateway.policy.quality import QualityRule
    from gateway.policy.schema import Route, TenantPolicy
    from gateway.protocol.chat import ChatRequest
    from gateway.protocol.requests import CompletionRequest


# How any engine continues a raw prompt: from its end.
RAW = Continuation("completions", echo=False)


def resolve(
    policy: TenantPolicy,
    route: Route,
    request: CompletionRequest,
    snapshot_of: Callable[[str], EngineSnapshot],
    random_value: Callable[[], float] = random.random,
    headers: Mapping[str, str] = NO_HEADERS,
    override: RouteOverride | None = None,
) -> Plan:
    """Return the plan of a request.

    Args:
        snapshot_of: returns the current state of an engine.
        random_value: returns a random number from 0 to 1, for weighted students and for samples.
        headers: the caller's headers, which may request overrides that the policy allows.
        override: an operator's override, which needs no permission; headers are ignored then.

    Raises:
        InvalidRequest: the route does not serve this kind of request, or a header requests an override that the
            policy does not allow.
    """
    if route.mode == "embeddings":
        raise InvalidRequest(f"'{route.model}' makes embeddings: send this to /v1/embeddings.", param="model")
    route = override.apply(route) if override is not None else apply_headers(policy, route, headers)
    if route.mode != "shadow":
        plan = _plan(policy, route, request, snapshot_of, random_value, headers)
        # The sample covers callers, not operators.
        return plan if override is not None else _compared(plan, policy, route, request, snapshot_of, random_value)
    served = _plan(
        policy, route.model_copy(update={"mode": route.shadow.serves}), request, snapshot_of, random_value, headers
    )
    if random_value() >= route.shadow.sample:
        return served
    try:
        shadow = _plan(policy, route.model_copy(update={"mode": "guided"}), request, snapshot_of, random_value, headers)
    except InvalidRequest:
        return served  # no student can serve it; the caller still gets the answer
    return structs.replace(served, shadow=shadow)


def _compared(
    plan: Plan,
    policy: TenantPolicy,
    route: Route,
    request: CompletionRequest,
    snapshot_of: Callable[[str], EngineSnapshot],
    random_value: Callable[[], float],
) -> Plan:
    """Return the plan, with a comparison if the request is sampled."""
    rule = route.quality
    # Constrained answers and several choices have no single text to compare.
    if rule is None or plan.guidance is None or not plan.guidance.may_answer or random_value() >= rule.sample:
        return plan
    try:
        teacher = _plan(
            policy, route.model_copy(update={"mode": "teacher"}), request, snapshot_of, random_value, NO_HEADERS
        )
    except InvalidRequest:
        return plan  # the teacher cannot answer it alone
    return structs.replace(plan, quality=QualityPlan(rule, teacher, _judge(rule, snapshot_of)))


def _judge(rule: QualityRule, snapshot_of: Callable[[str], EngineSnapshot]) -> Plan | None:
    if rule.compare != "judge" or rule.judge is None:
        return None
    return Plan(
        mode="student",
        students=(StudentPlan(rule.judge, None, snapshot_of(rule.judge).reasoning),),
        guidance=None,
        unguided=None,
        baseline=rule.judge,
        max_tokens=None,
        show_cost=False,
    )


def _plan(
    policy: TenantPolicy,
    route: Route,
    request: CompletionRequest,
    snapshot_of: Callable[[str], EngineSnapshot],
    random_value: Callable[[], float],
    headers: Mapping[str, str],
) -> Plan:
    mode = route.mode
    snapshots = [(engine, snapshot_of(engine)) for engine in _in_order(route, random_value)]
    if isinstance(request, TextRequest):
        snapshots = [(engine, snapshot) for engine, snapshot in snapshots if snapshot.takes_prompts]
        if not snapshots:
            raise InvalidRequest(
                f"'prompt' cannot be answered by '{route.model}': its models take chats alone.", param="prompt"
            )
    if len(snapshots) > 1:
        snapshots.sort(key=lambda pair: pair[1].cooldown)
    continuations = [
        RAW if isinstance(request, TextRequest) else _usable_continuation(request, snapshot)
        for _, snapshot in snapshots
    ]
    first = continuations[0]
    max_tokens = request.max_tokens if request.max_tokens is not None else route.default_max_tokens
    unguided, constrained = judge_request(route, request, first, max_tokens) if mode == "guided" else (None, False)
    length = None
    if mode == "guided" and unguided is None and route.guidance.tokens == "auto":
        length = choose_length(route.guidance.auto, request, max_tokens, headers)
        unguided = length.unguided
    guided = mode == "guided" and unguided is None
    # An engine that regenerates the guidance may change it, so it must not be streamed ahead.
    ahead = first is not None and (first == "not_probed" or not first.writes_again)
    return Plan(
        mode=mode,
        students=tuple(
            StudentPlan(engine, None if continuation == "not_probed" else continuation, snapshot.reasoning)
            for (engine, snapshot), continuation in zip(snapshots, continuations, strict=True)
        ),
        guidance=_guidance(
            policy,
            route,
            request,
            max_tokens,
            length,
            prefix=first is not None,
            ahead=ahead,
            may_answer=not constrained,
        )
        if guided
        else None,
        unguided=unguided,
        baseline=route.baseline,
        max_tokens=max_tokens,
        show_cost=route.show_cost,
        retries=_retries(route),
        length=length,
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
    return Plan(
        mode=route.mode,
        students=tuple(StudentPlan(engine, None) for engine in engines),
        guidance=None,
        unguided=None,
        baseline=route.baseline,
        max_tokens=0,
        show_cost=route.show_cost,
        retries=_retries(route),
    )


def _retries(route: Route) -> RetryPlan:
    rule = route.retries
    return RetryPlan(rule.num_retries, rule.backoff_s, rule.max_per_request, rule.share, rule.floor)


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


def _usable_continuation(chat: ChatRequest, snapshot: EngineSnapshot) -> Known:
    """Return how an engine continues this chat; None if that drops a part of it or makes the model reason."""
    known = snapshot.continuation
    if known is None or known == "not_probed":
        return known
    if known.unsupported(chat.body) is not None or not takes_prefix(snapshot.reasoning, chat.body):
        return None
    return known


def _guidance(
    policy: TenantPolicy,
    route: Route,
    request: CompletionRequest,
    max_tokens: int | None,
    length: LengthChoice | None,
    *,
    prefix: bool,
    ahead: bool,
    may_answer: bool,
) -> GuidancePlan:
    rule = route.guidance
    tokens = rule.max_tokens if length is None else length.tokens
    if max_tokens is not None:
        # A visible hint is no answer, so at least one token is left for the student.
        shown_hint = rule.placement == "prefix" and not rule.resolved_projection.teacher_may_finish
        tokens = min(tokens, max_tokens - 1 if shown_hint else max_tokens)
    assert route.teacher is not None
    assert rule.placement is not None
    return GuidancePlan(
        teacher=route.teacher,
        tokens=tokens,
        projection=rule.resolved_projection,
        placement="context" if rule.placement == "prefix" and not prefix else rule.placement,
        boundary=rule.boundary,
        temperature=rule.temperature,
        top_p=rule.top_p,
        seed=rule.seed,
        max_wait_s=rule.max_wait_s,
        deadline_s=rule.max_deadline_s,
        auto_deadline=rule.auto_deadline if rule.deadline == "auto" else None,
        required=rule.on_failure == "reject",
        stream=rule.stream
        and request.stream
        and ahead
        and rule.placement == "prefix"
        and rule.resolved_projection.teacher_may_finish,
        may_answer=may_answer,
        reject_when_full=rule.on_queue_full == "reject",
        tenant=policy.tenant,
        weight=policy.weight,
        share="" if rule.share == "all" else policy.tenant,
        cache_ttl_s=rule.cache_ttl_s if rule.temperature == 0 else 0.0,
    )
