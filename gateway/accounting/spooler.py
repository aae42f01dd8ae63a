"""Write receipts to disk while Redis is down. Send them to Redis when it is up, also those of dead processes.

The spooler is idle while Redis is up. A receipt that waits longer than about a second is on disk (fdatasync), together
with its intent. A receipt that is sent twice counts once, since the script knows each receipt by its id.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from gateway.accounting.redis_ledger import Settlement
from gateway.accounting.spool import SUFFIX, Spool, SpoolEntry, other_spools

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from gateway.accounting.redis_ledger import RedisLedger
    from gateway.accounting.spool import SpoolLine
    from gateway.accounting.store import ReceiptStore
    from gateway.redis.client import RedisClient
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

_RETRY_DELAY_S = 1.0
_WRITE_BATCH = 2_000


class Spooler:
    """Move receipts between the store, the spool and Redis.

    Args:
        folder: the folder of the spools of all processes that share a Redis.
        max_bytes: the largest size of this process's spool.
        check_interval_s: interval of the checks for waiting receipts.
        delay_s: time without Redis after which receipts are written to the spool.
        orphans_interval_s: interval of the checks for spools of dead processes.
        send_batch: limit of receipts of one exchange.
    """

    def __init__(
        self,
        client: RedisClient,
        ledger: RedisLedger,
        store: ReceiptStore,
        folder: Path,
        max_bytes: int,
        metrics: Metrics,
        *,
        check_interval_s: float = 0.25,
        delay_s: float = 0.5,
        orphans_interval_s: float = 30.0,
        send_batch: int = 200,
    ) -> None:
        self._client, self._ledger, self._store, self._folder = client, ledger, store, folder
        safe = (char if char.isalnum() or char in "-_." else "_" for char in ledger.process_id)
        self._own_path = folder / f"{''.join(safe)}{SUFFIX}"
        self._max_bytes, self._metrics, self._send_batch = max_bytes, metrics, send_batch
        self._check_interval_s, self._delay_s, self._orphans_s = check_interval_s, delay_s, orphans_interval_s
        self._own: Spool | None = None
        self._lines = 0
        self._blocked_since: float | None = None
        self._problem: str | None = None
        self._orphans_due = 0.0
        self._busy = asyncio.Lock()

    async def run(self) -> None:
        """Check the store in intervals until canceled."""
        while True:
            try:
                async with self._busy:
                    await self._check()
            except RedisError as error:
                self._client.failed(error)
                log.warning("spool_interrupted", error=type(error).__name__)
                await asyncio.sleep(_RETRY_DELAY_S)
            except OSError as error:
                self._failed(error)
                await asyncio.sleep(_RETRY_DELAY_S)
            except Exception as error:
                log.error("spool_interrupted", error=type(error).__name__, exc_info=True)
                await asyncio.sleep(_RETRY_DELAY_S)
            await asyncio.sleep(self._check_interval_s)

    async def save(self) -> int:
        """Spool all waiting receipts before the process ends without Redis. Return the number of receipts on disk.
        Receipts without room on disk are logged."""
        async with self._busy:
            try:
                while await self._write(accepted=True):
                    pass
            except OSError as error:
                self._failed(error)
            self._store.drop_unsaved()
            return self._lines

    async def close(self) -> None:
        """Close the spool. An empty file is removed."""
        own, self._own = self._own, None
        if own is not None:
            await asyncio.to_thread(own.close, remove=self._lines == 0)

    async def _check(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._store.is_blocked:
            self._blocked_since = now if self._blocked_since is None else self._blocked_since
            if now - self._blocked_since >= self._delay_s:
                while await self._write():
                    pass
        else:
            self._blocked_since = None
        # A cluster may accept the receipts of other nodes.
        if self._store.is_blocked and not (self._client.is_cluster and self._client.up):
            return
        errors: list[Exception] = []
        if self._lines:
            await self._send_own(errors)
        if now >= self._orphans_due:
            self._orphans_due = now + self._orphans_s
            for path in await asyncio.to_thread(other_spools, self._folder, self._own_path):
                try:
                    await self._send_orphaned(path, errors)
                except OSError as error:  # another user's file must not stop the files after it from being sent
                    self._failed(error)
        if errors:
            raise errors[0]

    async def _write(self, *, accepted: bool = False) -> int:
        """Spool one batch of waiting receipts. `accepted`: also those that Redis accepts now. Return their number."""
        waiting = self._store.next_for_spool(_WRITE_BATCH, accepted=accepted)
        if not waiting:
            return 0
        if self._own is None:
            self._own = await asyncio.to_thread(Spool.create, self._own_path)
        written = await asyncio.to_thread(_append, self._own, self._ledger.process_id, waiting, self._max_bytes)
        if written and self._problem is None and not self._lines:
            log.warning("spooling", file=str(self._own_path))
        self._lines += written
        self._metrics.spooled.inc(written)
        self._store.mark_spooled([one.receipt.id for one in waiting[:written]])
        self._update_metrics()
        if written < len(waiting):
            self._log_once("spool_full", bytes=self._own.size_bytes)
        else:
            self._problem = None
        return written

    async def _send_own(self, errors: list[Exception]) -> None:
        """Send the receipts that are in the spool alone. The store sends the others."""
        assert self._own is not None
        if sendable := self._store.sendable_spooled():
            lines = self._own.lines()
            while batch := await asyncio.to_thread(_next_batch, lines, self._send_batch):
                left = [one for one in batch if one.entry is not None and one.entry.receipt.id in sendable]
                await self._send(self._own, left, "own", errors)
            # Receipts that left memory meanwhile may be at an earlier line. The next pass finds them.
        if not self._store.has_spooled:
            await asyncio.to_thread(self._own.clear)
            log.info("spool_empty", receipts=self._lines)
            self._lines = 0
            self._update_metrics()

    async def _send_orphaned(self, path: Path, errors: list[Exception]) -> None:
        """Send the receipts of a dead process. The file stays until Redis has all of them."""
        spool = await asyncio.to_thread(Spool.open_orphaned, path)
        if spool is None:
            return
        done, sent, unsent, unreadable = False, 0, 0, 0
        try:
            lines = spool.lines()
            while batch := await asyncio.to_thread(_next_batch, lines, self._send_batch):
                readable = [line for line in batch if line.entry is not None]
                count = await self._send(spool, readable, "dead", errors)
                sent, unsent = sent + count, unsent + len(readable) - count
                unreadable += len(batch) - len(readable)
            if unreadable and not unsent:
                kept = await asyncio.to_thread(spool.quarantine)
                log.error("spool_unreadable", lines=unreadable, file=str(kept))
            done = not unreadable and not unsent
            if sent or not unsent:
                log.warning("orphaned_spool_sent", receipts=sent, left=unsent, file=str(path))
        finally:
            await asyncio.to_thread(spool.close, remove=done)

    async def _send(self, spool: Spool, lines: Sequence[SpoolLine], origin: str, errors: list[Exception]) -> int:
        """Send receipts, except those of tenants whose node failed. Return the number that Redis stored."""
        by_process: dict[str, list[tuple[SpoolLine, Settlement]]] = {}
        for line in lines:
            if line.entry is None:
                continue
            one = Settlement(line.entry.receipt, line.entry.intent)
            if self._client.is_up(self._ledger.key_of(one.namespace)):
                by_process.setdefault(line.entry.process_id, []).append((line, one))
        count = 0
        for process_id, found in by_process.items():
            result = await self._ledger.settle(process_id, [one for _, one in found])
            for error in result.failed.values():
                self._client.failed(error)
                errors.append(error)
            if result.replaced:
                log.warning("abandoned_replaced", ids=result.replaced)
            stored = [(line, one) for line, one in found if one.namespace not in result.failed]
            settled = [one for _, one in stored]
            # Before the next wait: Redis may lose the receipts during it.
            if origin == "own":
                self._store.confirm_spooled(settled)
            else:
                # Redis may have expired older receipts. It would count those again.
                since = self._client.now() - self._ledger.ttl_s / 2
                self._store.remember(one for one in settled if one.receipt.created > since)
            self._metrics.spool_replayed.labels(origin).inc(len(stored))
            await asyncio.to_thread(spool.mark_sent, [line for line, _ in stored])
            count += len(stored)
        return count

    def _update_metrics(self) -> None:
        self._metrics.spool_receipts.set(self._lines)
        self._metrics.spool_bytes.set(self._own.size_bytes if self._own is not None else 0)

    def _failed(self, error: OSError) -> None:
        self._metrics.spool_failures.inc()
        self._log_once("spool_failed", error=type(error).__name__, why=error.strerror)

    def _log_once(self, event: str, **more: object) -> None:
        """Log a problem once, until writing succeeds again. Waiting receipts stay in memory, up to its limit."""
        if self._problem != event:
            log.error(event, folder=str(self._folder), **more)
        self._problem = event


def _append(spool: Spool, process_id: str, settled: Sequence[Settlement], max_bytes: int) -> int:
    return spool.append((SpoolEntry(process_id, one.receipt, one.intent).to_line() for one in settled), max_bytes)


def _next_batch(lines: Iterator[SpoolLine], count: int) -> list[SpoolLine]:
    return list(islice(lines, count))
