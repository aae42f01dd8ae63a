"""Conditions and pages of a search for receipts. Without SQLAlchemy, whose import would block the event loop. Pure."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

MAX_SCANNED = 10_000
"""Receipts that one call reads at most."""
ANY = "any"
ERROR = "error"


class _Facts(msgspec.Struct):
    unguided: str | None = None
    labels: dict[str, str] = {}


_FACTS_DECODER = msgspec.json.Decoder(_Facts)


class ReceiptSearch(NamedTuple):
    """Conditions on receipts; None: no condition. Times are Unix seconds, [since, until), and amounts picodollars.

    `status` may be ERROR: all but `ok`. `unguided` may be ANY: all reasons. Shadows are found only with their `mode`.
    """

    since: float | None = None
    until: float | None = None
    tenant: str | None = None
    route: str | None = None
    key: str | None = None
    mode: str | None = None
    status: str | None = None
    unguided: str | None = None
    min_pico: int | None = None
    max_pico: int | None = None
    label: tuple[str, str] | None = None  # name and value

    def matches(self, raw: bytes) -> bool:
        """Return whether a receipt has the required reason and label, which are no columns."""
        if self.unguided is None and self.label is None:
            return True
        facts = _FACTS_DECODER.decode(raw)
        if self.label is not None and facts.labels.get(self.label[0]) != self.label[1]:
            return False
        if self.unguided is None:
            return True
        return facts.unguided is not None if self.unguided == ANY else facts.unguided == self.unguided


class FoundReceipt(NamedTuple):
    """A receipt and the receipts of its shadows, as JSON."""

    receipt: bytes
    shadows: list[bytes]


class SearchPage(NamedTuple):
    """Receipts, the number of receipts that were read for them, and the start of the next page; None at the end."""

    found: list[FoundReceipt]
    scanned: int
    following: str | None
