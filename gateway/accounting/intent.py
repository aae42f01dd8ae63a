"""What a request is about to spend, written down before it spends: if its process dies, this is what settles. Pure."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec

from gateway.accounting.receipt import Attempt, CloseTerms, EngineShare, Receipt, Timings
from gateway.accounting.savings import with_savings
from gateway.accounting.scopes import Charge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.accounting.draft import ReceiptBuilder
    from gateway.accounting.scopes import Scope
    from gateway.accounting.worst_case import MaxCost
    from gateway.policy.resolve import Plan

ABANDONED = "abandoned"


class Intent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request before it is worked on.

    Attributes:
        mode, unguided: as planned; the receipt's words.
        teacher, student: what one call of each engine can come to at most. `at_least` where no limit was set and the
            engine's maximum is not known: then the default maximum counts for each choice.
        more: what calls in the place of those can, should they fail.
        reserved_usd: what all of these may cost together.
        owner: the process that works on it.
        tokens: what it is taken to read and write if nothing fails.
        charges: what it is charged for while it is worked on, in each scope.
        close: of a guidance, until when its device may report.
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
    reserved_usd: Decimal
    owner: str
    unguided: str | None = None
    shadow_of: str | None = None
    more: tuple[EngineShare, ...] = ()
    tokens: int = 0
    charges: tuple[Charge, ...] = ()
    close: CloseTerms | None = None

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, raw: bytes) -> Intent:
        """Raises msgspec.DecodeError when `raw` is not an intent."""
        return msgspec.json.decode(raw, type=cls)


def intend(draft: ReceiptBuilder, plan: Plan, most: MaxCost, owner: str, scopes: Sequence[Scope] = ()) -> Intent:
    """The intent of a request that follows `plan` and can cost `most`."""
    return Intent(
        id=draft.id,
        created=draft.created,
        tenant=draft.tenant,
        key=draft.key,
        route=draft.route,
        mode=_mode(plan) if draft.shadow_of is None else draft.mode,
        stream=draft.stream,
        teacher=most.teacher,
        student=most.student,
        baseline=plan.baseline,
        reserved_usd=most.usd,
        owner=owner,
        unguided=plan.unguided,
        shadow_of=draft.shadow_of,
        more=most.more,
        tokens=most.likely_tokens,
        charges=tuple([scope.charge for scope in scopes]),
        close=draft.terms,
    )


def _mode(plan: Plan) -> str:
    return "student" if plan.mode == "guided" and plan.guidance is None else plan.mode


def abandoned(intent: Intent, now: float) -> Receipt:
    """The receipt of a request whose process died: it may have spent what was reserved, and nothing was saved.

    Args:
        now: Unix seconds.
    """
    cost = intent.reserved_usd
    receipt = Receipt(
        id=intent.id,
        created=intent.created,
        tenant=intent.tenant,
        key=intent.key,
        route=intent.route,
        mode=intent.mode,
        stream=intent.stream,
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
        baseline_error_usd=cost,  # it may have done nothing, and nobody knows what it answered
        close=intent.close,  # its device may have been answered all the same
    )
    return with_savings(receipt)
