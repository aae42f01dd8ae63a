"""Send receipts from the usage database to a broker, each at least once.

One usage worker of the fleet sends at a time. A failing broker delays only this stream: receipts are written to the
database meanwhile, and their keys wait in the outbox there. Memory holds one batch.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from msgspec.structs import replace

from gateway.usage.export_outbox import delete_exports, export_backlog, pending_exports
from gateway.usage.state import ExportState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio import Redis

    from gateway.redis.keys import LedgerKeys
    from gateway.usage.export_message import ExportMessage
    from gateway.usage.store import UsageStore

log = structlog.get_logger()

BATCH = 500
_IDLE_S = 1.0
_WITHOUT_LEASE_S = 5.0
_FIRST_RETRY_S, _MAX_RETRY_S = 1.0, 30.0
_LEASE_MS = 20_000
_BACKLOG_EVERY_S = 5.0


class RejectedMessage(Exception):
    """The broker will never accept this message, because of its size."""


class SettingError(Exception):
    """A setting is wrong. `name` is the class of the client's error, `fix` names the setting and the correction."""

    def __init__(self, name: str, fix: str) -> None:
        super().__init__(fix)
        self.name, self.fix = name, fix


class Producer(Protocol):
    """A client of a broker."""

    async def send(self, messages: Sequence[ExportMessage]) -> list[BaseException | None]:
        """Send messages and wait for their confirmation. Return the error of each, or None."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class ExportLease:
    """The right of one process to send. It expires unless renewed. Methods raise RedisError and OSError."""

    def __init__(self, redis: Redis, keys: LedgerKeys, process_id: str) -> None:
        self._redis, self._key, self._process_id = redis, keys.exporter, process_id

    async def acquire(self) -> bool:
        """Acquire or renew the lease. Return whether this process has it."""
        holder: Any = await self._redis.set(self._key, self._process_id, nx=True, get=True, px=_LEASE_MS)
        if holder is None:
            return True
        if holder.decode() != self._process_id:
            return False
        return bool(await self._redis.set(self._key, self._process_id, xx=True, px=_LEASE_MS))

    async def release(self) -> None:
        """Release the lease, so that another process continues at once."""
        holder: Any = await self._redis.get(self._key)
        if holder is not None and holder.decode() == self._process_id:
            await self._redis.delete(self._key)


class ExportStream:
    """Send the receipts of the outbox until canceled.

    `state` is published by the usage worker; None while another process sends. `counts` has the numbers of receipts by
    result since they were last taken. `clock` returns Unix seconds.
    """

    def __init__(
        self,
        store: UsageStore,
        producer: Producer,
        lease: ExportLease,
        *,
        batch: int = BATCH,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._producer, self._lease = store, producer, lease
        self._batch, self._clock = batch, clock
        self.state: ExportState | None = None
        self.counts: Counter[str] = Counter()
        self._retry_s = 0.0
        self._backlog_at = 0.0
        self._failing = False

    async def run(self) -> None:
        """Send until canceled."""
        try:
            while True:
                try:
                    pause_s = await self.round()
                except Exception as error:  # noqa: BLE001 - logged
                    pause_s = self._failed(error)
                await asyncio.sleep(pause_s)
        finally:
            await self._close()

    async def round(self) -> float:
        """Send one batch. Return the pause before the next one in seconds.

        Raises errors of Redis and of the database. Errors of the broker are in `state`.
        """
        if not await self._lease.acquire():
            self.state = None
            return _WITHOUT_LEASE_S
        pending = await self._store.read(pending_exports, self._batch)
        sendable = [one for one in pending if one.message is not None]
        errors = await self._producer.send([one.message for one in sendable if one.message is not None])
        results = [*zip(sendable, errors, strict=True)]
        expired = [one for one in pending if one.message is None]
        rejected = [one for one, error in results if isinstance(error, RejectedMessage)]
        sent = [one for one, error in results if error is None]
        failed = [error for error in errors if error is not None and not isinstance(error, RejectedMessage)]
        if done := [*sent, *rejected, *expired]:
            await self._store.change(delete_exports, done)
        self.counts.update(
            {"sent": len(sent), "failed": len(failed), "rejected": len(rejected), "expired": len(expired)}
        )
        if rejected:
            log.error("export_rejected", count=len(rejected), first=rejected[0].key[1])
        if failed:
            pause_s = self._failed(failed[0])
        else:
            self._succeeded()
            pause_s = 0.0 if len(pending) == self._batch else _IDLE_S
        await self._measure()
        return pause_s

    def _failed(self, error: BaseException) -> float:
        """Note a failure. Return the pause before the next batch in seconds."""
        name, fix = type(getattr(error, "orig", None) or error).__name__, None
        if isinstance(error, SettingError):
            name, fix = error.name, error.fix
        before = None if self.state is None else self.state.fix
        if not self._failing or (fix is not None and fix != before):
            log.warning("export_failed", error=name, fix=fix)
        self._failing = True
        self._retry_s = min(_MAX_RETRY_S, max(_FIRST_RETRY_S, 2 * self._retry_s))
        self.state = replace(self.state or ExportState(), error=name, fix=fix)
        return self._retry_s * random.uniform(0.8, 1.0)  # noqa: S311 - jitter

    def _succeeded(self) -> None:
        if self._failing:
            log.info("export_resumed")
        self._failing, self._retry_s = False, 0.0
        self.state = replace(self.state or ExportState(), error=None, fix=None)

    async def _measure(self) -> None:
        now = self._clock()
        if now < self._backlog_at:
            return
        self._backlog_at = now + _BACKLOG_EVERY_S
        backlog = await self._store.read(export_backlog)
        lag_s = 0.0 if backlog.oldest is None else max(0.0, now - backlog.oldest)
        self.state = replace(self.state or ExportState(), waiting=backlog.waiting, lag_s=round(lag_s, 3))

    async def _close(self) -> None:
        for close in (self._producer.close, self._lease.release):
            try:
                await close()
            except Exception as error:  # noqa: BLE001 - logged
                log.warning("export_not_closed", error=type(error).__name__)
