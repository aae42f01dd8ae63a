"""The most that a request can cost, and what it will use in all likelihood: before it has used anything. Pure."""

from __future__ import annotations

from decimal import ROUND_UP, Decimal
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from gateway.accounting.max_output import unknown_max_output
from gateway.accounting.receipt import EngineShare
from gateway.policy.projection_size import added_bytes
from gateway.pricing import total_usd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.accounting.max_output import MaxOutputOf
    from gateway.policy.resolve import GuidancePlan, Plan
    from gateway.pricing import Price
    from gateway.protocol.body import CallerRequest

_QUANTUM = Decimal("1E-12")
# English has about four bytes to a token, and the JSON around the words is counted with them.
_BYTES_PER_TOKEN = 4
# No tokenizer of today makes more than one token of a byte. A chat template adds some of its own, and guidance as
# context an introduction: an ordinary one is in this.
_AROUND_A_PROMPT_TOKENS = 512
_ORDINARY_INTRODUCTION_BYTES = 256
# The student's tokens for one of the teacher's: their vocabularies differ.
_FOR_ONE_TOKEN = 16


TOKENS_PER_PART = 16_384
"""A picture that is named by its address: what the hungriest model of today makes of one."""
BUDGET_MAX_TOKENS = 1024
"""The limit that an engine is sent under a budget where neither the caller nor the route sets one."""
_LIKELY_TOKENS = 1024
"""The length of an answer without a limit, as `tpm_limit` estimates it at admission. The receipt corrects it."""
TEACHER_RETRIES = 1
"""A caller waits, and there is a student: a teacher that failed is not asked more often than this."""


Role: TypeAlias = Literal["guidance", "finisher", "probe"]
"""The purpose of a call."""


class CallBound(NamedTuple):
    """The most that one call can read and write, in tokens.

    Attributes:
        known: False where `output_tokens` is a default, since nothing limits the call and no maximum is known.
    """

    input_tokens: int
    output_tokens: int
    known: bool = True


class MaxCost(NamedTuple):
    """The most that a request can cost.

    Attributes:
        teacher, student: what one call of each can.
        more: calls that may be made in the place of those: retries, and other students. One entry for each engine.
        likely_tokens: what it reads and writes altogether if nothing fails.
        bounds: the bound of one call, by what it is for and by engine.
    """

    teacher: EngineShare | None
    student: EngineShare | None
    more: tuple[EngineShare, ...]
    likely_tokens: int
    bounds: Mapping[tuple[Role, str], CallBound]

    @property
    def usd(self) -> Decimal:
        """All of these together."""
        shares = (self.teacher, self.student, *self.more)
        return total_usd(*[share.cost_usd for share in shares if share is not None])


def worst_case(
    plan: Plan, asked: CallerRequest, prices: Mapping[str, Price], max_output: MaxOutputOf = unknown_max_output
) -> MaxCost:
    """What a request may come to: its bytes read as tokens, and every token that it may be answered with.

    Args:
        max_output: the largest answer of an engine, for a request without a limit.
    """
    guidance, limit, drafts = plan.guidance, plan.max_tokens, asked.generated_choices
    likely_read = max(1, asked.size_bytes // _BYTES_PER_TOKEN)
    read = asked.size_bytes + _AROUND_A_PROMPT_TOKENS + TOKENS_PER_PART * asked.non_text_parts
    likely = likely_read + (_LIKELY_TOKENS if limit is None else limit) * drafts
    teacher: EngineShare | None = None
    more: list[EngineShare] = []
    bounds: dict[tuple[Role, str], CallBound] = {}
    opened = of_teacher = 0
    if guidance is not None:
        added, opening = added_bytes(guidance.projection, asked), guidance.asked_tokens
        bounds["guidance", guidance.teacher] = bound = CallBound(read + added, opening)
        teacher = _share(guidance.teacher, bound, prices)
        of_teacher = likely_read + added // _BYTES_PER_TOKEN + opening
        likely += of_teacher + guidance.tokens
        introduction = len(guidance.projection.introduction.encode())
        opened = guidance.tokens * _FOR_ONE_TOKEN + max(0, introduction - _ORDINARY_INTRODUCTION_BYTES)
        more += _times(min(TEACHER_RETRIES, plan.retries.num_retries), teacher)
        if plan.length is not None and plan.length.probe is not None:
            bounds["probe", plan.finisher] = bound = CallBound(read, 1)
            more.append(_share(plan.finisher, bound, prices))
            likely += likely_read + 1
    if not plan.finishers:  # a device finishes the answer, which costs nothing here
        return MaxCost(teacher, None, tuple(more), of_teacher, bounds)
    first: EngineShare | None = None
    for finisher in plan.finishers:
        written, known = max_output(finisher.engine) if limit is None else (limit, True)
        bounds["finisher", finisher.engine] = bound = CallBound(read + opened, written * drafts, known)
        one = _share(finisher.engine, bound, prices)
        calls = plan.retries.num_retries + (0 if first is None else 1)
        if first is None and _may_be_refused(guidance):
            calls += 1  # asked once more without the opening
        first = first or one
        more += _times(calls, one)
    if plan.mode == "teacher":
        return MaxCost(first, None, tuple(more), likely, bounds)
    return MaxCost(teacher, first, tuple(more), likely, bounds)


def budget_max_tokens(plan: Plan, max_output: MaxOutputOf = unknown_max_output) -> int:
    """Return the limit that the engines of `plan` are sent under a budget where nobody sets one."""
    return min(BUDGET_MAX_TOKENS, *(max_output(finisher.engine).tokens for finisher in plan.finishers))


def _may_be_refused(guidance: GuidancePlan | None) -> bool:
    return guidance is not None and guidance.placement == "prefix"


def _times(calls: int, one: EngineShare) -> list[EngineShare]:
    if not calls:
        return []
    read, written, cost = calls * one.input_tokens, calls * one.output_tokens, calls * one.cost_usd
    return [EngineShare(one.model, read, written, cost, estimated=True, at_least=one.at_least)]


def _share(model: str, bound: CallBound, prices: Mapping[str, Price]) -> EngineShare:
    price, (read, written, known) = prices[model], bound
    # Rounded up, and not by the exact arithmetic of bills, which takes several times as long.
    cost = (price.dearest_input_usd * read + price.output_usd * written).quantize(_QUANTUM, ROUND_UP)
    return EngineShare(model, read, written, cost, estimated=True, at_least=not known)
