"""The request and the reply of the script that admits and settles (exchange.lua)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from gateway.accounting.scopes import Scope

Limit = Literal["requests", "tokens", "parallel", "budget"]


class VariantEntry(msgspec.Struct, frozen=True):
    """A plan for a request, in an exchange. `kind`: 1 as planned, 2 with shorter guidance, 3 by the student alone."""

    kind: int
    usd: str
    tokens: int
    intent: str


class AdmissionEntry(msgspec.Struct, frozen=True):
    """A request to admit. With `force` it was admitted already and is only to be counted. Scopes count from 1."""

    id: str
    scopes: list[int]
    variants: list[VariantEntry]
    force: bool


class ChargeEntry(msgspec.Struct, frozen=True):
    """The charge of a request in one scope: see `Charge`."""

    scope: int
    window: bool
    parallel: bool
    budget: bool
    unit: str
    count: int


class SettlementEntry(msgspec.Struct, frozen=True):
    """An ended request with its cost and the tokens that it used."""

    id: str
    receipt: str
    usd: str
    tokens: int
    charges: list[ChargeEntry]
    abandoned: bool = False


class ExchangeRequest(msgspec.Struct, frozen=True):
    """The content of one script call for one tenant.

    Attributes:
        process_id: the process of these requests.
        ttl_s: seconds for which Redis keeps a receipt.
        lease_us: microseconds without a heartbeat after which the parallel slots of a process are free.
        beat: whether to renew the process's lease. Admissions always renew it.
        gone: whether the process is dead.
    """

    process_id: str = msgspec.field(name="owner")
    ttl_s: int
    lease_us: int
    scopes: list[Scope]
    admitted: list[AdmissionEntry]
    settled: list[SettlementEntry]
    beat: bool = False
    gone: bool = False


class Refusal(msgspec.Struct, frozen=True):
    """The limit and scope that a request would exceed. Amounts of money are in picodollars."""

    limit: Limit
    scope: int
    maximum: str = msgspec.field(name="most")
    used: str
    need: str
    retry_us: int


class LimitRemainder(msgspec.Struct, frozen=True):
    """A limit per minute: the limit, its remainder, and the time until it is free again in microseconds."""

    limit: int = msgspec.field(name="most")
    left: int
    reset_us: int


class AdmissionVerdict(msgspec.Struct, frozen=True):
    """The decision on a request.

    Attributes:
        variant: the kind of the admitted plan; 0 for a refused request.
        soft: whether a budget is past its soft limit.
        refusal: the exceeded limit, or None.
        left: remainders of the limits per minute.
    """

    variant: int = 0
    soft: bool = False
    refusal: Refusal | None = msgspec.field(default=None, name="no")
    left: dict[Literal["requests", "tokens"], LimitRemainder] | None = None


class BudgetEvent(msgspec.Struct, frozen=True):
    """A budget reached its soft limit, or had no room for a request. Amounts are in picodollars."""

    scope: int
    kind: Literal["soft", "hard"]
    spent: str
    reserved: str
    limit: str = msgspec.field(name="most")
    soft: str


class ExchangeReply(msgspec.Struct, frozen=True):
    """The reply of the script.

    Attributes:
        now_us: Redis TIME in microseconds.
        verdicts: one for each request to admit.
        replaced: ids of receipts that replaced an abandoned one.
        settled: ids of abandoned requests that this call settled, and no other process did.
        events: budget events.
        left: the remainder of each scope's budget in picodollars, or "". Empty where no scope has a budget.
    """

    now_us: int
    verdicts: list[AdmissionVerdict]
    replaced: list[str]
    settled: list[str]
    events: list[BudgetEvent]
    left: list[str] = []


@dataclass(slots=True)
class Allowance:
    """The remainders of a caller's limits, as known to one request."""

    requests: LimitRemainder | None = None
    tokens: LimitRemainder | None = None
