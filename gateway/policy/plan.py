"""The plan of a request: engines, guidance, retries and comparisons. All later steps read only the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from gateway.policy.route_rules import RetryRule
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from typing import Literal

    from gateway.policy.guidance_rule import Boundary
    from gateway.policy.projections import Placement, Projection
    from gateway.policy.route_rules import AutoDeadline, CollectRule, QualityRule
    from gateway.policy.schema import Mode
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.continuation import Continuation, Known
    from gateway.protocol.capabilities.reasoning import Reasoning

PlanMode: TypeAlias = "Mode | Literal['guidance']"


class EngineSnapshot(Record, frozen=True):
    """The current state of an engine."""

    continuation: Known  # how it continues an assistant message
    cooldown: bool = False  # whether its circuit is open after failures
    reasoning: Reasoning = "none"  # whether its model reasons before it answers, as configured
    takes_prompts: bool = True  # whether it continues raw prompts
    revision: str | None = None  # identifies the model; None: not known
    tokenizer: str | None = None  # as configured; None: not configured
    constraints: frozenset[str] = frozenset()  # constraining fields that it applies to guidance
    counts_chunks: bool = False  # whether each chunk of a stream has a running count if that is requested

    def has_vocabulary_of(self, other: EngineSnapshot) -> bool:
        """Return whether both engines are known to have one vocabulary, by their tokenizers or by their models."""
        if self.tokenizer is not None and other.tokenizer is not None:
            return self.tokenizer == other.tokenizer
        return self.revision is not None and self.revision == other.revision


class StudentPlan(Record, frozen=True):
    """An engine that may complete the answer."""

    engine: str
    continuation: Continuation | None  # how it continues an assistant message, as far as known; None: not at all
    reasoning: Reasoning = "none"
    counts_chunks: bool = False  # whether each chunk of a stream has a running count if that is requested


NO_RETRIES = RetryRule(num_retries=0)


class GuidancePlan(Record, frozen=True):
    """The guidance of one request.

    Attributes:
        deadline_s: after this time the answer continues without guidance, or fails if `required`. With `auto_deadline`
            it is the upper bound.
        auto_deadline: bounds of a deadline that follows measured times; None: the deadline is fixed.
        tenant, weight: the tenant whose share of the teacher is used, and its weight.
        may_answer: whether the teacher's text can be the whole answer; False if a field constrains the student alone
            (`constraints.py`).
        constraints: the caller's fields that the teacher applies as the student does; None: there are none.
    """

    teacher: str
    tokens: int  # m, the teacher's tokens; at most the caller's own limit
    projection: Projection
    placement: Placement
    boundary: Boundary  # where guidance that was cut for length ends
    temperature: float
    top_p: float | None
    seed: int | None
    max_wait_s: float  # longest wait of the ticket for its batch to fill
    deadline_s: float
    required: bool  # whether the request fails if the teacher fails
    stream: bool  # whether the teacher's text is streamed to the caller as it is generated
    may_answer: bool
    reject_when_full: bool  # whether a full queue of the tenant gives a 429 instead of an unguided answer
    tenant: str
    weight: float
    share: str  # "" if identical requests of all tenants share guidance; else the tenant
    cache_ttl_s: float  # how long the guidance is cached for identical requests; 0 disables caching
    auto_deadline: AutoDeadline | None = None
    warm_student: bool = False  # whether the first student reads the prompt while the teacher writes
    constraints: Json | None = None

    @property
    def requested_tokens(self) -> int:
        """Return the teacher's max_tokens: m plus the tokens that the projection may drop."""
        return self.tokens + self.projection.skip_tokens


class SplitFacts(Record, frozen=True):
    """The variant of a split route that serves a request, and a hash of the conversation or caller that keeps it."""

    variant: str
    unit: str


class QualityPlan(Record, frozen=True):
    """The comparison of a guided answer, after it was sent, with answers of the student and the teacher alone."""

    rule: QualityRule
    teacher: Plan
    judge: Plan | None  # the plan of the judge's call; None if there is no judge
    # The comparisons that decide together whether the route falls back; None: this one decides nothing.
    window: str | None = None


class Plan(Record, frozen=True):
    """The plan of one request.

    Attributes:
        mode: the mode of the route or of the caller's override; in mode shadow, the mode that serves the caller.
            guidance: a device gets the guidance and completes the answer.
        names_engine: whether `model` in the reply is the engine that completes the answer, instead of the route.
        student_alone: where the teacher answers because guidance is switched off: the plan for a spent budget.
        reduced_max_tokens: `max_tokens`, where the caller's own was larger than the policy or the context allows.
        unguided_field: the unknown field of the request that prevents guidance (`constraints.unknown_field`).
        students: engines that may complete the answer, in the order of calls: the students, or the teacher in mode
            teacher. Engines with an open circuit come last. Empty in mode guidance.
    """

    mode: PlanMode
    students: tuple[StudentPlan, ...]
    guidance: GuidancePlan | None  # the guidance; None if the answer is unguided
    unguided: str | None  # the reason for an unguided answer on a guided route
    baseline: str  # the model whose cost is the baseline of savings
    max_tokens: int | None  # the limit on the visible answer: the caller's, else the route's default, else None
    show_cost: bool
    names_engine: bool = False
    unguided_field: str | None = None
    reduced_max_tokens: int | None = None
    retries: RetryRule = NO_RETRIES
    shadow: Plan | None = None
    quality: QualityPlan | None = None  # the comparison of a guided answer; None: no comparison
    split: SplitFacts | None = None  # the variant of the route; None: the route itself serves the request
    student_alone: Plan | None = None
    collect: CollectRule | None = None  # how the request is collected; None: it is not drawn for the sample

    @property
    def student(self) -> str:
        """Return the first engine that may complete the answer."""
        return self.students[0].engine

    @property
    def max_retries(self) -> int:
        """Return the most retries over all engines: `num_retries`, and one for each further student and the teacher."""
        others = max(0, len(self.students) - 1)
        return self.retries.num_retries + others + int(self.guidance is not None)
