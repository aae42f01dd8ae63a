"""Run a call to Redis in the background whenever it has work, and again after a failure."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.redis.client import RedisClient

log = structlog.get_logger()


async def run_on_work(
    redis: RedisClient,
    work: asyncio.Event,
    call: Callable[[], Awaitable[None]],
    *,
    linger_s: float,
    retry_s: float,
    failure: str,
) -> None:
    """Call `call` whenever `work` is set, until canceled.

    Args:
        linger_s: a delay before each call, so that further work shares it.
        retry_s: the pause after a failed call. Only the first of several failures in a row is logged.
        failure: the event in the log.
    """
    has_failed = False
    while True:
        await work.wait()
        await asyncio.sleep(linger_s)
        await redis.wait_up()
        work.clear()
        try:
            await call()
            has_failed = False
        except Exception as error:
            unexpected = redis.failed(error)
            if unexpected or not has_failed:
                log.warning(failure, error=type(error).__name__, exc_info=unexpected)
            has_failed = True
            work.set()
            await asyncio.sleep(retry_s)
