"""The most that a request can cost, and what it will use in all likelihood: before it has used anything. Pure."""

from __future__ import annotations

from decimal import ROUND_UP, Decimal
from typing import TYPE_CHECKING, NamedTuple

from gateway.guidance.projection import added_bytes
from gateway.ledger.receipt import EngineShare
from gateway.pricing import total_usd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.policy.resolve import GuidancePlan, Plan
    from gateway.pricing import Price
    from gateway.protocol import CallerRequest

_QUANTUM = Decimal("1E-12")
# English has about four bytes to a token, and the JSON around the words is counted with them.
_BYTES_PER_TOKEN = 4
# No tokenizer of today makes more than one token of a byte. A chat template adds some of its own, and guidance as
# context an introduction: an ordinary one is in this.
_AROUND_A_PROMPT_TOKENS = 512
_ORDINARY_INTRODUCTION_BYTES = 256
# A picture that is named by its address: what the hungriest model of today makes of one.
_TOKENS_PER_PART = 16_384
# The student's tokens for one of the teacher's: their vocabularies differ.
_FOR_ONE_TOKEN = 16


ASSUMED_TOKENS = 1024
"""What a finisher is taken to write for a caller who sets no limit, on a route that has none either. Where there is a
budget, it may write no more."""
TEACHER_RETRIES = 1
"""A caller waits, and there is a student: a teacher that failed is not asked more often than this."""


class Most(NamedTuple):
    """The most that a request can cost.

    Attributes:
        teacher, student: what one call of each can.
        more: calls that may be made in the place of those: retries, and other students. One entry for each engine.
        likely_tokens: what it reads and writes altogether if nothing fails.
    """

    teacher: EngineShare | None
    student: EngineShare | None
    more: tuple[EngineShare, ...]
    likely_tokens: int

    @property
    def usd(self) -> Decimal:
        """All of these together."""
        shares = (self.teacher, self.student, *self.more)
        return total_usd(*(share.cost_usd for share in shares if share is not None))


def worst_case(plan: Plan, asked: CallerRequest, prices: Mapping[str, Price]) -> Most:
    """What a request may come to: its bytes read as tokens, and every token that it may be answered with.

    `at_least` stands where nothing limits the answer: then 1024 tokens are assumed.
    """
    guidance = plan.guidance
    likely_read = max(1, asked.size_bytes // _BYTES_PER_TOKEN)
    read = asked.size_bytes + _AROUND_A_PROMPT_TOKENS + _TOKENS_PER_PART * asked.pictures
    written = (ASSUMED_TOKENS if plan.max_tokens is None else plan.max_tokens) * asked.drafts
    likely = likely_read + written
    teacher: EngineShare | None = None
    more: list[EngineShare] = []
    opened = of_teacher = 0
    if guidance is not None:
        added, opening = added_bytes(guidance.projection, asked), guidance.asked_tokens
        teacher = _share(guidance.teacher, read + added, opening, prices)
        of_teacher = likely_read + added // _BYTES_PER_TOKEN + opening
        likely += of_teacher + guidance.tokens
        introduction = len(guidance.projection.introduction.encode())
        opened = guidance.tokens * _FOR_ONE_TOKEN + max(0, introduction - _ORDINARY_INTRODUCTION_BYTES)
        more += _times(min(TEACHER_RETRIES, plan.retries.num_retries), teacher)
        if plan.length is not None and plan.length.probe is not None:
            more.append(_share(plan.finisher, read, 1, prices))
            likely += likely_read + 1
    if not plan.finishers:  # a device finishes the answer, which costs nothing here
        return Most(teacher, None, tuple(more), of_teacher)
    unlimited = plan.max_tokens is None
    first = _share(plan.finisher, read + opened, written, prices, unlimited=unlimited)
    for place, finisher in enumerate(plan.finishers):
        calls = plan.retries.num_retries + (1 if place else 0)
        if not place and _may_be_refused(guidance):
            calls += 1  # asked once more without the opening
        one = _share(finisher.engine, read + opened, written, prices) if place else first
        more += _times(calls, one)
    if plan.mode == "teacher":
        return Most(first, None, tuple(more), likely)
    return Most(teacher, first, tuple(more), likely)


def _may_be_refused(guidance: GuidancePlan | None) -> bool:
    return guidance is not None and guidance.placement == "prefix"


def _times(calls: int, one: EngineShare) -> list[EngineShare]:
    if not calls:
        return []
    read, written, cost = calls * one.input_tokens, calls * one.output_tokens, calls * one.cost_usd
    return [EngineShare(one.model, read, written, cost, estimated=True, at_least=one.at_least)]


def _share(model: str, read: int, written: int, prices: Mapping[str, Price], *, unlimited: bool = False) -> EngineShare:
    price = prices[model]
    # Rounded up, and not by the exact arithmetic of bills, which takes several times as long.
    cost = (price.input_usd * read + price.output_usd * written).quantize(_QUANTUM, ROUND_UP)
    return EngineShare(model, read, written, cost, estimated=True, at_least=unlimited)
