"""The archive, for the event loop: its database works in threads of its own, few of them."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.archive.database import ArchiveDatabase, ArchiveError, Where
from gateway.archive.tables import entry_id, entry_parts
from gateway.errors import StoreUnavailable
from gateway.fair_share import FairSemaphore
from gateway.ledger.receipt import Receipt
from gateway.rollups.rebuild import Archived

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from gateway.archive.database import Entry

_Result = TypeVar("_Result")
_READERS = 2
_LOOK_UP_S = 5.0
_END: Any = object()
_ALL: Mapping[str, str] = MappingProxyType({})
_EVERYWHERE = Where()


class Archive:
    """Args:
    address: as SQLAlchemy takes it. Raises StartupError where what connects to it is not installed.
    """

    def __init__(self, address: str) -> None:
        self._database = ArchiveDatabase(address)
        self.where = str(self._database)
        # Apart from the threads of requests: a database that hangs holds up nobody else. One of them is the writer's.
        self._writer = ThreadPoolExecutor(1, "archive")
        self._readers = ThreadPoolExecutor(_READERS, "archive-reads")
        self._look_ups = FairSemaphore(_READERS)

    async def open(self) -> None:
        """See `ArchiveDatabase.open`."""
        await self._in(self._writer, self._database.open)

    async def is_there(self) -> bool:
        """See `ArchiveDatabase.is_there`."""
        return await self._in(self._readers, self._database.is_there)

    async def write(self, entries: Sequence[Entry]) -> int:
        """See `ArchiveDatabase.write`."""
        return await self._in(self._writer, self._database.write, entries)

    async def delete_before(self, created: float) -> int:
        """See `ArchiveDatabase.delete_before`."""
        return await self._in(self._writer, self._database.delete_before, created)

    async def find(self, tenant: str, receipt_id: str) -> bytes | None:
        """Return a tenant's receipt as JSON, or None. Tenants are served in turn. Raises StoreUnavailable."""
        try:
            async with asyncio.timeout(_LOOK_UP_S), self._look_ups.hold(tenant):
                return await self._in(self._readers, self._database.find, tenant, receipt_id)
        except (*ArchiveError, TimeoutError):
            raise StoreUnavailable("The archive of receipts cannot be read now. Try again.") from None

    async def count(self, where: Where) -> int:
        """See `ArchiveDatabase.count`."""
        return await self._in(self._readers, self._database.count, where)

    async def span(self) -> tuple[int, int] | None:
        """See `ArchiveDatabase.span`."""
        return await self._in(self._readers, self._database.span)

    async def unreadable(self) -> int:
        """See `ArchiveDatabase.unreadable`."""
        return await self._in(self._readers, self._database.unreadable)

    async def aside(self) -> list[Entry]:
        """See `ArchiveDatabase.aside`."""
        return await self._in(self._readers, self._database.aside)

    async def rows(self, where: Where, size: int = 1_000) -> AsyncIterator[list[Any]]:
        """See `ArchiveDatabase.rows`."""
        lists = self._database.rows(where, size)
        while (found := await self._in(self._readers, next, lists, _END)) is not _END:
            yield found

    async def batches(
        self, since: Mapping[str, str] = _ALL, where: Where = _EVERYWHERE, size: int = 1_000
    ) -> AsyncIterator[list[Archived]]:
        """All receipts by time, each once, with the entry that brought it. Raises ArchiveError.

        Args:
            since: by tenant an entry: what came with it or before is left out.
        """
        lists = self._database.rows(where, size)
        while (found := await self._in(self._readers, _next_batch, lists, since)) is not None:
            yield found

    async def close(self) -> None:
        """Let go of the database; what is under way there is not waited for."""
        self._writer.shutdown(wait=False, cancel_futures=True)
        self._readers.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._database.close)

    @staticmethod
    async def _in(threads: ThreadPoolExecutor, work: Callable[..., _Result], *args: Any) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(threads, partial(work, *args))


def _next_batch(lists: Iterator[list[Any]], since: Mapping[str, str]) -> list[Archived] | None:
    rows = next(lists, None)
    if rows is None:
        return None
    after = {tenant: entry_parts(entry) for tenant, entry in since.items()}
    return [
        Archived(
            row.tenant,
            entry_id(row.entry_ms, row.entry_seq),
            Receipt.from_json(row.receipt.encode()),
            None if row.instead is None else Receipt.from_json(row.instead.encode()),
            "" if row.instead is None else entry_id(row.instead_ms, row.instead_seq),
        )
        for row in rows
        if (row.entry_ms, row.entry_seq) > after.get(row.tenant, (-1, 0))
    ]
