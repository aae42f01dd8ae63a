"""What a caller is told whose request does not fit into a limit or a budget. Pure."""

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


def refused(refusal: Refusal, scopes: Sequence[Scope], now_us: int | None) -> ServiceError:
    """The error for a request that was refused.

    Args:
        scopes: those that the refusal counts.
        now_us: Redis TIME; None: Redis is away, and this process decided by its own part.
    """
    scope = scopes[refusal.scope - 1]
    if now_us is None:
        return _away(refusal, scope)
    if refusal.limit == "budget":
        return BudgetSpent(_budget(refusal, scope, now_us))
    if refusal.limit == "parallel":
        return RateLimited(
            f"The limit of {scope}, {refusal.most} requests at a time, is in use. Try again when one of them is done.",
            retry_after_s=refusal.retry_us / _US,
        )
    if refusal.limit == "tokens" and int(refusal.need) > int(refusal.most):
        return NeverFits(
            f"This request may take {refusal.need} tokens, and the limit of {scope} is {refusal.most} a minute. Send a "
            "shorter prompt, or a lower max_tokens."
        )
    retry_s = refusal.retry_us / _US
    needs = f", and this request may take {refusal.need}" if refusal.limit == "tokens" else ""
    return RateLimited(
        f"The limit of {scope} is {refusal.most} {refusal.limit} a minute: {refusal.used} were used in the last "
        f"one{needs}. Try again in {_seconds(retry_s)}.",
        retry_after_s=retry_s,
    )


def _away(refusal: Refusal, scope: Scope) -> ServiceError:
    begin = "Redis is away, so this process counts alone."
    if refusal.limit == "budget":
        return StoreUnavailable(
            f"{begin} Until Redis is back it may spend {_usd(refusal.most)} of the budget of {scope}: "
            f"{_usd(refusal.used)} are spent or reserved, and this request may cost {_usd(refusal.need)}. Try again.",
            retry_after_s=_AWAY_RETRY_S,
        )
    unit = "requests at a time" if refusal.limit == "parallel" else f"{refusal.limit} a minute"
    return RateLimited(
        f"{begin} Until Redis is back it admits {refusal.most} {unit} of {scope}: {refusal.used} are in use, and this "
        f"request needs {refusal.need}. Try again.",
        retry_after_s=refusal.retry_us / _US,
    )


def _budget(refusal: Refusal, scope: Scope, now_us: int) -> str:
    terms = scope.budget
    assert terms is not None, "only a budget refuses for money"
    left = max(0, int(refusal.most) - int(refusal.used))
    return (
        f"The budget of {scope}, {_usd(refusal.most)} {_span(terms)}, has {_usd(str(left))} left, and this request may "
        f"cost {_usd(refusal.need)}. {_then(terms, now_us)}"
    )


def _span(terms: BudgetTerms) -> str:
    units = {"h": "hour", "d": "day", "w": "week", "mo": "month"}
    unit = units[terms.unit]
    span = f"a {unit}" if terms.count == 1 else f"in {terms.count} {unit}s"
    return span.replace("a hour", "an hour")


def _then(terms: BudgetTerms, now_us: int) -> str:
    if not terms.aligned:
        return "It comes back little by little, as what was spent gets older. Whoever runs this gateway can raise it."
    ends = period_end(terms.unit, terms.count, now_us // _US)
    return (
        f"It begins anew at {datetime.fromtimestamp(ends, UTC):%Y-%m-%dT%H:%M:%SZ}. "
        "Whoever runs this gateway can raise it."
    )


def _usd(pico: str) -> str:
    amount = dollars(pico)
    return f"${amount.quantize(amount.__class__('0.000001')).normalize():f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
