"""The errors for requests that exceed a limit or a budget. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gateway.accounting.periods import period_end
from gateway.errors import BudgetSpent, NeverFits, RateLimited, ServiceError, StoreUnavailable
from gateway.pricing import dollars

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.accounting.scopes import BudgetTerms, Scope
    from gateway.accounting.verdict import Refusal

_US = 1_000_000
_AWAY_RETRY_S = 5.0


def refusal_error(refusal: Refusal, scopes: Sequence[Scope], now_us: int | None) -> ServiceError:
    """Return the error for a refused request.

    Args:
        scopes: the scopes that `refusal` numbers.
        now_us: Redis TIME in microseconds; None where this process decided while Redis was down.
    """
    scope = scopes[refusal.scope - 1]
    if now_us is None:
        return _away(refusal, scope)
    if refusal.limit == "budget":
        return BudgetSpent(_budget(refusal, scope, now_us))
    if refusal.limit == "parallel":
        return RateLimited(
            f"The limit of {scope}, {refusal.maximum} parallel requests, is in use. Try again when one of them has "
            "ended.",
            retry_after_s=refusal.retry_us / _US,
        )
    if refusal.limit == "tokens" and int(refusal.need) > int(refusal.maximum):
        return NeverFits(
            f"This request may use {refusal.need} tokens, and the limit of {scope} is {refusal.maximum} per minute. "
            "Send a shorter prompt or a lower max_tokens."
        )
    retry_s = refusal.retry_us / _US
    needs = f", and this request may use {refusal.need}" if refusal.limit == "tokens" else ""
    return RateLimited(
        f"The limit of {scope} is {refusal.maximum} {refusal.limit} per minute: {refusal.used} were used in the last "
        f"minute{needs}. Try again in {_seconds(retry_s)}.",
        retry_after_s=retry_s,
    )


def _away(refusal: Refusal, scope: Scope) -> ServiceError:
    begin = "Redis is down, so this process enforces its own share of the limits."
    if refusal.limit == "budget":
        return StoreUnavailable(
            f"{begin} Until Redis is up, it may spend {_usd(refusal.maximum)} of the budget of {scope}: "
            f"{_usd(refusal.used)} are spent or reserved, and this request may cost {_usd(refusal.need)}. Try again.",
            retry_after_s=_AWAY_RETRY_S,
        )
    unit = "parallel requests" if refusal.limit == "parallel" else f"{refusal.limit} per minute"
    return RateLimited(
        f"{begin} Until Redis is up, it admits {refusal.maximum} {unit} of {scope}: {refusal.used} are in use, and "
        f"this request needs {refusal.need}. Try again.",
        retry_after_s=refusal.retry_us / _US,
    )


def _budget(refusal: Refusal, scope: Scope, now_us: int) -> str:
    terms = scope.budget
    assert terms is not None, "only a scope with a budget refuses for money"
    left = max(0, int(refusal.maximum) - int(refusal.used))
    return (
        f"The budget of {scope}, {_usd(refusal.maximum)} {_span(terms)}, has {_usd(str(left))} left, and this request "
        f"may cost {_usd(refusal.need)}. {_next_step(terms, now_us)}"
    )


def _span(terms: BudgetTerms) -> str:
    units = {"h": "hour", "d": "day", "w": "week", "mo": "month"}
    unit = units[terms.unit]
    return f"per {unit}" if terms.count == 1 else f"per {terms.count} {unit}s"


def _next_step(terms: BudgetTerms, now_us: int) -> str:
    advice = "The gateway's operator can raise it."
    if not terms.aligned:
        return f"Spending leaves the budget as it gets older. {advice}"
    ends = period_end(terms.unit, terms.count, now_us // _US)
    return f"It resets at {datetime.fromtimestamp(ends, UTC):%Y-%m-%dT%H:%M:%SZ}. {advice}"


def _usd(pico: str) -> str:
    amount = dollars(pico)
    return f"${amount.quantize(amount.__class__('0.000001')).normalize():f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
