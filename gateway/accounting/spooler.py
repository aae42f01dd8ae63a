"""Takes receipts to disk while Redis is away, and to Redis when it is back: this process's, and those of the dead.

While Redis answers it does nothing. A receipt that waits longer than about a second is on the disk (fdatasync), with
what was reserved for it. What is told twice counts once: the script knows each by its id.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from gateway.accounting.redis_ledger import Settlement
from gateway.accounting.spool import ENDING, Spool, SpoolEntry, left_behind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from gateway.accounting.redis_ledger import RedisLedger
    from gateway.accounting.spool import SpoolLine
    from gateway.accounting.store import ReceiptStore
    from gateway.redis.client import RedisClient
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

_LOOK_EVERY_S = 0.25
_PATIENCE_S = 0.5
_REST_S = 1.0
_DEAD_EVERY_S = 30.0
_LINES_AT_ONCE = 2_000
_TOLD_AT_ONCE = 200


class Spooler:
    """Args:
    folder: where spools are, of all processes that share a Redis.
    most_bytes: how large this process's may become.
    """

    def __init__(
        self,
        client: RedisClient,
        ledger: RedisLedger,
        store: ReceiptStore,
        folder: Path,
        most_bytes: int,
        metrics: Metrics,
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._store = store
        self._folder = folder
        self._own_path = folder / f"{_safe(ledger.owner)}{ENDING}"
        self._most_bytes = most_bytes
        self._metrics = metrics
        self._own: Spool | None = None
        self._lines = 0
        self._stuck_since: float | None = None
        self._trouble: str | None = None
        self._dead_due = 0.0
        self._busy = asyncio.Lock()

    async def run(self) -> None:
        """Look four times a second, for ever."""
        while True:
            try:
                async with self._busy:
                    await self._look()
            except RedisError as error:
                self._client.failed(error)
                log.warning("spool_interrupted", error=type(error).__name__)
                await asyncio.sleep(_REST_S)
            except OSError as error:
                self._failed(error)
                await asyncio.sleep(_REST_S)
            except Exception as error:
                log.error("spool_interrupted", error=type(error).__name__, exc_info=True)
                await asyncio.sleep(_REST_S)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def save(self) -> int:
        """Before a process ends that Redis does not listen to: how many receipts are on disk.

        Those that find no room there stand in the log.
        """
        async with self._busy:
            try:
                while await self._write():
                    pass
            except OSError as error:
                self._failed(error)
            self._store.give_up()
            return self._lines

    async def close(self) -> None:
        """Let go of the file; it stays where there is something in it."""
        own, self._own = self._own, None
        if own is not None:
            await asyncio.to_thread(own.close, remove=self._lines == 0)

    async def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._store.stuck:
            self._stuck_since = now if self._stuck_since is None else self._stuck_since
            if now - self._stuck_since >= _PATIENCE_S:
                while await self._write():
                    pass
            return
        self._stuck_since = None
        if self._lines:
            await self._tell_own()
        if now >= self._dead_due:
            self._dead_due = now + _DEAD_EVERY_S
            for path in await asyncio.to_thread(left_behind, self._folder, self._own_path):
                try:
                    await self._tell_dead(path)
                except OSError as error:  # another user's file: it must not keep those after it from being told
                    self._failed(error)

    async def _write(self) -> int:
        """Write some of what waits and is not on disk: how many."""
        waiting = self._store.to_spool(_LINES_AT_ONCE)
        if not waiting:
            return 0
        if self._own is None:
            self._own = await asyncio.to_thread(Spool.make, self._own_path)
        written = await asyncio.to_thread(_append, self._own, self._ledger.owner, waiting, self._most_bytes)
        if written and self._trouble is None and not self._lines:
            log.warning("spooling", file=str(self._own_path))
        self._lines += written
        self._metrics.spooled.inc(written)
        self._store.spooled([one.receipt.id for one in waiting[:written]])
        self._show()
        if written < len(waiting):
            self._say("spool_full", bytes=self._own.size_bytes)
        else:
            self._trouble = None
        return written

    async def _tell_own(self) -> None:
        """What memory let go of is told from the file; the rest the store tells itself."""
        assert self._own is not None
        if self._store.shed:
            lines = self._own.lines()
            while some := await asyncio.to_thread(_some, lines):
                await self._tell(self._own, [one for one in some if self._is_shed(one)], "own")
            # What memory let go of meanwhile may stand before the end: the next look finds it.
        if not self._store.has_spooled:
            await asyncio.to_thread(self._own.clear)
            log.info("spool_empty", receipts=self._lines)
            self._lines = 0
            self._show()

    def _is_shed(self, line: SpoolLine) -> bool:
        return line.spooled is not None and line.spooled.receipt.id in self._store.shed

    async def _tell_dead(self, path: Path) -> None:
        spool = await asyncio.to_thread(Spool.of_the_dead, path)
        if spool is None:
            return
        done, count, unreadable = False, 0, 0
        try:
            lines = spool.lines()
            while some := await asyncio.to_thread(_some, lines):
                await self._tell(spool, some, "dead")
                count += len(some)
                unreadable += sum(line.spooled is None for line in some)
            if unreadable:
                kept = await asyncio.to_thread(spool.set_aside)
                log.error("spool_unreadable", lines=unreadable, file=str(kept))
            done = not unreadable
            log.warning("spool_of_the_dead_told", receipts=count - unreadable, file=str(path))
        finally:
            await asyncio.to_thread(spool.close, remove=done)

    async def _tell(self, spool: Spool, lines: Sequence[SpoolLine], whose: str) -> None:
        by_owner: dict[str, list[Settlement]] = {}
        for line in lines:
            if line.spooled is not None:
                one = Settlement(line.spooled.receipt, line.spooled.intent)
                by_owner.setdefault(line.spooled.owner, []).append(one)
        if not by_owner:
            return
        for owner, settled in by_owner.items():
            brought = await self._ledger.settle(owner, settled)
            if brought.replaced:
                log.warning("abandoned_replaced", ids=brought.replaced)
            self._metrics.spool_replayed.labels(whose).inc(len(settled))
            if whose == "own":
                self._store.told_from_spool([one.receipt.id for one in settled])
        await asyncio.to_thread(spool.tick_off, [line for line in lines if line.spooled is not None])

    def _show(self) -> None:
        self._metrics.spool_receipts.set(self._lines)
        self._metrics.spool_bytes.set(self._own.size_bytes if self._own is not None else 0)

    def _failed(self, error: OSError) -> None:
        self._metrics.spool_failures.inc()
        self._say("spool_failed", error=type(error).__name__, why=error.strerror)

    def _say(self, what: str, **more: object) -> None:
        """Once for as long as it lasts. What waits stays in memory, within its bound."""
        if self._trouble != what:
            log.error(what, folder=str(self._folder), **more)
        self._trouble = what


def _safe(owner: str) -> str:
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in owner)


def _append(spool: Spool, owner: str, settled: Sequence[Settlement], most_bytes: int) -> int:
    return spool.append((SpoolEntry(owner, one.receipt, one.intent).to_line() for one in settled), most_bytes)


def _some(lines: Iterator[SpoolLine]) -> list[SpoolLine]:
    return list(islice(lines, _TOLD_AT_ONCE))
