"""Keep the partitions of the usage database in a usage worker, and warn of unreadable receipts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from gateway.errors import StartupError
from gateway.usage.queries import UsageQueries
from gateway.usage.repair import COMMAND

if TYPE_CHECKING:
    from gateway.usage.store import UsageStore

log = structlog.get_logger()

_EVERY_S = 3_600.0
_RETRY_S = 30.0


async def keep_partitions(store: UsageStore, *, every_s: float = _EVERY_S, retry_s: float = _RETRY_S) -> None:
    """Keep the partitions of the database until canceled. A failure is logged once, and tried again.

    First log the number of unreadable receipts.
    """
    failing, checked = False, False
    while True:
        pause_s = every_s
        try:
            if not checked:
                await _warn(store)
                checked = True
            await store.keep_partitions()
            failing = False
        except Exception as error:  # noqa: BLE001 - logged
            if not failing:
                why = error.message if isinstance(error, StartupError) else None
                name = type(getattr(error, "orig", None) or error).__name__
                log.warning("usage_partitions_failed", error=name, why=why)
            failing, pause_s = True, retry_s
        await asyncio.sleep(pause_s)


async def _warn(store: UsageStore) -> None:
    """Log the number of unreadable receipts, with the command that writes them again."""
    if not await store.exists():
        return
    if unreadable := await store.read(UsageQueries.count_unreadable):
        log.warning("usage_receipts_unreadable", count=unreadable, table="usage_unreadable", fix=f"run {COMMAND}")
