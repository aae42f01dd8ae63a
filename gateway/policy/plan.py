"""The plan of a request: engines, guidance, retries and comparisons. All later steps read only the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from gateway.runtime.record import Record

if TYPE_CHECKING:
    from typing import Literal

    from gateway.capabilities.continuation import Continuation, Known
    from gateway.capabilities.reasoning import Reasoning
    from gateway.policy.deadline_rules import AutoDeadline
    from gateway.policy.length import LengthChoice
    from gateway.policy.projections import Placement, Projection
    from gateway.policy.quality import QualityRule
    from gateway.policy.schema import Boundary, Mode


PlanMode: TypeAlias = "Mode | Literal['guidance']"


class EngineSnapshot(Record, frozen=True):
    """The current state of an engine.

    Attributes:
        continuation: how it continues an assistant message.
        cooldown: whether its circuit is open after failures.
        reasoning: whether its model reasons before it answers, as configured.
        takes_prompts: whether it continues raw prompts.
    """

    continuation: Known
    cooldown: bool = False
    reasoning: Reasoning = "none"
    takes_prompts: bool = True


class StudentPlan(Record, frozen=True):
    """An engine that may complete the answer.

    Attributes:
        continuation: how it continues an assistant message, as known when the plan was made; None: not at all.
    """

    engine: str
    continuation: Continuation | None
    reasoning: Reasoning = "none"


class RetryPlan(Record, frozen=True):
    """Retries at one engine, the first pause, and the bounds on retries.

    Attributes:
        max_per_request: retries over all engines. None: `num_retries`, one for each further engine that may complete
            the answer, and one for the teacher of a guided answer.
        share: retries of a tenant at one engine in ten seconds, per successful call.
        floor: additional retries in ten seconds.
    """

    num_retries: int
    backoff_s: float
    max_per_request: int | None = None
    share: float = 0.2
    floor: int = 10


NO_RETRIES = RetryPlan(0, 0.0)


class GuidancePlan(Record, frozen=True):
    """The guidance of one request.

    Attributes:
        tokens: m, the teacher's tokens; at most the caller's own limit.
        boundary: where guidance that was cut for length ends.
        max_wait_s: longest wait of the ticket for its batch to fill.
        deadline_s: after this time the answer continues without guidance, or fails if `required`. With `auto_deadline`
            it is the upper bound.
        auto_deadline: bounds of a deadline that follows measured times; None: the deadline is fixed.
        reject_when_full: whether a full queue of the tenant gives a 429 instead of an unguided answer.
        tenant, weight: the tenant whose share of the teacher is used, and its weight.
        share: "" if identical requests of all tenants share guidance; else the tenant.
        cache_ttl_s: how long the guidance is cached for identical requests; 0 disables caching.
        required: whether the request fails if the teacher fails.
        stream: whether the teacher's text is streamed to the caller as it is generated.
        may_answer: whether the teacher's text can be the whole answer; False if a field constrains the answer
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
    def requested_tokens(self) -> int:
        """Return the teacher's max_tokens: m plus the tokens that the projection may drop."""
        return self.tokens + self.projection.skip_tokens


class QualityPlan(Record, frozen=True):
    """The comparison of a guided answer, after it was sent, with answers of the student and the teacher alone.

    Attributes:
        teacher: the plan of the teacher's answer.
        judge: the plan of the judge's call; None if there is no judge.
    """

    rule: QualityRule
    teacher: Plan
    judge: Plan | None


class Plan(Record, frozen=True):
    """The plan of one request.

    Attributes:
        mode: the mode of the route or of the caller's override; in mode shadow, the mode that serves the caller.
            guidance: a device gets the guidance and completes the answer.
        students: engines that may complete the answer, in the order of calls: the students, or the teacher in mode
            teacher. Engines with an open circuit come last. Empty in mode guidance.
        guidance: the guidance; None if the answer is unguided.
        unguided: the reason for an unguided answer on a guided route.
        baseline: the model whose cost is the baseline of savings.
        retries: retries at one engine.
        max_tokens: the limit on the visible answer: the caller's, else the route's default, else None.
        shadow: the plan of a hidden answer; None: no shadow.
        quality: the comparison of a guided answer; None: no comparison.
        length: the choice of the guidance's length; None if the policy or the caller sets it.
    """

    mode: PlanMode
    students: tuple[StudentPlan, ...]
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
    def student(self) -> str:
        """Return the first engine that may complete the answer."""
        return self.students[0].engine

    @property
    def max_retries(self) -> int:
        """Return the maximum retries over all engines."""
        if self.retries.max_per_request is not None:
            return self.retries.max_per_request
        others = max(0, len(self.students) - 1)
        return self.retries.num_retries + others + (self.guidance is not None)
