"""Disconnects: the engine call of a request whose caller left is read to its end, or cancelled at once.

Only the end of a reply has the engine's token counts. Reading on is worth it while the tokens that may still come cost
less than `MAX_REST_USD`, and for `READ_ON_S` at most. Otherwise the call is cancelled, and charged at an upper bound.
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
"""Cost of the tokens that may still be generated, above which the call is cancelled."""


class Disconnects:
    """Decides for each request whose caller disconnects.

    Args:
        prices: of each engine.
    """

    def __init__(self, prices: Mapping[str, Price]) -> None:
        self._prices = prices

    def read_on_s(self, builder: ReceiptBuilder | None) -> float:
        """Return for how many seconds the request may go on; 0: it is to be cancelled now. Mark one that goes on."""
        if builder is None or builder.running is None:
            return 0.0
        call = builder.running
        if call.ended:
            wanted = call.usage is None
        elif call.limit_tokens is None:
            wanted = False
        else:
            rest_tokens = max(0, call.limit_tokens - call.seen_tokens)
            wanted = rest_tokens * self._prices[call.model].output_usd <= MAX_REST_USD
        builder.caller_left = builder.caller_left or wanted
        return READ_ON_S if wanted else 0.0
