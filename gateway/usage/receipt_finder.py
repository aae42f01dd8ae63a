"""Find a receipt in the usage database, in a thread."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.errors import UsageUnavailable
from gateway.runtime.fair_share import FairSemaphore

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from gateway.usage.threads import QueryThreads

_AT_ONCE = 2
_TIMEOUT_S = 5.0


class ReceiptFinder:
    """Find receipts, with fair sharing among tenants.

    Args:
        threads: run the queries. Do not share them, so that other queries delay none of these.
        timeout_s: limit of one call.
    """

    def __init__(self, threads: QueryThreads, timeout_s: float = _TIMEOUT_S) -> None:
        self._threads = threads
        self._timeout_s = timeout_s
        self._running = FairSemaphore(_AT_ONCE)

    async def find(self, tenant: str, receipt_id: str) -> bytes | None:
        """Return a tenant's receipt as JSON, or None if the database has no such receipt.

        Raises UsageUnavailable if the call times out or the database is unavailable.
        """
        try:
            async with asyncio.timeout(self._timeout_s), self._running.hold(tenant):
                return await self._threads.query(_find, tenant, receipt_id)
        except TimeoutError as error:
            raise UsageUnavailable from error


def _find(connection: Connection, tenant: str, receipt_id: str) -> bytes | None:
    from gateway.usage.receipts_reader import find  # imported in a thread, because it imports SQLAlchemy

    return find(connection, tenant, receipt_id)
