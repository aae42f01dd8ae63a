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
_LIMIT_S = 5.0


class ReceiptFinder:
    """Tenants take turns.

    Args:
        threads: run the queries. Nothing else uses them, so other queries delay none of these.
    """

    def __init__(self, threads: QueryThreads) -> None:
        self._threads = threads
        self._turns = FairSemaphore(_AT_ONCE)

    async def find(self, tenant: str, receipt_id: str) -> bytes | None:
        """Return a tenant's receipt as JSON, None where there is none.

        Raises UsageUnavailable where that takes more than 5 s or the database is unavailable.
        """
        try:
            async with asyncio.timeout(_LIMIT_S), self._turns.hold(tenant):
                return await self._threads.query(_find, tenant, receipt_id)
        except TimeoutError as error:
            raise UsageUnavailable from error


def _find(connection: Connection, tenant: str, receipt_id: str) -> bytes | None:
    from gateway.usage.receipts_reader import find  # here, in a thread: it imports SQLAlchemy

    return find(connection, tenant, receipt_id)
