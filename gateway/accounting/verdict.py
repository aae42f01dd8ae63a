"""The reply of the script that admits and settles (exchange.lua), and the errors for refused requests. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

import msgspec

from gateway.accounting.budgets import period_end
from gateway.errors import BudgetSpent, NeverFits, RateLimited, ServiceError, StoreUnavailable
from gateway.pricing import dollars

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.accounting.scopes import Scope

Limit = Literal["requests", "tokens", "parallel", "budget"]
_US = 1_000_000
_AWAY_RETRY_S = 5.0


class Refusal(msgspec.Struct, frozen=True):
    """The limit and scope that a request would exceed. Amounts of money are in picodollars."""

    limit: Limit
    scope: int
    maximum: str = msgspec.field(name="most")
    used: str
    need: str
    retry_us: int
    slices: int = 1  # the number of equal parts of the limit. A request must fit one part.

    @property
    def largest_part(self) -> int:
        return -(-int(self.maximum) // self.slices)


class LimitRemainder(msgspec.Struct, frozen=True):
    """A limit per minute: the limit, its remainder, and the time until it is free again in microseconds."""

    limit: int = msgspec.field(name="most")
    left: int
    reset_us: int


class AdmissionVerdict(msgspec.Struct, frozen=True):
    """The decision on a request."""

    variant: int = 0  # the kind of the admitted plan; 0 for a refused request
    soft: bool = False  # whether a budget is past its soft limit
    refusal: Refusal | None = msgspec.field(default=None, name="no")  # the exceeded limit, or None
    left: dict[Literal["requests", "tokens"], LimitRemainder] | None = None  # remainders of the limits per minute


class BudgetEvent(msgspec.Struct, frozen=True):
    """A budget reached its soft limit, or had no room for a request. Amounts are in picodollars."""

    scope: int
    kind: Literal["soft", "hard"]
    spent: str
    reserved: str
    limit: str = msgspec.field(name="most")
    soft: str


class ExchangeReply(msgspec.Struct, frozen=True):
    """The reply of the script."""

    now_us: int  # Redis TIME in microseconds
    verdicts: list[AdmissionVerdict]  # one for each request to admit
    replaced: list[str]  # ids of receipts that replaced an abandoned one
    settled: list[str]  # ids of abandoned requests that this call settled, and no other process did
    events: list[BudgetEvent]
    left: list[str] = []  # of each scope's budget in picodollars, or "". Empty where no scope has a budget.


@dataclass(slots=True)
class Allowance:
    """The remainders of a caller's limits, as known to one request."""

    requests: LimitRemainder | None = None
    tokens: LimitRemainder | None = None


def refusal_error(refusal: Refusal, scopes: Sequence[Scope], now_us: int | None) -> ServiceError:
    """Return the error for a refused request; `refusal` numbers the `scopes`.

    `now_us` is Redis TIME in microseconds; None where this process decided while Redis was down.
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
    parts = _parts(refusal)
    if refusal.limit == "tokens" and int(refusal.need) > refusal.largest_part:
        return NeverFits(
            f"This request may use {refusal.need} tokens, and the limit of {scope} is {refusal.maximum} per minute. "
            f"{parts}Send a shorter prompt or a lower max_tokens."
        )
    retry_s = refusal.retry_us / _US
    needs = f", and this request may use {refusal.need}" if refusal.limit == "tokens" else ""
    return RateLimited(
        f"The limit of {scope} is {refusal.maximum} {refusal.limit} per minute: {refusal.used} were used in the last "
        f"minute{needs}. {parts if needs else ''}Try again in {retry_s:.{1 if retry_s < 10 else 0}f} s.",
        retry_after_s=retry_s,
    )


def _parts(refusal: Refusal) -> str:
    """Return a sentence on the parts of a limit, with a final space; "" for a limit without parts."""
    name = "budget" if refusal.limit == "budget" else "limit"
    return f"A request must fit one of {refusal.slices} equal parts of this {name}. " if refusal.slices > 1 else ""


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
    unit = {"h": "hour", "d": "day", "w": "week", "mo": "month"}[terms.unit]
    span = f"per {unit}" if terms.count == 1 else f"per {terms.count} {unit}s"
    change = "Spending leaves the budget as it gets older."
    if terms.aligned:
        ends = period_end(terms.unit, terms.count, now_us // _US)
        change = f"It resets at {datetime.fromtimestamp(ends, UTC):%Y-%m-%dT%H:%M:%SZ}."
    return (
        f"The budget of {scope}, {_usd(refusal.maximum)} {span}, has {_usd(str(left))} left, and this request may cost "
        f"{_usd(refusal.need)}. {_parts(refusal)}{change} The gateway's operator can raise it."
    )


def _usd(pico: str) -> str:
    return f"${dollars(pico).quantize(Decimal('0.000001')).normalize():f}"
