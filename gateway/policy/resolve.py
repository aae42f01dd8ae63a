"""(tenant's route, request, what is known of the engines) -> Plan. Pure; all later steps read the Plan only."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeAlias

from msgspec import structs

from gateway.capabilities.continuation import Continuation
from gateway.capabilities.reasoning import takes_prefix
from gateway.errors import InvalidRequest
from gateway.policy.length import choose_length
from gateway.policy.overrides import as_asked, refuse_overrides
from gateway.policy.routing import NO_HEADERS
from gateway.policy.unguided import judge_request
from gateway.protocol.text import TextRequest
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Literal

    from gateway.capabilities.continuation import Known
    from gateway.capabilities.reasoning import Reasoning
    from gateway.policy.deadline_rules import AutoDeadline
    from gateway.policy.length import LengthChoice
    from gateway.policy.overrides import RouteOverride
    from gateway.policy.projections import Placement, Projection
    from gateway.policy.quality import QualityRule
    from gateway.policy.schema import Boundary, Mode, Route, TenantPolicy
    from gateway.protocol.chat import ChatRequest
    from gateway.protocol.requests import CompletionRequest


PlanMode: TypeAlias = "Mode | Literal['guidance']"

# How any engine continues a raw prompt: what it goes on with is the prompt's own end.
RAW = Continuation("completions", echo=False)


class EngineSnapshot(Record, frozen=True):
    """What is known of an engine now.

    Attributes:
        continuation: how it continues an assistant message.
        rests: whether it is left alone after failures.
        reasoning: whether its model reasons before it answers; the configuration's word.
        takes_prompts: whether it continues raw prompts.
    """

    continuation: Known
    rests: bool = False
    reasoning: Reasoning = "none"
    takes_prompts: bool = True


class StudentPlan(Record, frozen=True):
    """One engine that may complete the answer.

    Attributes:
        continuation: how it continues an assistant message, as it was known when the plan was made; None: not at all.
    """

    engine: str
    continuation: Continuation | None
    reasoning: Reasoning = "none"


class RetryPlan(Record, frozen=True):
    """How often one engine is asked again, the first pause before that, and the bounds on retries.

    Attributes:
        max_per_request: calls in the place of failed ones, over all engines. None: `num_retries`, one for each engine
            beside the first that may complete the answer, and one for the teacher of a guided answer.
        share, floor: retries of a tenant at one engine in ten seconds: per call that succeeded, and besides.
    """

    num_retries: int
    backoff_s: float
    max_per_request: int | None = None
    share: float = 0.2
    floor: int = 10


NO_RETRIES = RetryPlan(0, 0.0)


class GuidancePlan(Record, frozen=True):
    """How the teacher is asked for this request.

    Attributes:
        tokens: m, the teacher's tokens; never more than the caller's own limit.
        boundary: where the opening ends when it was cut for length.
        max_wait_s: how long the ticket may wait for its batch to fill.
        deadline_s: after this long the answer goes on without guidance, or fails if `required`. With `auto_deadline` it
            is the upper bound.
        auto_deadline: the bounds within which the deadline follows measured times; None: the deadline is fixed.
        reject_when_full: whether the policy wants a 429 and no unguided answer when the tenant's queue is full.
        tenant, weight: whose share of the teacher it takes, and how large that is.
        share: "" where identical requests of every tenant may share one guidance; else those of this one alone.
        cache_ttl_s: how long the guidance may be kept for identical requests; 0: not at all.
        required: whether the policy forbids an unguided answer when the teacher fails.
        stream: whether a caller who streams hears the teacher as it writes.
        may_answer: whether the teacher's text can be the whole answer: not beside a field that constrains the answer
            (`constraints.py`).
    """

    teacher: str
    tokens: int
    projection: Projection
    placement: Placement
    boundary: Boundary
    temperature: float
    top_p: float | None
    seed: int | None
    max_wait_s: float
    deadline_s: float
    required: bool
    stream: bool
    may_answer: bool
    reject_when_full: bool
    tenant: str
    weight: float
    share: str
    cache_ttl_s: float
    auto_deadline: AutoDeadline | None = None

    @property
    def asked_tokens(self) -> int:
        """What the teacher is asked for: m, and what the projection may drop before it."""
        return self.tokens + self.projection.skip_tokens


class QualityPlan(Record, frozen=True):
    """What a guided answer is compared with once it was given, beside the student's alone.

    Attributes:
        teacher: the teacher's answer alone.
        judge: who grades; None where nobody is asked.
    """

    rule: QualityRule
    teacher: Plan
    judge: Plan | None


class Plan(Record, frozen=True):
    """What will be done for one request.

    Attributes:
        mode: what the route asks for, or its caller; never shadow, of which it is what the caller gets. guidance: a
            device gets the opening, and finishes the answer itself.
        finishers: the engines that may complete the answer, in the order in which they are asked: the students, or
            the teacher in mode teacher. Those that rest come last. In mode guidance there is none.
        guidance: how the answer is opened; None when it goes unguided.
        unguided: why it goes unguided although the route asks for guidance.
        baseline: the model whose cost alone the answer is measured against.
        retries: how often one of them is asked again.
        max_tokens: the limit on what the caller sees: the caller's, else the route's default, else None.
        shadow: what is to be done beside it, for nobody to see; None: nothing.
        quality: what its answer is compared with, should it be guided; None: nothing.
        length: how the guidance's length was chosen; None where the policy or the caller says it, or there is none.
    """

    mode: PlanMode
    finishers: tuple[StudentPlan, ...]
    guidance: GuidancePlan | None
    unguided: str | None
    baseline: str
    max_tokens: int | None
    show_cost: bool
    retries: RetryPlan = NO_RETRIES
    shadow: Plan | None = None
    quality: QualityPlan | None = None
    length: LengthChoice | None = None

    @property
    def finisher(self) -> str:
        """The first one asked."""
        return self.finishers[0].engine

    @property
    def max_retries(self) -> int:
        """Calls that may be made in the place of failed ones, over all engines."""
        if self.retries.max_per_request is not None:
            return self.retries.max_per_request
        others = max(0, len(self.finishers) - 1)
        return self.retries.num_retries + others + (self.guidance is not None)


def resolve(
    policy: TenantPolicy,
    route: Route,
    asked: CompletionRequest,
    look: Callable[[str], EngineSnapshot],
    draw: Callable[[], float] = random.random,
    headers: Mapping[str, str] = NO_HEADERS,
    wanted: RouteOverride | None = None,
) -> Plan:
    """Decide what this request gets.

    Args:
        look: what is known now of an engine.
        draw: a number from 0 to 1, for students that share the requests by weight, and shadows that only some have.
        headers: the caller's, which may ask for another mode or length where the policy lets them.
        wanted: an operator's wish, which needs nobody's leave; headers are not read then.

    Raises InvalidRequest where the route answers no chats, or chats alone and this is none, or where a header asks
    for what the policy does not allow.
    """
    if route.mode == "embeddings":
        raise InvalidRequest(f"'{route.model}' makes embeddings: send this to /v1/embeddings.", param="model")
    route = wanted.of(route) if wanted is not None else as_asked(policy, route, headers)
    if route.mode != "shadow":
        plan = _plan(policy, route, asked, look, draw, headers)
        # An operator who tries something out is none of the callers that the sample is of.
        return plan if wanted is not None else _compared(plan, policy, route, asked, look, draw)
    served = _plan(policy, route.model_copy(update={"mode": route.shadow.serves}), asked, look, draw, headers)
    if draw() >= route.shadow.sample:
        return served
    try:
        shadow = _plan(policy, route.model_copy(update={"mode": "guided"}), asked, look, draw, headers)
    except InvalidRequest:
        return served  # no student takes it; who asked gets its answer all the same
    return structs.replace(served, shadow=shadow)


def _compared(
    plan: Plan,
    policy: TenantPolicy,
    route: Route,
    asked: CompletionRequest,
    look: Callable[[str], EngineSnapshot],
    draw: Callable[[], float],
) -> Plan:
    """The plan, with what its answer is to be compared with if it is one of the sample."""
    rule = route.quality
    # Of tools, formats and several choices there is no one text to compare.
    if rule is None or plan.guidance is None or not plan.guidance.may_answer or draw() >= rule.sample:
        return plan
    try:
        teacher = _plan(policy, route.model_copy(update={"mode": "teacher"}), asked, look, draw, NO_HEADERS)
    except InvalidRequest:
        return plan  # its teacher does not take it alone
    return structs.replace(plan, quality=QualityPlan(rule, teacher, _judge(rule, look)))


def _judge(rule: QualityRule, look: Callable[[str], EngineSnapshot]) -> Plan | None:
    if rule.compare != "judge" or rule.judge is None:
        return None
    return Plan(
        mode="student",
        finishers=(StudentPlan(rule.judge, None, look(rule.judge).reasoning),),
        guidance=None,
        unguided=None,
        baseline=rule.judge,
        max_tokens=None,
        show_cost=False,
    )


def _plan(
    policy: TenantPolicy,
    route: Route,
    asked: CompletionRequest,
    look: Callable[[str], EngineSnapshot],
    draw: Callable[[], float],
    headers: Mapping[str, str],
) -> Plan:
    mode = route.mode
    looks = [(engine, look(engine)) for engine in _in_order(route, draw)]
    if isinstance(asked, TextRequest):
        looks = [(engine, seen) for engine, seen in looks if seen.takes_prompts]
        if not looks:
            raise InvalidRequest(
                f"'prompt' cannot be answered by '{route.model}': its models take chats alone.", param="prompt"
            )
    if len(looks) > 1:
        looks.sort(key=lambda one: one[1].rests)
    ways = [RAW if isinstance(asked, TextRequest) else _carrying(asked, seen) for _, seen in looks]
    first = ways[0]
    max_tokens = asked.max_tokens if asked.max_tokens is not None else route.default_max_tokens
    unguided, constrained = judge_request(route, asked, first, max_tokens) if mode == "guided" else (None, False)
    length = None
    if mode == "guided" and unguided is None and route.guidance.tokens == "auto":
        length = choose_length(route.guidance.auto, asked, max_tokens, headers)
        unguided = length.unguided
    guided = mode == "guided" and unguided is None
    # Who writes the opening again may begin otherwise: then nothing of it may have left.
    ahead = first is not None and (first == "not_probed" or not first.writes_again)
    return Plan(
        mode=mode,
        finishers=tuple(
            StudentPlan(engine, None if way == "not_probed" else way, seen.reasoning)
            for (engine, seen), way in zip(looks, ways, strict=True)
        ),
        guidance=_guidance(
            policy,
            route,
            asked,
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
    rests: Callable[[str], bool],
    draw: Callable[[], float] = random.random,
    headers: Mapping[str, str] = NO_HEADERS,
) -> Plan:
    """What a request for embeddings gets: an engine, and not a word in answer. Raises InvalidRequest likewise."""
    if route.mode != "embeddings":
        raise InvalidRequest(f"'{route.model}' makes no embeddings: it answers chats.", param="model")
    refuse_overrides(headers)
    engines = sorted(_in_order(route, draw), key=rests)
    return Plan(
        mode=route.mode,
        finishers=tuple(StudentPlan(engine, None) for engine in engines),
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


def _in_order(route: Route, draw: Callable[[], float]) -> list[str]:
    """The engines that may complete an answer, the first to be asked first."""
    if route.mode == "teacher":
        assert route.teacher is not None, "the schema refuses a route without the engines of its mode"
        return [route.teacher]
    students = route.all_students
    assert students, "the schema refuses a route without the engines of its mode"
    if len(students) == 1 or students[0].weight is None:
        return [one.model for one in students]
    # Each comes before the others as often as its weight says (Efraimidis and Spirakis, 2006).
    return [one.model for one in sorted(students, key=lambda one: -(draw() ** (1 / (one.weight or 1.0))))]


def _carrying(chat: ChatRequest, seen: EngineSnapshot) -> Known:
    """How an engine continues this chat: not in a way that would lose a part of it, or have it think."""
    known = seen.continuation
    if known is None or known == "not_probed":
        return known
    if known.unsupported(chat.body) is not None or not takes_prefix(seen.reasoning, chat.body):
        return None
    return known


def _guidance(
    policy: TenantPolicy,
    route: Route,
    asked: CompletionRequest,
    max_tokens: int | None,
    length: LengthChoice | None,
    *,
    prefix: bool,
    ahead: bool,
    may_answer: bool,
) -> GuidancePlan:
    rule = route.guidance
    tokens = rule.most_tokens if length is None else length.tokens
    if max_tokens is not None:
        # A hint is no answer: where it is shown, a token is left for the student.
        shown_hint = rule.placement == "prefix" and not rule.asks.teacher_may_finish
        tokens = min(tokens, max_tokens - 1 if shown_hint else max_tokens)
    assert route.teacher is not None
    assert rule.placement is not None
    return GuidancePlan(
        teacher=route.teacher,
        tokens=tokens,
        projection=rule.asks,
        placement="context" if rule.placement == "prefix" and not prefix else rule.placement,
        boundary=rule.boundary,
        temperature=rule.temperature,
        top_p=rule.top_p,
        seed=rule.seed,
        max_wait_s=rule.max_wait_s,
        deadline_s=rule.longest_deadline_s,
        auto_deadline=rule.auto_deadline if rule.deadline == "auto" else None,
        required=rule.on_failure == "reject",
        stream=rule.stream and asked.stream and ahead and rule.placement == "prefix" and rule.asks.teacher_may_finish,
        may_answer=may_answer,
        reject_when_full=rule.on_queue_full == "reject",
        tenant=policy.tenant,
        weight=policy.weight,
        share="" if rule.share == "all" else policy.tenant,
        cache_ttl_s=rule.cache_ttl_s if rule.temperature == 0 else 0.0,
    )
