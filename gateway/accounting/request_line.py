"""A shorter `request` event for the console. JSON logs contain the whole receipt."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.accounting.receipt import Receipt
from gateway.accounting.savings import ABOUT_ZERO

if TYPE_CHECKING:
    from structlog.typing import EventDict

_RECEIPT_FIELDS = frozenset(field.name for field in msgspec.structs.fields(Receipt))
_DERIVED = "savings_about_zero"
_MAX_DIGITS = 6


def shorten_request_event(_: Any, __: str, event: EventDict) -> EventDict:
    """Shorten the `request` event. A structlog processor; other events pass unchanged."""
    if event.get("event") != "request" or not event.keys() >= _RECEIPT_FIELDS:
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
