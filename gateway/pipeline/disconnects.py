"""Disconnects: read the running engine call to its end, or cancel it at once.

Only the end of a reply contains the engine's token counts. The call is read on while the tokens that may still come
cost at most `MAX_REST_USD`, and for `READ_ON_S` at most. Otherwise it is canceled and charged at an upper bound.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.accounting.draft import ReceiptBuilder
    from gateway.pricing import Price

READ_ON_S = 2.0
"""Seconds for which a call is read on. An engine sends its usage within milliseconds of the last token."""
MAX_REST_USD = Decimal("0.001")
"""Largest cost of the tokens that may still be generated; above it the call is canceled."""


class Disconnects:
    """Decide what happens to a request whose caller disconnects.

    Args:
        prices: price of each engine.
    """

    def __init__(self, prices: Mapping[str, Price]) -> None:
        self._prices = prices

    def read_on_s(self, builder: ReceiptBuilder | None) -> float:
        """Return for how many seconds the request may continue; 0: cancel it now. Mark a request that continues."""
        if builder is None or builder.running is None:
            return 0.0
        call = builder.running
        if call.ended:
            read_on = call.usage is None
        elif call.limit_tokens is None:
            read_on = False
        else:
            rest_tokens = max(0, call.limit_tokens - call.seen_tokens)
            read_on = rest_tokens * self._prices[call.model].output_usd <= MAX_REST_USD
        builder.caller_left = builder.caller_left or read_on
        return READ_ON_S if read_on else 0.0
