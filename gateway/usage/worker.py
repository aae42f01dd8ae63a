"""Write receipts from the outboxes to the usage database. Any number of workers may run at once.

The order makes it safe: a worker takes entries, writes them in one transaction, and acknowledges them after the commit.
A worker that dies in between leaves its entries pending, and another one claims them after a minute. The database keeps
each receipt once, so it may come twice.

While the database is away, entries wait in Redis (`receipts.max_buffered`).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import msgspec
import structlog
from redis.exceptions import RedisError

from gateway.errors import StartupError
from gateway.quality.comparison import Comparison
from gateway.usage.comparisons import add_comparisons
from gateway.usage.database import ROW_ERRORS
from gateway.usage.engine import UsageDatabaseError
from gateway.usage.feed import Backlog, ComparisonEntry, FeedBatch
from gateway.usage.state import PUBLISH_INTERVAL_S, WorkerState
from gateway.usage.tables import DAY_S
from gateway.usage.uptime_table import add_minutes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sqlalchemy import Connection

    from gateway.redis.client import RedisClient
    from gateway.usage.archive_import import ArchiveImport
    from gateway.usage.entries import OutboxEntry
    from gateway.usage.feed import OutboxFeed
    from gateway.usage.state import WorkerLease
    from gateway.usage.store import UsageStore
    from gateway.usage.uptime_table import EngineMinutes

log = structlog.get_logger()

_Result = TypeVar("_Result")
_Rows = TypeVar("_Rows")

MAX_ENTRIES = 10_000
"""Entries of one transaction: the more there are, the more of them share sums of an hour and a day."""

_TAKE_ENTRIES = 1_000  # of one command, so that Redis answers gateways in between
_EVERY_S = 0.5
_REST_TIMES = 3
_FIRST_REST_S = 0.5
_LONGEST_REST_S = 5.0
_LOOK_EVERY_S = 10.0
_CLAIM_AFTER_S = 60.0
_DELETE_EVERY_S = 600.0
_IMPORT_EVERY_S = 10.0
_UPTIME_EVERY_S = 60.0
_UPTIME_DAYS = 9  # as many as Redis keeps: the database may have been away as long
_FIRST_UPTIME_DAYS = 3_660  # an earlier version kept so many at most


class _DatabaseFailed(Exception):
    def __init__(self, error: Exception) -> None:
        super().__init__(_class_of(error))
        self.error = error


class UsageWorker:
    """Args:
    seat: joined.
    minutes: returns the uptime of engines on days, given as the Unix seconds they begin with, from Redis.
    keep_s: how long receipts are kept; None: for ever.
    imports: archives of an earlier version.
    """

    def __init__(
        self,
        client: RedisClient,
        feed: OutboxFeed,
        store: UsageStore,
        seat: WorkerLease,
        minutes: Callable[[Sequence[int]], Awaitable[Sequence[EngineMinutes]]],
        *,
        keep_s: float | None,
        imports: Sequence[ArchiveImport] = (),
    ) -> None:
        self._client = client
        self._feed = feed
        self._store = store
        self._seat = seat
        self._minutes = minutes
        self._uptime_copied = False
        self._keep_s = keep_s
        self._imports = imports
        self._held: list[OutboxEntry] = []  # taken, and not acknowledged
        self._in_doubt = True  # more may be: a reply was lost, Redis forgot, or a worker with this number died
        client.on_restart = self._doubt
        self._backlog = Backlog()
        self._counts: Counter[str] = Counter()
        self._up: bool | None = None
        self._error: str | None = None
        self._rest_s = 0.0
        self._interrupted = False  # Redis failed, and that was logged
        self._due: dict[str, float] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Write receipts until `stop` is set; then write those that wait."""
        while not stop.is_set():
            rest_s = PUBLISH_INTERVAL_S
            if self._client.up:
                try:
                    rest_s = await self.round()
                    self._interrupted = False
                except Exception as error:  # noqa: BLE001  it is logged
                    self._client.failed(error)
                    self._log_interruption(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(rest_s):
                    await stop.wait()
        await self._finish()

    async def publish(self) -> None:
        """Publish the state every two seconds, until cancelled. It goes on while a write hangs."""
        while True:
            await self._client.wait_up()
            try:
                await self._publish()
            except Exception as error:  # noqa: BLE001  it is logged
                self._client.failed(error)
                self._log_interruption(error)
            await asyncio.sleep(PUBLISH_INTERVAL_S)

    async def round(self) -> float:
        """Take entries, write and acknowledge them. Return how long to wait before the next round, in seconds.

        Raises RedisError and OSError where Redis fails.
        """
        began = _now()
        try:
            more = await self._work()
        except _DatabaseFailed as failure:
            self._failed(failure.error)
            return self._rest_s * random.uniform(0.8, 1.0)  # noqa: S311  not all workers at the same moment
        except Exception:
            self._doubt()
            raise
        if self._error is not None:
            log.info("usage_database_available", database=str(self._store.engine))
        self._up, self._error, self._rest_s = True, None, 0.0
        return 0.0 if more else max(_EVERY_S, (_now() - began) * _REST_TIMES)

    async def _work(self) -> bool:
        """Return whether there is more to do at once."""
        more = bool(self._held)
        if not self._held:
            taken = await self._next()
            self._held, more = taken.entries, taken.more
            if taken.trimmed:
                self._counts["missed"] += taken.trimmed
                log.error("receipts_missed", count=taken.trimmed, why="trimmed before they were written")
        if self._held:
            await self._write()
        elif not self._up or self._error is not None:
            await _database(self._store.write([]))
        if self._is_due("uptime", _UPTIME_EVERY_S):
            await self._copy_uptime()
        if not more:
            more = await self._import()
        if not more and self._is_due("delete", _DELETE_EVERY_S):
            more = await self._delete()
        return more

    def _doubt(self) -> None:
        self._in_doubt = True

    async def _next(self) -> FeedBatch:
        if self._in_doubt:
            taken = await self._feed.read_pending(_TAKE_ENTRIES)
            if taken.entries:
                return taken
            self._in_doubt = False
        if self._backlog.pending and self._is_due("claim", _LOOK_EVERY_S):
            taken = await self._feed.claim(self._backlog.pending, _CLAIM_AFTER_S, _TAKE_ENTRIES)
            if taken.more:
                self._due["claim"] = 0.0
            if taken.entries or taken.trimmed:
                return taken
        return await self._take()

    async def _take(self, *, all_outboxes: bool = False) -> FeedBatch:
        taken = await self._feed.read_new(_TAKE_ENTRIES, all_outboxes=all_outboxes)
        while taken.more and len(taken.entries) < MAX_ENTRIES:
            more = await self._feed.read_new(_TAKE_ENTRIES)
            taken = FeedBatch([*taken.entries, *more.entries], more=more.more)
        return taken

    async def _write(self) -> None:
        entries = [one for one in self._held if not isinstance(one, ComparisonEntry)]
        if len(entries) < len(self._held):
            entries += await self._compared([one for one in self._held if isinstance(one, ComparisonEntry)])
        added = await _database(self._store.write(entries))
        for result in ("inserted", "replaced", "known", "unreadable"):
            self._counts[result] += getattr(added, result)
        if added.unreadable:
            log.error("receipts_unreadable", count=added.unreadable, table="usage_unreadable")
        await self._feed.acknowledge(self._held)  # where this fails they are written again, and are known
        self._held = []

    async def _compared(self, entries: Sequence[OutboxEntry]) -> list[OutboxEntry]:
        """Write comparisons. Return the entries that cannot be read."""
        unreadable: list[OutboxEntry] = []
        comparisons: list[tuple[OutboxEntry, Comparison]] = []
        for entry in entries:
            try:
                comparisons.append((entry, Comparison.from_json(entry.raw)))
            except msgspec.MsgspecError:
                unreadable.append(entry)
        try:
            await self._in_transaction(add_comparisons, [one for _, one in comparisons])
        except _DatabaseFailed as failure:
            if not isinstance(failure.error, ROW_ERRORS):
                raise
            for entry, one in comparisons:  # the database refuses one of them: it must not keep the others out
                try:
                    await self._in_transaction(add_comparisons, [one])
                except _DatabaseFailed as refused:
                    if not isinstance(refused.error, ROW_ERRORS):
                        raise
                    unreadable.append(entry)
        return unreadable

    async def _copy_uptime(self) -> None:
        """Copy the minutes in which engines were up: of the last days, and at first of all that Redis may hold."""
        today = int(time.time()) // DAY_S
        days = _UPTIME_DAYS if self._uptime_copied else _FIRST_UPTIME_DAYS
        minutes = await self._minutes([day * DAY_S for day in range(today - days + 1, today + 1)])
        if minutes:
            await self._in_transaction(add_minutes, minutes)
        self._uptime_copied = True

    async def _in_transaction(self, work: Callable[[Connection, _Rows], None], rows: _Rows) -> None:
        await _database(self._store.change(work, rows))

    async def _import(self) -> bool:
        """Move some receipts of an earlier version's archive. Return whether there may be more."""
        if not self._imports or not self._is_due("import", _IMPORT_EVERY_S):
            return False
        moved = 0
        for one in self._imports:
            try:
                entries = await one.read(_TAKE_ENTRIES)
                if entries:
                    await _database(self._store.write(entries))
                    await one.delete_read()
            except (*UsageDatabaseError, StartupError) as error:
                log.warning("archive_not_imported", archive=one.where, error=_class_of(error))
                continue
            moved += len(entries)
        if moved:
            self._counts["imported"] += moved
            self._due["import"] = 0.0
        return bool(moved)

    async def _delete(self) -> bool:
        """Delete some of what is too old. Return whether there may be more."""
        receipts = 0
        if self._keep_s is not None:
            receipts = await _database(self._store.delete_receipts(time.time() - self._keep_s))
        sums = await _database(self._store.delete_sums())
        self._counts["deleted"] += receipts
        if receipts or sums:
            self._due["delete"] = 0.0  # a few at a time: receipts come in between
        return bool(receipts or sums)

    def _failed(self, error: BaseException) -> None:
        if self._error is None:
            # The message of a driver may quote receipts.
            why = error.message if isinstance(error, StartupError) else None
            trace = None if isinstance(error, (*UsageDatabaseError, StartupError)) else error
            log.error(
                "usage_database_unavailable",
                database=str(self._store.engine),
                error=_class_of(error),
                why=why,
                exc_info=trace,
            )
            self._due["look"] = 0.0
        self._up, self._error = False, _class_of(error)
        self._rest_s = min(_LONGEST_REST_S, max(_FIRST_REST_S, 2 * self._rest_s))

    async def _publish(self) -> None:
        idle = self._error is None and not self._backlog.waiting
        if self._is_due("look", _LOOK_EVERY_S if idle else PUBLISH_INTERVAL_S):
            self._backlog = await self._feed.backlog()
        lag_s, waiting = round(self._backlog.lag_s, 3), self._backlog.waiting
        counts = dict(self._counts)
        await self._seat.publish(WorkerState(self._up, lag_s, waiting, self._error, self._seat.owner), counts)
        self._counts -= Counter(counts)

    async def _finish(self) -> None:
        """Write what waits. What stays is another worker's, or the next one's."""
        try:
            while self._client.up and self._error is None:
                if not self._held:
                    self._held = (await self._take(all_outboxes=True)).entries
                if not self._held:
                    break
                await self._write()
            await self._publish()
            await self._seat.leave()
        except (RedisError, OSError, _DatabaseFailed) as error:
            log.warning("usage_unfinished", error=_class_of(error))

    def _log_interruption(self, error: Exception) -> None:
        if not self._interrupted:
            unexpected = not isinstance(error, RedisError | OSError)
            log.warning("usage_interrupted", error=type(error).__name__, exc_info=unexpected)
        self._interrupted = True

    def _is_due(self, what: str, every_s: float) -> bool:
        if _now() < self._due.get(what, 0.0):
            return False
        self._due[what] = _now() + every_s
        return True


async def _database(work: Awaitable[_Result]) -> _Result:
    """Tell errors of the database from those of Redis: some have the same classes.

    Any other error counts as one of the database, too: of sums that cannot be decoded, say. The worker goes on trying,
    and its state tells so.
    """
    try:
        return await work
    except Exception as error:
        raise _DatabaseFailed(error) from error


def _now() -> float:
    return asyncio.get_running_loop().time()


def _class_of(error: BaseException) -> str:
    """Return the class of the driver's error, where there is one."""
    inner = getattr(error, "orig", None)
    return type(inner if inner is not None else error).__name__
