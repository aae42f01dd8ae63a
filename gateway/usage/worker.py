"""Write receipts from the outboxes to the usage database. Any number of workers may run at once.

A worker acknowledges entries after the commit that wrote them. If it dies before, another worker claims them after a
minute. The database stores each receipt once, so an entry may be delivered twice. While the database is unavailable,
entries wait in Redis (`receipts.max_buffered`).
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
from gateway.quality.outcome import Outcome
from gateway.usage.database import ROW_ERRORS, add_comparisons, add_outcomes
from gateway.usage.engine import UsageDatabaseError
from gateway.usage.feed import Backlog, ComparisonEntry, FeedBatch, OutcomeEntry
from gateway.usage.state import PUBLISH_INTERVAL_S, WorkerState
from gateway.usage.uptime import KEPT_MINUTES
from gateway.usage.uptime_table import add_minutes, last_minute

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from gateway.redis.client import RedisClient
    from gateway.usage.entries import OutboxEntry
    from gateway.usage.feed import OutboxFeed
    from gateway.usage.state import WorkerLease
    from gateway.usage.store import UsageStore
    from gateway.usage.uptime_table import EngineMinute

log = structlog.get_logger()

_Result = TypeVar("_Result")

MAX_ENTRIES = 10_000
"""Limit of entries of one transaction. In larger transactions, more entries share sums of hours and days."""

_EVERY_S = 0.5
_PAUSE_TIMES = 3
_FIRST_RETRY_S = 0.5
_MAX_RETRY_S = 5.0
_CHECK_EVERY_S = 10.0
_DELETE_EVERY_S = 600.0
_UPTIME_EVERY_S = 10.0

_OTHER_KINDS: dict[type[OutboxEntry], tuple[Callable[[bytes], Comparison | Outcome], Callable[..., None]]] = {
    ComparisonEntry: (Comparison.from_json, add_comparisons),
    OutcomeEntry: (Outcome.from_json, add_outcomes),
}
"""Entries that are no receipts: how to decode them, and how to write them."""


class _DatabaseFailed(Exception):
    def __init__(self, error: Exception) -> None:
        super().__init__(_class_of(error))
        self.error = error


class UsageWorker:
    """Move receipts from the outboxes to the usage database, and delete expired rows.

    Args:
        lease: the number of this worker, already joined.
        minutes: reads the uptime of engines from Redis, given minutes since the Unix epoch.
        keep_s: retention of receipts in seconds; None: forever.
        replica_lag: returns the lag of the read replica in seconds, which is published; None: there is no replica.
        max_entries: limit of entries of one transaction.
        read_entries: limit of entries of one command, so that Redis serves gateways in between.
        claim_after_s: age from which entries of other workers are claimed.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        client: RedisClient,
        feed: OutboxFeed,
        store: UsageStore,
        lease: WorkerLease,
        minutes: Callable[[Sequence[int]], Awaitable[Sequence[EngineMinute]]],
        *,
        keep_s: float | None,
        replica_lag: Callable[[], float] | None = None,
        max_entries: int = MAX_ENTRIES,
        read_entries: int = 1_000,
        claim_after_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_entries, self._read_entries, self._claim_after_s = max_entries, read_entries, claim_after_s
        self._client, self._feed, self._store = client, feed, store
        self._lease, self._minutes, self._clock = lease, minutes, clock
        self._keep_s, self._replica_lag = keep_s, replica_lag
        self._held: list[OutboxEntry] = []  # read, and not acknowledged
        self._minute: int | None = None  # up to which engines are counted; None: not known yet
        self._check_pending = True  # Redis may have more pending entries of this consumer
        client.on_restart = self._expect_pending
        self._backlog = Backlog()
        self._counts: Counter[str] = Counter()
        self._up: bool | None = None
        self._error: str | None = None
        self._retry_s = 0.0
        self._interrupted = False  # Redis failed, and the failure was logged
        self._due: dict[str, float] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Write receipts until `stop` is set. Then write the waiting receipts."""
        while not stop.is_set():
            pause_s = PUBLISH_INTERVAL_S
            if self._client.up:
                try:
                    pause_s = await self.round()
                    self._interrupted = False
                except Exception as error:  # noqa: BLE001 - logged
                    self._log_interruption(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await stop.wait()
        await self._finish()

    async def publish(self) -> None:
        """Publish the state every two seconds, also during a hanging write, until canceled."""
        while True:
            await self._client.wait_up()
            try:
                await self.publish_once()
            except Exception as error:  # noqa: BLE001 - logged
                self._log_interruption(error)
            await asyncio.sleep(PUBLISH_INTERVAL_S)

    async def round(self) -> float:
        """Read, write and acknowledge entries. Return the pause before the next round in seconds.

        Raises RedisError and OSError if Redis fails.
        """
        began = self._clock()
        try:
            more = await self._work()
        except _DatabaseFailed as failure:
            self._failed(failure.error)
            return self._retry_s * random.uniform(0.8, 1.0)  # noqa: S311 - jitter
        except Exception:
            self._expect_pending()
            raise
        if self._error is not None:
            log.info("usage_database_available", database=str(self._store.engine))
        self._up, self._error, self._retry_s = True, None, 0.0
        return 0.0 if more else max(_EVERY_S, (self._clock() - began) * _PAUSE_TIMES)

    async def _work(self) -> bool:
        """Return whether more work is ready."""
        more = bool(self._held)
        if not self._held:
            batch = await self._next()
            self._held, more = batch.entries, batch.more
            if batch.trimmed:
                self._counts["missed"] += batch.trimmed
                log.error("receipts_missed", count=batch.trimmed, why="trimmed before they were written")
        if self._held:
            await self._write()
        elif not self._up or self._error is not None:
            await _database(self._store.write([]))
        if self._is_due("uptime", _UPTIME_EVERY_S):
            await self._count_uptime()
        if not more and self._is_due("delete", _DELETE_EVERY_S):
            more = await self._delete()
        return more

    def _expect_pending(self) -> None:
        self._check_pending = True

    async def _next(self) -> FeedBatch:
        if self._feed.take_skipped():
            self._expect_pending()
        if self._check_pending:
            batch = await self._feed.read_pending(self._read_entries)
            if batch.entries:
                return batch
            self._check_pending = False
        if self._backlog.pending and self._is_due("claim", _CHECK_EVERY_S):
            batch = await self._feed.claim(self._backlog.pending, self._claim_after_s, self._read_entries)
            if batch.more:
                self._due["claim"] = 0.0
            if batch.entries or batch.trimmed:
                return batch
        return await self._read_new()

    async def _read_new(self, *, all_outboxes: bool = False) -> FeedBatch:
        batch = await self._feed.read_new(self._read_entries, all_outboxes=all_outboxes)
        while batch.more and len(batch.entries) < self._max_entries:
            more = await self._feed.read_new(self._read_entries)
            batch = FeedBatch([*batch.entries, *more.entries], more=more.more)
        return batch

    async def _write(self) -> None:
        receipts = [entry for entry in self._held if type(entry) not in _OTHER_KINDS]
        if len(receipts) < len(self._held):
            for kind in _OTHER_KINDS:
                receipts += await self._write_others(kind, [entry for entry in self._held if type(entry) is kind])
        written = await _database(self._store.write(receipts))
        for result in ("inserted", "replaced", "known", "unreadable"):
            self._counts[result] += getattr(written, result)
        if written.unreadable:
            log.error("receipts_unreadable", count=written.unreadable, table="usage_unreadable")
        await self._feed.acknowledge(self._held)  # after a failure the entries are written again, as known ones
        self._held = []

    async def _write_others(self, kind: type[OutboxEntry], entries: Sequence[OutboxEntry]) -> list[OutboxEntry]:
        """Write entries that are no receipts. Return those that cannot be decoded or that the database rejects."""
        decode, add = _OTHER_KINDS[kind]
        unreadable: list[OutboxEntry] = []
        decoded: list[tuple[OutboxEntry, Comparison | Outcome]] = []
        for entry in entries:
            try:
                decoded.append((entry, decode(entry.raw)))
            except msgspec.MsgspecError:
                unreadable.append(entry)
        if not await self._insert(add, [one for _, one in decoded]):
            # The database rejects one of them: write the others.
            unreadable += [entry for entry, one in decoded if not await self._insert(add, [one])]
        return unreadable

    async def _insert(self, add: Callable[..., None], rows: Sequence[Comparison | Outcome]) -> bool:
        """Insert comparisons or outcomes. Return False if the database rejects one of them."""
        if not rows:
            return True
        try:
            await _database(self._store.change(add, rows))
        except _DatabaseFailed as failure:
            if not isinstance(failure.error, ROW_ERRORS):
                raise
            return False
        return True

    async def _count_uptime(self) -> None:
        """Count the minutes of engines in Redis, beginning with the minute that was the current one last time."""
        minute = int(self._client.now()) // 60
        if self._minute is None:
            self._minute = await _database(self._store.read(last_minute))
        found = await self._minutes(range(max(self._minute, minute - KEPT_MINUTES), minute + 1))
        if found:
            await _database(self._store.change(add_minutes, found))
        self._minute = minute

    async def _delete(self) -> bool:
        """Delete some expired receipts and sums. Return whether more may remain."""
        receipts = 0
        if self._keep_s is not None:
            receipts = await _database(self._store.delete_receipts(self._client.now() - self._keep_s))
        sums = await _database(self._store.delete_sums())
        self._counts["deleted"] += receipts
        if receipts or sums:
            self._due["delete"] = 0.0  # a few at a time, so that receipts are written in between
        return bool(receipts or sums)

    def _failed(self, error: BaseException) -> None:
        if self._error is None:
            # Log no message of a driver, which may quote receipts.
            why = error.message if isinstance(error, StartupError) else None
            trace = None if isinstance(error, (*UsageDatabaseError, StartupError)) else error
            database, name = str(self._store.engine), _class_of(error)
            log.error("usage_database_unavailable", database=database, error=name, why=why, exc_info=trace)
            self._due["backlog"] = 0.0
        self._up, self._error = False, _class_of(error)
        self._retry_s = min(_MAX_RETRY_S, max(_FIRST_RETRY_S, 2 * self._retry_s))

    async def publish_once(self) -> None:
        """Publish the state. Raises RedisError and OSError."""
        idle = self._error is None and not self._backlog.waiting
        if self._is_due("backlog", _CHECK_EVERY_S if idle else PUBLISH_INTERVAL_S):
            self._backlog = await self._feed.backlog()
        backlog, counts = self._backlog, self._counts.copy()
        state = WorkerState(
            self._up,
            round(backlog.lag_s, 3),
            backlog.waiting,
            self._error,
            self._lease.process_id,
            None if self._replica_lag is None else round(self._replica_lag(), 3),
        )
        await self._lease.publish(state, counts)
        self._counts -= counts

    async def _finish(self) -> None:
        """Write waiting receipts. Another worker writes those that remain."""
        try:
            while self._client.up and self._error is None:
                if not self._held:
                    self._held = (await self._read_new(all_outboxes=True)).entries
                if not self._held:
                    break
                await self._write()
            await self.publish_once()
            await self._lease.leave()
        except (RedisError, OSError, _DatabaseFailed) as error:
            log.warning("usage_unfinished", error=_class_of(error))

    def _log_interruption(self, error: Exception) -> None:
        unexpected = self._client.failed(error)
        if not self._interrupted:
            log.warning("usage_interrupted", error=type(error).__name__, exc_info=unexpected)
        self._interrupted = True

    def _is_due(self, task: str, every_s: float) -> bool:
        if self._clock() < self._due.get(task, 0.0):
            return False
        self._due[task] = self._clock() + every_s
        return True


async def _database(work: Awaitable[_Result]) -> _Result:
    """Mark errors of the database, because some errors of Redis have the same classes.

    Other errors, for example of sums that cannot be decoded, count as database errors, too.
    """
    try:
        return await work
    except Exception as error:
        raise _DatabaseFailed(error) from error


def _class_of(error: BaseException) -> str:
    """Return the class name of the driver's error, or of `error` without a driver's error."""
    inner = getattr(error, "orig", None)
    return type(inner if inner is not None else error).__name__
