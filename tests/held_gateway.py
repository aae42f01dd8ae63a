"""A gateway whose event loop is blocked while Redis replies: `python -m tests.held_gateway serve ...`."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

from gateway.accounting.redis_ledger import RedisLedger
from gateway.cli import main

_HELD_S = 0.5
_EACH = 10
_numbers = itertools.count(1)
_exchange = RedisLedger.exchange


async def _held(self: RedisLedger, *args: Any) -> Any:
    """Block the loop after the command was sent, for longer than the Redis timeout."""
    if not next(_numbers) % _EACH:
        asyncio.get_running_loop().call_soon(time.sleep, _HELD_S)
    return await _exchange(self, *args)


if __name__ == "__main__":
    RedisLedger.exchange = _held  # type: ignore[method-assign]
    main()
