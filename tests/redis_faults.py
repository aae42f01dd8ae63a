"""Redis faults: a server that accepts connections and does not answer."""

from __future__ import annotations

import os
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from redis.asyncio import Redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def paused(url: str) -> AsyncIterator[None]:
    """Stop the server's process inside the block. Its connections stay open and new ones are accepted."""
    async with Redis.from_url(url) as redis:
        pid = (await redis.info("server"))["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
