"""The rules of savings: the class of a request, the amount that counts, and its error. Pure.

`ReceiptBuilder` applies the rules to each receipt, and usage/counters.py to the sums that usage queries and the
dashboard read. docs/cost.md has them as a table.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Literal, get_args

import msgspec

from gateway.pricing import savings_usd, total_usd
from gateway.runtime.record import Record

SavingsClass = Literal[
    "guided",
    "student_by_policy",
    "reported",
    "teacher_unavailable",
    "not_guidable",
    "teacher",
    "disconnected",
    "failed",
    "measuring",
]
GUIDED: SavingsClass = "guided"
STUDENT_BY_POLICY: SavingsClass = "student_by_policy"
REPORTED: SavingsClass = "reported"
TEACHER_UNAVAILABLE: SavingsClass = "teacher_unavailable"
NOT_GUIDABLE: SavingsClass = "not_guidable"
TEACHER: SavingsClass = "teacher"
DISCONNECTED: SavingsClass = "disconnected"
FAILED: SavingsClass = "failed"
MEASURING: SavingsClass = "measuring"
CLASSES: tuple[SavingsClass, ...] = get_args(SavingsClass)
"""In the order in which pages and exports list them."""

CLIENT_GONE = "client_gone"
"""The status of a request whose caller disconnected."""
ABOUT_ZERO = "about 0"
"""The text for savings whose error is at least as large as the amount."""

_BY_POLICY = frozenset({"budget", "switched_off", "quality_fallback"})
_NO_GUIDANCE = frozenset({"queue_full", "ticket_unreadable", "guidance_empty", "guidance_boilerplate", "offline"})
_ZERO = Decimal(0)
_COUNTED = frozenset({GUIDED, STUDENT_BY_POLICY, REPORTED})
_WITHOUT_ANSWER = frozenset({FAILED, MEASURING})
_LOSSES_ONLY = frozenset({TEACHER_UNAVAILABLE, NOT_GUIDABLE})


class MeasuredBaseline(msgspec.Struct, frozen=True):
    """The baseline of a request as the quality sampler measured it. It replaces the estimate in sums. `baseline_usd`:
    the cost of the baseline model's own answer, with the request's own state of the prompt cache."""

    baseline_usd: Decimal
    estimated_usd: Decimal  # `baseline_usd` of the request's receipt
    estimated_error_usd: Decimal  # `baseline_error_usd` of the request's receipt


class Savings(Record, frozen=True):
    """The savings that one receipt adds to sums: the baseline that counts, less the receipt's cost."""

    usd: Decimal  # negative where the request cost more than the baseline that counts
    error_usd: Decimal  # the largest error of `usd`. A measured baseline subtracts the error of its estimate.
    measuring_usd: Decimal  # the part of the receipt's cost that paid for measuring instead of an answer

    @property
    def answer_usd(self) -> Decimal:
        """Return the savings without the cost of measuring. For a quality sample, they are those of guided answers."""
        return total_usd(self.usd, self.measuring_usd)


def report_class(unguided: str | None) -> SavingsClass:
    """Return the class of a device's report. An answer that the policy or guidance did not cause saves nothing."""
    of_class = savings_class(mode="edge", status="ok", unguided=unguided, shadow_of=None)
    return REPORTED if of_class in _COUNTED or unguided == "offline" else of_class


def savings_class(*, mode: str, status: str, unguided: str | None, shadow_of: str | None) -> SavingsClass:
    """Return the class of a receipt with these fields. An unknown value of `unguided` saves nothing."""
    if shadow_of is not None:
        return MEASURING
    if status != "ok":
        return DISCONNECTED if status == CLIENT_GONE else FAILED
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
    baseline_usd: Decimal,
    error_usd: Decimal | None,
    cost_usd: Decimal,
    measured: MeasuredBaseline | None,
) -> Savings:
    """Apply the rule of a class to the amounts of a receipt.

    Args:
        error_usd: the error of `baseline_usd`; None counts as 0.
        cost_usd: the cost of all engine calls of the receipt.
    """
    if of_class == MEASURING:
        if measured is None:
            return Savings(-cost_usd, _ZERO, cost_usd)
        difference = savings_usd(measured.baseline_usd, measured.estimated_usd)
        return Savings(savings_usd(difference, cost_usd), -measured.estimated_error_usd, cost_usd)
    difference = savings_usd(baseline_usd, cost_usd)
    if is_counted(of_class, difference):
        return Savings(difference, error_usd or _ZERO, _ZERO)
    return Savings(-cost_usd if is_lost(of_class) else _ZERO, _ZERO, _ZERO)


def is_counted(of_class: str, difference: Decimal | int) -> bool:
    """Return whether the difference of baseline and cost counts as savings. In the class `measuring` it never does."""
    return of_class in _COUNTED or (difference < 0 and of_class in _LOSSES_ONLY)


def is_lost(of_class: str) -> bool:
    """Return whether all of the cost is a loss: no caller received an answer, so the baseline that counts is 0."""
    return of_class in _WITHOUT_ANSWER


def is_about_zero(usd: Decimal, error_usd: Decimal) -> bool:
    """Return whether the error is at least as large as the amount, so that the true amount may be 0."""
    return error_usd > 0 and abs(usd) <= error_usd


def shown(usd: Decimal, error_usd: Decimal) -> str:
    """Return the amount for display, without an exponent, or "about 0"."""
    return ABOUT_ZERO if is_about_zero(usd, error_usd) else f"{usd.normalize():f}"
