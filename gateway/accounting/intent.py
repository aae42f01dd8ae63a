"""The intent of a request: its largest possible cost, stored before it runs. It settles the request of a dead process.

This module is pure.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec

from gateway.accounting.receipt import Attempt, CloseTerms, EngineShare, Receipt, Timings, with_savings
from gateway.accounting.scopes import Charge
from gateway.redis.keys import slice_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.accounting.scopes import Scope
    from gateway.accounting.worst_case import MaxCost
    from gateway.policy.plan import Plan

ABANDONED = "abandoned"


class Intent(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request before it runs.

    Attributes:
        mode, unguided: as planned, with the values of a receipt.
        teacher, student: the largest share of one call. `at_least` is set where no limit applies and the engine's
            maximum is unknown. The default maximum then counts for each choice.
    """

    id: str
    created: int
    tenant: str
    key: str
    route: str
    mode: str
    stream: bool
    teacher: EngineShare | None
    student: EngineShare | None
    baseline: str
    reserved_usd: Decimal  # the largest cost of all calls together
    process_id: str = msgspec.field(name="owner")
    unguided: str | None = None
    shadow_of: str | None = None
    more: tuple[EngineShare, ...] = ()  # the largest shares of retries and alternative calls
    tokens: int = 0  # the expected number of tokens read and written if no call fails
    charges: tuple[Charge, ...] = ()  # the charge in each scope while the request runs
    close: CloseTerms | None = None  # for a guidance request, the terms of its device's report
    tags: tuple[str, ...] = ()  # of the caller
    labels: dict[str, str] = {}  # by name
    slice: int = 0  # the slice of the tenant that admits the request

    @property
    def namespace(self) -> str:
        """Return the name of the slice, as Redis keys have it."""
        return slice_name(self.tenant, self.slice)

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, raw: bytes) -> Intent:
        """Decode an intent. Raises msgspec.DecodeError when `raw` is not an intent."""
        return msgspec.json.decode(raw, type=cls)


def intend(
    builder: ReceiptBuilder, plan: Plan, max_cost: MaxCost, process_id: str, scopes: Sequence[Scope] = ()
) -> Intent:
    """Return the intent of a request that follows `plan`. `max_cost` is its largest cost."""
    mode = "student" if plan.mode == "guided" and plan.guidance is None else plan.mode
    return Intent(
        *(builder.id, builder.created, builder.tenant, builder.key, builder.route),
        mode=mode if builder.shadow_of is None else builder.mode,
        stream=builder.stream,
        teacher=max_cost.teacher,
        student=max_cost.student,
        baseline=plan.baseline,
        reserved_usd=max_cost.usd,
        process_id=process_id,
        unguided=plan.unguided,
        shadow_of=builder.shadow_of,
        more=max_cost.more,
        tokens=max_cost.likely_tokens,
        charges=tuple([scope.charge for scope in scopes]),
        close=builder.terms,
        tags=builder.tags,
        labels=builder.labels,
    )


def abandoned(intent: Intent, now: float) -> Receipt:
    """Return the receipt of a request whose process died. Its cost is the reservation. `now` is in Unix seconds."""
    cost = intent.reserved_usd
    receipt = Receipt(
        *(intent.id, intent.created, intent.tenant, intent.key, intent.route, intent.mode, intent.stream),
        status=ABANDONED,
        finish_reason=None,
        unguided=intent.unguided,
        teacher=intent.teacher,
        student=intent.student,
        guidance=None,
        batch=None,
        cost_usd=cost,
        baseline_model=intent.baseline,
        baseline_usd=cost,
        baseline_estimated=True,
        savings_usd=Decimal(0),
        timings=Timings(total_ms=max(0.0, round((now - intent.created) * 1000, 3))),
        shadow_of=intent.shadow_of,
        attempts=tuple(Attempt(share.model, ABANDONED, share) for share in intent.more),
        baseline_basis="estimate",
        baseline_error_usd=cost,  # the request may have done nothing, and its answer is unknown
        close=intent.close,  # its device may have received the guidance
        stored_tags=intent.tags or msgspec.UNSET,
        stored_labels=intent.labels or msgspec.UNSET,
    )
    return with_savings(receipt)
