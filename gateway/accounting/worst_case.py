"""The largest possible cost of a request, and its expected tokens, before it runs. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from gateway.accounting.receipt import EngineShare, total_cost
from gateway.pricing import max_charge_usd
from gateway.protocol.text import TextRequest
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from decimal import Decimal

    from gateway.policy.plan import Plan
    from gateway.policy.projections import Projection
    from gateway.pricing import Price
    from gateway.protocol.requests import AnyRequest

# English has about four bytes per token. The JSON around the text is included.
_BYTES_PER_TOKEN = 4
_BYTES_PER_TURN = 16  # a template writes about four tokens around a turn
# No current tokenizer makes more than one token of a byte. The overhead covers a chat template and an ordinary
# introduction for guidance as context.
_AROUND_A_PROMPT_TOKENS = 512
_ORDINARY_INTRODUCTION_BYTES = 256
# Student tokens per teacher token: their vocabularies differ.
_FOR_ONE_TOKEN = 16
TOKENS_PER_PART = 16_384
"""The largest number of tokens that a current model makes of an image given by its URL."""
BUDGET_MAX_TOKENS = 1024
"""`max_tokens` for an engine under a budget where neither the caller nor the route sets a limit."""
_LIKELY_TOKENS = 1024
"""The expected length of an answer without a limit, for `tpm_limit` at admission. The receipt corrects it."""
TEACHER_RETRIES = 1
"""Retries of a failed teacher call. The caller waits meanwhile, and a student can answer instead."""
Role: TypeAlias = Literal["guidance", "student", "warmup"]
"""The purpose of a call."""
DEFAULT_MAX_OUTPUT_TOKENS = 131_072
"""The bound for an engine with an unknown maximum. Only a few models of 2026 write longer answers."""


class MaxOutput(NamedTuple):
    """The largest number of tokens in one answer."""

    tokens: int
    known: bool = True  # False where `tokens` is the default, which the engine may exceed


MaxOutputOf: TypeAlias = "Callable[[str], MaxOutput]"
"""The maximum of an engine, by its name."""


def unknown_max_output(_: str) -> MaxOutput:
    """Return the default for every engine."""
    return MaxOutput(DEFAULT_MAX_OUTPUT_TOKENS, known=False)


def engine_maxima(
    configured: Mapping[str, int | None],
    listed: Mapping[str, int | None],
    reported: Callable[[str], int | None] = lambda _: None,
) -> MaxOutputOf:
    """Return a lookup of maxima: config.yaml, then the engine's own report, then the list, then the default.

    Args:
        configured: `max_output_tokens` of config.yaml by engine; None where it is not set.
        listed: the maximum of the model in LiteLLM's table by engine; None where the table has none.
        reported: returns the context size that an engine reported, in tokens; None where it reported none.
    """

    def max_output(engine: str) -> MaxOutput:
        tokens = configured.get(engine) or reported(engine) or listed.get(engine)
        return MaxOutput(tokens) if tokens else unknown_max_output(engine)

    return max_output


class CallBound(Record, frozen=True):
    """The largest number of tokens that one call can read and write."""

    input_tokens: int
    output_tokens: int
    known: bool = True  # False where no limit applies and the engine's maximum is unknown: a default is used


class MaxCost(Record, frozen=True):
    """The largest cost of a request."""

    teacher: EngineShare | None  # the largest share of one call
    student: EngineShare | None  # the largest share of one call
    more: tuple[EngineShare, ...]  # the largest shares of retries and of other students, one for each engine
    likely_tokens: int  # the expected tokens read and written if no call fails
    bounds: Mapping[tuple[Role, str], CallBound]  # the bound of one call, by role and engine
    usd: Decimal  # the sum of all shares


def worst_case(
    plan: Plan, request: AnyRequest, prices: Mapping[str, Price], max_output: MaxOutputOf = unknown_max_output
) -> MaxCost:
    """Return the largest cost of a request: each byte counts as a token, and each answer has its full length.
    `max_output` returns the largest answer of an engine, for a request without a limit."""
    guidance, limit, choices = plan.guidance, plan.max_tokens, request.generated_choices
    likely_read = max(1, request.size_bytes // _BYTES_PER_TOKEN)
    read = request.size_bytes + _AROUND_A_PROMPT_TOKENS + TOKENS_PER_PART * request.non_text_parts
    likely = likely_read + (_LIKELY_TOKENS if limit is None else limit) * choices
    teacher: EngineShare | None = None
    more: list[EngineShare] = []
    bounds: dict[tuple[Role, str], CallBound] = {}
    guidance_read = teacher_tokens = 0
    if guidance is not None:
        added, max_guidance = added_bytes(guidance.projection, request), guidance.requested_tokens
        bounds["guidance", guidance.teacher] = bound = CallBound(read + added, max_guidance)
        teacher = _share(guidance.teacher, bound, prices)
        teacher_tokens = likely_read + added // _BYTES_PER_TOKEN + max_guidance
        likely += teacher_tokens + guidance.tokens
        introduction = guidance.projection.introduction_bytes
        guidance_read = guidance.tokens * _FOR_ONE_TOKEN + max(0, introduction - _ORDINARY_INTRODUCTION_BYTES)
        if plan.retries.num_retries:
            more.append(_times(min(TEACHER_RETRIES, plan.retries.num_retries), teacher))
        if guidance.warm_student:
            bounds["warmup", plan.student] = bound = CallBound(read, 1)
            more.append(_share(plan.student, bound, prices))
            likely += likely_read + 1
    if not plan.students:  # a device finishes the answer, at no cost
        return _max_cost(teacher, None, more, teacher_tokens, bounds)
    first: EngineShare | None = None
    for student in plan.students:
        bound = _answer_bound(student.engine, read + guidance_read, limit, choices, max_output)
        bounds["student", student.engine] = bound
        share = _share(student.engine, bound, prices)
        calls = plan.retries.num_retries + (0 if first is None else 1)
        if first is None and guidance is not None and guidance.placement == "prefix":
            calls += 1  # a call without the guidance, after the engine refused it
        first = first or share
        if calls:
            more.append(_times(calls, share))
    if plan.mode == "teacher":
        return _max_cost(first, None, more, likely, bounds)
    return _max_cost(teacher, first, more, likely, bounds)


def _answer_bound(engine: str, read: int, limit: int | None, choices: int, max_output: MaxOutputOf) -> CallBound:
    written, known = max_output(engine) if limit is None else (limit, True)
    return CallBound(read, written * choices, known)


def _max_cost(
    teacher: EngineShare | None,
    student: EngineShare | None,
    more: list[EngineShare],
    likely_tokens: int,
    bounds: Mapping[tuple[Role, str], CallBound],
) -> MaxCost:
    usd = total_cost([share for share in (teacher, student, *more) if share is not None])
    return MaxCost(teacher, student, tuple(more), likely_tokens, bounds, usd)


def added_bytes(projection: Projection, request: AnyRequest) -> int:
    """Return the bytes that the projection adds to the caller's prompt, the template's text around turns included."""
    if isinstance(request, TextRequest):
        return len((projection.instruction or "").encode())
    return projection.shown_bytes + _BYTES_PER_TURN * projection.turns


def caller_tokens(projection: Projection, request: AnyRequest, read_tokens: int) -> int:
    """Estimate the tokens of the caller's own prompt among those that the teacher read, in proportion to bytes."""
    if isinstance(request, TextRequest) or not projection.turns:
        return read_tokens
    return round(read_tokens * request.size_bytes / (request.size_bytes + added_bytes(projection, request)))


def budget_max_tokens(plan: Plan, max_output: MaxOutputOf = unknown_max_output) -> int:
    """Return the `max_tokens` for the engines of `plan` under a budget where neither caller nor route sets a limit."""
    return min(BUDGET_MAX_TOKENS, *(max_output(student.engine).tokens for student in plan.students))


def _times(calls: int, share: EngineShare) -> EngineShare:
    read, written, cost = calls * share.input_tokens, calls * share.output_tokens, calls * share.cost_usd
    return EngineShare(share.model, read, written, cost, estimated=True, at_least=share.at_least)


def _share(model: str, bound: CallBound, prices: Mapping[str, Price]) -> EngineShare:
    read, written = bound.input_tokens, bound.output_tokens
    cost = max_charge_usd(prices[model], read, written)
    return EngineShare(model, read, written, cost, estimated=True, at_least=not bound.known)
