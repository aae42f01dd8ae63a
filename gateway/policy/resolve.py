"""(tenant's route, request, what is known of the engines) -> Plan. Pure; all later steps read the Plan only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.continuation import Continuation, Known
    from gateway.policy.schema import Placement, Route, TenantPolicy
    from gateway.protocol import ChatRequest

Mode = Literal["guided", "student", "teacher"]


@dataclass(frozen=True, slots=True)
class GuidancePlan:
    """How the teacher is asked for this request.

    Attributes:
        tokens: m, the teacher's tokens; never more than the caller's own limit.
        max_wait_s: how long the ticket may wait for its batch to fill.
        deadline_s: after this long the answer goes on without guidance, or fails if `required`.
        reject_when_full: whether the policy wants a 429 and no unguided answer when the tenant's queue is full.
        tenant, weight: whose share of the teacher it takes, and how large that is.
        share: "" where identical requests of every tenant may share one guidance; else those of this one alone.
        cache_ttl_s: how long the guidance may be kept for identical requests; 0: not at all.
        required: whether the policy forbids an unguided answer when the teacher fails.
        may_answer: whether the teacher's text can be the whole answer: not where tools, a format or more than one
            choice were asked for.
    """

    teacher: str
    tokens: int
    projection: str
    placement: Placement
    temperature: float
    top_p: float | None
    seed: int | None
    max_wait_s: float
    deadline_s: float
    required: bool
    may_answer: bool
    reject_when_full: bool
    tenant: str
    weight: float
    share: str
    cache_ttl_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done for one request.

    Attributes:
        mode: what the route asks for.
        finisher: the engine that completes the answer: the student, or the teacher in mode teacher.
        guidance: how the answer is opened; None when it goes unguided.
        unguided: why it goes unguided although the route asks for guidance.
        baseline: the model whose cost alone the answer is measured against.
        continuation: how the finisher continues an assistant message, as it was known when the plan was made.
        max_tokens: the limit on what the caller sees: the caller's, else the route's default, else None.
    """

    mode: Mode
    finisher: str
    guidance: GuidancePlan | None
    unguided: str | None
    baseline: str
    max_tokens: int | None
    show_cost: bool
    continuation: Continuation | None


def resolve(
    policy: TenantPolicy,
    route: Route,
    chat: ChatRequest,
    continuation_of: Callable[[str], Known],
) -> Plan:
    """Decide what this request gets. `continuation_of` says how an engine continues an assistant message now."""
    mode: Mode = route.mode
    finisher = route.teacher if mode == "teacher" else route.student
    assert finisher is not None, "the schema refuses a route without the engines of its mode"
    continuation = continuation_of(finisher)
    unguided = _unguided(route, chat, continuation) if mode == "guided" else None
    max_tokens = chat.max_tokens if chat.max_tokens is not None else route.default_max_tokens
    return Plan(
        mode=mode,
        finisher=finisher,
        guidance=_guidance(policy, route, chat, max_tokens) if mode == "guided" and unguided is None else None,
        unguided=unguided,
        baseline=route.baseline or route.teacher or finisher,
        max_tokens=max_tokens,
        show_cost=route.show_cost,
        continuation=None if continuation == "not_probed" else continuation,
    )


def _unguided(route: Route, chat: ChatRequest, continuation: Known) -> str | None:
    """Why this request cannot be guided, or None when it can."""
    if route.guidance.placement != "prefix":
        return None
    if chat.unguidable is not None:
        return chat.unguidable
    if chat.messages[-1]["role"] == "assistant":
        return "caller_prefill"
    if continuation is None:
        return "student_cannot_continue"
    if continuation == "not_probed":
        return "student_not_probed"
    return None


def _guidance(policy: TenantPolicy, route: Route, chat: ChatRequest, max_tokens: int | None) -> GuidancePlan:
    rule = route.guidance
    assert route.teacher is not None
    assert rule.placement is not None
    return GuidancePlan(
        teacher=route.teacher,
        tokens=rule.tokens if max_tokens is None else min(rule.tokens, max_tokens),
        projection=rule.projection,
        placement=rule.placement,
        temperature=rule.temperature,
        top_p=rule.top_p,
        seed=rule.seed,
        max_wait_s=rule.max_wait_s,
        deadline_s=rule.deadline_s,
        required=rule.on_failure == "reject",
        may_answer=chat.unguidable is None,
        reject_when_full=rule.on_queue_full == "reject",
        tenant=policy.tenant,
        weight=policy.weight,
        share="" if rule.share == "all" else policy.tenant,
        cache_ttl_s=rule.cache_ttl_s if rule.temperature == 0 else 0.0,
    )
