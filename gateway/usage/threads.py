"""Run blocking calls of the usage database in dedicated threads, so that a hanging database delays no other work."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from gateway.errors import StartupError, UsageUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection

P = ParamSpec("P")
T = TypeVar("T")

_SHORT_QUERIES, _SCANS = 2, 4
_SHORT_QUERY_S = 5.0


class Readable(Protocol):
    """A readable database."""

    def reading(self) -> AbstractContextManager[Connection]:
        """Begin a read transaction."""


class QueryThreads:
    """Threads for queries. Short queries do not wait for scans.

    Args:
        database: may be unavailable. It limits the time of each statement.
        timeout_s: limit of a short query.
    """

    def __init__(self, database: Readable, timeout_s: float = _SHORT_QUERY_S) -> None:
        self._database = database
        self._timeout_s = timeout_s
        self._short = ThreadPoolExecutor(_SHORT_QUERIES, "usage-query")
        self._long = ThreadPoolExecutor(_SCANS, "usage-scan")

    async def query(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **_: P.kwargs) -> T:
        """Return the result of a short query.

        Raises:
            UsageUnavailable: the query failed or timed out.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                run = partial(self._run, query, *args)
                return await asyncio.get_running_loop().run_in_executor(self._short, run)
        except TimeoutError as error:
            raise UsageUnavailable from error

    async def scan(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **_: P.kwargs) -> T:
        """Return the result of a query of many rows. A canceled call ends when the query ends.

        Raises:
            UsageUnavailable: the query failed.
        """
        return await in_thread(self._run, query, *args, threads=self._long)

    def close(self) -> None:
        """Cancel waiting queries, and do not wait for running queries."""
        self._short.shutdown(wait=False, cancel_futures=True)
        self._long.shutdown(wait=False, cancel_futures=True)

    def _run(self, query: Callable[..., T], *args: Any) -> T:
        from sqlalchemy.exc import SQLAlchemyError  # imported in the thread: the import would block the event loop

        try:
            with self._database.reading() as connection:
                return query(connection, *args)
        # StartupError: a newer version of the gateway has migrated the tables. ValueError: receipts or sums are
        # damaged, or were written by a newer version.
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
