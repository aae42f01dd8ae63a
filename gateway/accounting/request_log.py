"""The `request` log event: select the requests that are logged, and shorten the event for a console. Pure."""

from __future__ import annotations

import zlib
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.accounting.receipt import Receipt
from gateway.accounting.savings import ABOUT_ZERO

if TYPE_CHECKING:
    from structlog.typing import EventDict

_RECEIPT_FIELDS = frozenset(field.encode_name for field in msgspec.structs.fields(Receipt))
# Fields that some receipts do not have.
_OMITTED = frozenset(
    {
        *("warmup", "continued_tokens", "split", "tags", "labels"),
        *("unguided_field", "length_rule", "max_tokens"),
    }
)
_DERIVED = "savings_about_zero"
_MAX_DIGITS = 6
_WHOLE = 2**32

EXPECTED_REASONS = frozenset({
    "best_of", "budget", "caller_prefill", "echo", "field_not_known",
    "logprobs", "modalities", "n", "offline", "output_detail", "prompt_control", "prompt_in_reply", "prompts",
    "quality_fallback", "response_format", "stop_condition", "structured_output", "suffix", "switched_off",
    "token_constraint", "token_ids", "token_limit", "tools",
})  # fmt: skip
"""Reasons for an unguided request without a failure: the caller's request, a spent budget,
guidance that is switched off, or an offline device. Every other reason, also a future one, is a failure."""


class LogSample:
    """Select requests by id. Requests with failures and slow requests are always selected.

    Args:
        share: the part of ordinary requests to log, from 0 to 1.
        slow_s: the total time from which a request counts as slow; None: no request is slow.
    """

    def __init__(self, share: float, slow_s: float | None) -> None:
        self._threshold = round(share * _WHOLE)
        self._slow_ms = None if slow_s is None else slow_s * 1000

    def includes(self, receipt: Receipt) -> bool:
        """Return whether to log the request. The id alone decides, so every process decides the same. A shadow follows
        its original request, and an edge report follows its guidance request."""
        if self._threshold >= _WHOLE or self._is_notable(receipt):
            return True
        return zlib.crc32((receipt.shadow_of or receipt.edge_of or receipt.id).encode()) < self._threshold

    def _is_notable(self, receipt: Receipt) -> bool:
        return (
            receipt.status != "ok"
            or bool(receipt.attempts)
            or (receipt.unguided is not None and receipt.unguided not in EXPECTED_REASONS)
            or (receipt.guidance is not None and receipt.guidance.cut_short is not None)
            or (self._slow_ms is not None and receipt.timings.total_ms >= self._slow_ms)
        )


def shorten_request_event(_: Any, __: str, event: EventDict) -> EventDict:
    """Shorten the `request` event. A structlog processor; other events pass unchanged."""
    if event.get("event") != "request" or not event.keys() >= _RECEIPT_FIELDS - _OMITTED:
        return event
    short: EventDict = {name: value for name, value in event.items() if name not in {*_RECEIPT_FIELDS, _DERIVED}}
    short.update({name: event[name] for name in ("id", "tenant", "route", "mode", "status")})
    if event["unguided"] is not None:
        short["unguided"] = event["unguided"]
    if event["attempts"]:
        short["failed"] = len(event["attempts"])
    short["tokens"] = "+".join(
        f"{share['input_tokens']}>{share['output_tokens']}"
        for role in ("teacher", "student")
        if (share := event[role]) is not None
    )
    short["cost"] = _usd(event["cost_usd"])
    short["saved"] = ABOUT_ZERO if event[_DERIVED] else _usd(event["savings_usd"])
    short["total_ms"] = round(event["timings"]["total_ms"], 1)
    return short


def _usd(text: str) -> str:
    """Return an amount with six significant digits."""
    amount = Decimal(text)
    if amount:
        amount = round(amount, max(0, _MAX_DIGITS - 1 - amount.adjusted()))
    return f"${amount.normalize():f}" if amount >= 0 else f"-${-amount.normalize():f}"
