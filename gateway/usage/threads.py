"""Run blocking work in threads: queries of a usage database that may hang, and work that needs the CPU."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.errors import StartupError, UsageUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection

    from gateway.usage.queries import UsageQueries

T = TypeVar("T")

_SHORT_QUERY_S = 5.0
# Without pauses, the event loop would wait for up to the interpreter's switch interval each time.
_INTERVAL_S, _PAUSE_S = 0.001, 0.0002


class QueryThreads:
    """Threads for queries. Short queries, of at most `timeout_s`, do not wait for scans.

    `begin` begins a read transaction. The database may hang: it delays no other work, and limits the time of each
    statement. Each thread uses one connection at a time, so `short` and `scans` limit the connections.
    """

    def __init__(
        self,
        begin: Callable[[], AbstractContextManager[Connection]],
        timeout_s: float = _SHORT_QUERY_S,
        *,
        short: int = 2,
        scans: int = 4,
    ) -> None:
        self._begin = begin
        self._timeout_s = timeout_s
        self._short = ThreadPoolExecutor(short, "usage-query")
        self._long = ThreadPoolExecutor(scans, "usage-scan")

    async def query(self, query: Callable[[UsageQueries], T]) -> T:
        """Return the result of a short query. Raises UsageUnavailable if the query failed or timed out."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._short, self._run, query)
        except TimeoutError as error:
            raise UsageUnavailable from error

    async def scan(self, query: Callable[[UsageQueries], T]) -> T:
        """Return the result of a query of many rows. A canceled call ends with the query. Raises UsageUnavailable."""
        return await in_thread(self._run, query, threads=self._long)

    def close(self) -> None:
        """Cancel waiting queries, and do not wait for running queries."""
        self._short.shutdown(wait=False, cancel_futures=True)
        self._long.shutdown(wait=False, cancel_futures=True)

    def _run(self, query: Callable[[UsageQueries], T]) -> T:
        # Imported in the thread: the import of SQLAlchemy would block the event loop.
        from sqlalchemy.exc import SQLAlchemyError

        from gateway.usage.queries import UsageQueries

        try:
            with self._begin() as connection:
                return query(UsageQueries(connection))
        # StartupError: a newer version of the gateway has migrated the tables. ValueError: receipts or sums are
        # damaged.
        except (SQLAlchemyError, OSError, StartupError, ValueError) as error:
            raise UsageUnavailable from error


async def in_thread(work: Callable[..., T], *args: Any, threads: Executor | None = None) -> T:
    """Return the result of a call in a thread. A canceled call ends when the thread is free.

    Otherwise disconnecting callers could occupy all the threads that tenants share.
    """
    running = asyncio.get_running_loop().run_in_executor(threads, partial(work, *args))
    try:
        return await asyncio.shield(running)
    finally:
        if not running.done():
            await asyncio.wait([running])


def with_pauses(items: Iterable[T]) -> Iterator[T]:
    """Yield the items, and sleep after each interval of 1 ms, so that the event loop gets the interpreter lock.

    Call it in a thread.
    """
    interval_start = time.perf_counter()
    for item in items:
        yield item
        if time.perf_counter() - interval_start > _INTERVAL_S:
            time.sleep(_PAUSE_S)
            interval_start = time.perf_counter()
