"""Keep the partitions of the usage database in a usage worker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from gateway.errors import StartupError

if TYPE_CHECKING:
    from gateway.usage.store import UsageStore

log = structlog.get_logger()

_EVERY_S = 3_600.0
_RETRY_S = 30.0


async def keep_partitions(store: UsageStore, *, every_s: float = _EVERY_S, retry_s: float = _RETRY_S) -> None:
    """Keep the partitions of the database until canceled. A failure is logged once, and tried again."""
    failing = False
    while True:
        pause_s = every_s
        try:
            await store.keep_partitions()
            failing = False
        except Exception as error:  # noqa: BLE001 - logged
            if not failing:
                why = error.message if isinstance(error, StartupError) else None
                name = type(getattr(error, "orig", None) or error).__name__
                log.warning("usage_partitions_failed", error=name, why=why)
            failing, pause_s = True, retry_s
        await asyncio.sleep(pause_s)
