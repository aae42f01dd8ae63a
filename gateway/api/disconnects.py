"""Disconnects: the handler of a request reads the running engine call to its end, or is canceled at once.

Only the end of a reply contains the engine's token counts. The call is read on while the tokens that may still come
cost at most `MAX_REST_USD`, and for `READ_ON_S` at most. Otherwise it is canceled and charged at an upper bound.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from aiohttp import web

from gateway.api.keys import INFO

if TYPE_CHECKING:
    import asyncio

    from gateway.accounting.receipt_builder import ReceiptBuilder

READ_ON_S = 2.0
"""Seconds for which a call is read on. An engine sends its usage within milliseconds of the last token."""
MAX_REST_USD = Decimal("0.001")
"""Largest cost of the tokens that may still be generated; above it the call is canceled."""


def read_on_s(builder: ReceiptBuilder | None) -> float:
    """Return for how many seconds a request may continue whose caller disconnected; 0: cancel it now.

    Mark a request that continues.
    """
    if builder is None or (call := builder.running) is None:
        return 0.0
    if call.ended:
        read_on = call.usage is None
    elif call.limit_tokens is None:
        read_on = False
    else:
        rest_tokens = max(0, call.limit_tokens - call.seen_tokens)
        read_on = rest_tokens * builder.engine_set.prices[call.model].output_usd <= MAX_REST_USD
    builder.caller_left = builder.caller_left or read_on
    return READ_ON_S if read_on else 0.0


class DetachedHandlers:
    """Handlers that continue after their caller disconnected; at most `limit` at once. Others are canceled."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0

    def begin(self, request: web.BaseRequest, task: asyncio.Task[None]) -> bool:
        """Let a request's handler continue if its engine call is worth it, and cancel `task` after a time limit."""
        if self._count >= self._limit or not isinstance(request, web.Request):
            return False
        info = request.get(INFO)
        if info is None or (state := info.state) is None:
            return False
        if (seconds := read_on_s(state.builder)) <= 0:
            return False
        self._count += 1
        timer = task.get_loop().call_later(seconds, task.cancel)

        def ended(_: asyncio.Task[None]) -> None:
            timer.cancel()
            self._count -= 1

        task.add_done_callback(ended)
        return True
