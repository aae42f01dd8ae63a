"""What the script that admits and settles is told, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from gateway.accounting.scopes import Scope

Limit = Literal["requests", "tokens", "parallel", "budget"]


class VariantEntry(msgspec.Struct, frozen=True):
    """One way to answer a request. `kind`: 1 as planned, 2 with shorter guidance, 3 by the student alone."""

    kind: int
    usd: str
    tokens: int
    intent: str


class AdmissionEntry(msgspec.Struct, frozen=True):
    """A request that asks to be admitted, or with `force` one that was let in already. Scopes count from 1."""

    id: str
    scopes: list[int]
    variants: list[VariantEntry]
    force: bool


class ChargeEntry(msgspec.Struct, frozen=True):
    """What a request was charged for in one scope: see `Charge`."""

    scope: int
    window: bool
    parallel: bool
    budget: bool
    unit: str
    count: int


class SettlementEntry(msgspec.Struct, frozen=True):
    """A request that is over: what it cost, and the tokens that it used."""

    id: str
    receipt: str
    usd: str
    tokens: int
    charges: list[ChargeEntry]
    abandoned: bool = False


class ExchangeRequest(msgspec.Struct, frozen=True):
    """All that one call of the script tells of one tenant.

    Attributes:
        owner: the process whose requests these are.
        lease_us: after so long without a word a process no longer holds what runs in parallel.
        beat: whether the owner lives, beside what it admits.
        gone: whether it is known not to.
    """

    owner: str
    ttl_s: int
    lease_us: int
    scopes: list[Scope]
    admitted: list[AdmissionEntry]
    settled: list[SettlementEntry]
    beat: bool = False
    gone: bool = False


class Refusal(msgspec.Struct, frozen=True):
    """Which limit a request would pass, in which scope; money in picodollars."""

    limit: Limit
    scope: int
    most: str
    used: str
    need: str
    retry_us: int


class LimitRemainder(msgspec.Struct, frozen=True):
    """A limit for each minute: what it is, what is left of it, and when all of it will be there again."""

    most: int
    left: int
    reset_us: int


class AdmissionVerdict(msgspec.Struct, frozen=True):
    """Whether a request may go on, and how.

    Attributes:
        variant: the kind of plan that it may follow; 0: none.
        soft: whether a budget has passed its soft line.
    """

    variant: int = 0
    soft: bool = False
    no: Refusal | None = None
    left: dict[Literal["requests", "tokens"], LimitRemainder] | None = None


class BudgetEvent(msgspec.Struct, frozen=True):
    """A budget came to its soft line, or a request did not fit into it any more. Money in picodollars."""

    scope: int
    kind: Literal["soft", "hard"]
    spent: str
    reserved: str
    most: str
    soft: str


class ExchangeReply(msgspec.Struct, frozen=True):
    """The answer.

    Attributes:
        verdicts: one for each that was to be admitted.
        replaced: ids of receipts that took the place of an abandoned one.
        settled: ids of abandoned requests that this call settled, and no other process did.
        left: for each scope the rest of its budget in picodollars, or an empty text. Empty where no scope has a budget.
    """

    now_us: int
    verdicts: list[AdmissionVerdict]
    replaced: list[str]
    settled: list[str]
    events: list[BudgetEvent]
    left: list[str] = []


@dataclass(slots=True)
class Allowance:
    """What a caller has left of its limits, as far as one request has heard."""

    requests: LimitRemainder | None = None
    tokens: LimitRemainder | None = None
