"""What a request is about to spend, written down before it spends: if its process dies, this is what settles. Pure."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec

from gateway.ledger.receipt import EngineShare, Receipt, Timings
from gateway.pricing import cost_usd, quantized, savings_usd, total_usd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.ledger.draft import Draft
    from gateway.pricing import Price
    from gateway.protocol import CallerRequest

ABANDONED = "abandoned"

# English has about four bytes to a token, and the JSON around the words is counted with them.
_BYTES_PER_TOKEN = 4
# What the finisher is taken to write for a caller who sets no limit, on a route that has none either.
_ASSUMED_TOKENS = 1024


class Intent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request before it is worked on.

    Attributes:
        mode, unguided: as planned; the receipt's words.
        teacher, student: what each engine may be asked for at most. `at_least` where no limit was set: then the
            finisher is taken to write 1024 tokens for each choice.
        reserved_usd: what both may cost together.
        owner: the process that works on it.
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

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, raw: bytes) -> Intent:
        """Raises msgspec.DecodeError when `raw` is not an intent."""
        return msgspec.json.decode(raw, type=cls)


def intend(draft: Draft, asked: CallerRequest, prices: Mapping[str, Price], owner: str) -> Intent:
    """The intent of a request: the prompt by its bytes, and every token that it may be answered with."""
    plan, guidance = draft.plan, draft.plan.guidance
    read = max(1, asked.size_bytes // _BYTES_PER_TOKEN)
    written = (_ASSUMED_TOKENS if plan.max_tokens is None else plan.max_tokens) * asked.choices
    teacher = None if guidance is None else _at_most(guidance.teacher, read, guidance.tokens, prices)
    # The finisher reads the guidance as a part of its prompt.
    opened = 0 if guidance is None else guidance.tokens
    finisher = _at_most(plan.finisher, read + opened, written, prices, unbounded=plan.max_tokens is None)
    shares = (finisher, None) if plan.mode == "teacher" else (teacher, finisher)
    return Intent(
        id=draft.id,
        created=draft.created,
        tenant=draft.tenant,
        key=draft.key,
        route=draft.route,
        mode=draft.mode,
        stream=draft.stream,
        teacher=shares[0],
        student=shares[1],
        baseline=plan.baseline,
        reserved_usd=total_usd(*(share.cost_usd for share in shares if share is not None)),
        owner=owner,
        unguided=plan.unguided,
        shadow_of=draft.shadow_of,
    )


def abandoned(intent: Intent, now: float) -> Receipt:
    """The receipt of a request whose process died: it may have spent what was reserved, and nothing was saved.

    Args:
        now: Unix seconds.
    """
    cost = intent.reserved_usd
    return Receipt(
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
        savings_usd=savings_usd(cost, cost),
        timings=Timings(total_ms=max(0.0, round((now - intent.created) * 1000, 3))),
        shadow_of=intent.shadow_of,
    )


def _at_most(
    model: str, read: int, written: int, prices: Mapping[str, Price], *, unbounded: bool = False
) -> EngineShare:
    cost = quantized(cost_usd(prices[model], read, written))
    return EngineShare(model, read, written, cost, estimated=True, at_least=unbounded)
