"""The savings of one receipt: its class, the amount that counts, and its error. Pure.

Headers, receipts, sums, exports, metrics and pages all use these rules. docs/cost.md has them as a table.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from gateway.pricing import cost_usd as cost_of_call
from gateway.pricing import quantized, savings_usd

if TYPE_CHECKING:
    from gateway.accounting.receipt import EngineShare, Receipt
    from gateway.pricing import Price

SavingsClass = Literal[
    "guided", "student_by_policy", "teacher_unavailable", "not_guidable", "teacher", "failed", "measuring"
]
GUIDED: SavingsClass = "guided"
STUDENT_BY_POLICY: SavingsClass = "student_by_policy"
TEACHER_UNAVAILABLE: SavingsClass = "teacher_unavailable"
NOT_GUIDABLE: SavingsClass = "not_guidable"
TEACHER: SavingsClass = "teacher"
FAILED: SavingsClass = "failed"
MEASURING: SavingsClass = "measuring"
CLASSES: tuple[SavingsClass, ...] = (
    GUIDED,
    STUDENT_BY_POLICY,
    TEACHER_UNAVAILABLE,
    NOT_GUIDABLE,
    TEACHER,
    FAILED,
    MEASURING,
)
"""In the order in which pages and exports list them."""

ABOUT_ZERO = "about 0"
"""The text for savings whose error is at least as large as the amount."""

_BY_POLICY = frozenset({"auto_short", "auto_rule", "auto_model", "student_confident", "budget"})
_NO_GUIDANCE = frozenset({"queue_full", "ticket_unreadable", "guidance_empty", "guidance_boilerplate", "offline"})
_COUNTED = frozenset({GUIDED, STUDENT_BY_POLICY})
_LOSSES_ONLY = frozenset({TEACHER_UNAVAILABLE, NOT_GUIDABLE})


class MeasuredBaseline(msgspec.Struct, frozen=True):
    """The baseline of a request as the quality sampler measured it. It replaces the estimate in sums.

    Attributes:
        baseline_usd: the cost of the baseline model's own answer, with the request's own state of the prompt cache.
        estimated_usd: `baseline_usd` of the request's receipt.
        estimated_error_usd: `baseline_error_usd` of the request's receipt.
    """

    baseline_usd: Decimal
    estimated_usd: Decimal
    estimated_error_usd: Decimal


class Savings(NamedTuple):
    """The savings that one receipt adds to sums.

    Attributes:
        usd: the amount that counts. It is negative where guidance cost more than it saved.
        error_usd: the largest error of `usd`. A measured baseline subtracts the error of its estimate.
        measuring_usd: the part of the receipt's cost that paid for measuring instead of an answer.
    """

    usd: Decimal
    error_usd: Decimal
    measuring_usd: Decimal


def savings_class(*, mode: str, status: str, unguided: str | None, shadow_of: str | None) -> SavingsClass:
    """Return the class of a receipt with these fields. An unknown value of `unguided` saves nothing."""
    if shadow_of is not None:
        return MEASURING
    if status != "ok":
        return FAILED
    if mode == "teacher":
        return TEACHER
    if unguided is None:
        return STUDENT_BY_POLICY if mode in {"student", "embeddings"} else GUIDED
    if unguided in _BY_POLICY:
        return STUDENT_BY_POLICY
    if unguided in _NO_GUIDANCE or unguided.startswith("teacher_"):
        return TEACHER_UNAVAILABLE
    return NOT_GUIDABLE


def apply_class(
    of_class: str,
    *,
    baseline_usd: Decimal,
    error_usd: Decimal | None,
    cost_usd: Decimal,
    probe: EngineShare | None,
    measured: MeasuredBaseline | None = None,
) -> Savings:
    """Apply the rule of a class to the amounts of a receipt.

    Args:
        error_usd: the error of `baseline_usd`; None counts as 0.
        cost_usd: the cost of all engine calls of the receipt.
        probe: the confidence probe. Its cost is a cost of measuring.
    """
    nothing = Decimal(0)
    if of_class == MEASURING:
        if measured is None:
            return Savings(nothing, nothing, cost_usd)
        return Savings(
            savings_usd(measured.baseline_usd, measured.estimated_usd), -measured.estimated_error_usd, cost_usd
        )
    measuring = nothing
    if probe is not None:
        measuring = probe.cost_usd
        cost_usd = savings_usd(cost_usd, measuring)
    difference = savings_usd(baseline_usd, cost_usd)
    if is_counted(of_class, difference):
        return Savings(difference, error_usd or nothing, measuring)
    return Savings(nothing, nothing, measuring)


def is_counted(of_class: str, difference: Decimal | int) -> bool:
    """Return whether the difference of baseline and cost counts as savings. In the class `measuring` it never does."""
    return of_class in _COUNTED or (difference < 0 and of_class in _LOSSES_ONLY)


def class_of(receipt: Receipt) -> str:
    """Return the receipt's class. A receipt of an earlier version has none, so its other fields decide."""
    return receipt.savings_class or savings_class(
        mode=receipt.mode, status=receipt.status, unguided=receipt.unguided, shadow_of=receipt.shadow_of
    )


def savings_of(receipt: Receipt) -> Savings:
    """Return what the receipt adds to sums of savings."""
    return apply_class(
        class_of(receipt),
        baseline_usd=receipt.baseline_usd,
        error_usd=receipt.baseline_error_usd,
        cost_usd=receipt.cost_usd,
        probe=receipt.probe,
        measured=receipt.measured,
    )


def with_savings(receipt: Receipt) -> Receipt:
    """Return the receipt with its class and the savings that count."""
    return msgspec.structs.replace(receipt, savings_class=class_of(receipt), savings_usd=savings_of(receipt).usd)


def is_about_zero(usd: Decimal, error_usd: Decimal) -> bool:
    """Return whether the error is at least as large as the amount, so that the true amount may be 0."""
    return error_usd > 0 and abs(usd) <= error_usd


def shown(usd: Decimal, error_usd: Decimal) -> str:
    """Return the amount for display, without an exponent, or "about 0"."""
    return ABOUT_ZERO if is_about_zero(usd, error_usd) else f"{usd.normalize():f}"


def measure(served: Receipt | None, teacher: EngineShare | None, price: Price) -> MeasuredBaseline | None:
    """Return the measured baseline of a request, from the baseline model's own answer to it.

    The call that guided the request has warmed the engine's prefix cache. So the prompt counts as cached only as far as
    that call found it cached. Tokens that the call wrote to the cache count as written.

    Args:
        served: the receipt of the guided request; None: it has not settled yet.
        teacher: the baseline model's call for the sample.

    Returns:
        None where the call is not comparable: another model answered, no usage was reported, or nothing is saved.
    """
    if served is None or teacher is None or class_of(served) != GUIDED:
        return None
    if teacher.model != served.baseline_model or teacher.estimated or teacher.at_least:
        return None
    guidance_call = served.teacher
    cached, stored = teacher.cached_input_tokens, teacher.cache_write_input_tokens
    if guidance_call is not None and guidance_call.model == teacher.model:
        warmed = max(0, cached - guidance_call.cached_input_tokens)
        cached, stored = cached - warmed, stored + min(warmed, guidance_call.cache_write_input_tokens)
    usd = quantized(cost_of_call(price, teacher.input_tokens, teacher.output_tokens, cached, stored))
    return MeasuredBaseline(usd, served.baseline_usd, served.baseline_error_usd or Decimal(0))
