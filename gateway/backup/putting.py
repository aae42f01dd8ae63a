"""Restore a backup to Redis and the usage database of a deployment without running gateways."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gateway.backup.places import KeyLocator
from gateway.backup.records import (
    BackupCounts,
    IncompleteSums,
    KeyContents,
    ReceiptRecords,
    StreamEnd,
    StreamEntries,
    TableRows,
)
from gateway.backup.usage import put_usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from redis.asyncio import Redis
    from redis.asyncio.client import Pipeline

    from gateway.backup.records import Record
    from gateway.redis.keys import RedisKeys
    from gateway.usage.store import UsageStore

_KEYS_PER_SCAN = 1_000
_KEYS_PER_CALL = 500
_RECORDS_PER_CALL = 100
_GROUP = "restore"


@dataclass(slots=True)
class DeploymentContents:
    """The contents of a deployment before a restore.

    Attributes:
        counts: counts of a backup of these contents.
        names: all keys in Redis that a restore deletes, including leases and limits per minute. Receipts are omitted,
            because they may be very many.
        kept: number of these keys that a backup contains.
        alive: gateway processes and usage workers that run, or that ended within their lease.
    """

    counts: BackupCounts = field(default_factory=BackupCounts)
    names: list[bytes] = field(default_factory=list)
    kept: int = 0
    alive: int = 0

    @property
    def is_empty(self) -> bool:
        """Return whether the deployment has nothing to back up."""
        return not self.kept and not self.counts.receipts


class RestoreWriter:
    """Write the records of a backup. Every method raises RedisError, OSError and UsageDatabaseError.

    Args:
        usage: None: receipts are not restored.
        redis_too: whether to restore keys in Redis.
    """

    def __init__(self, redis: Redis, keys: RedisKeys, usage: UsageStore | None, *, redis_too: bool = True) -> None:
        self._redis_too = redis_too
        self._redis = redis
        self._keys = keys
        self._locator = KeyLocator(keys)
        self._usage = usage

    async def inspect(self) -> DeploymentContents:
        """Return the present contents of the stores to restore, without creating a missing usage database."""
        contents = DeploymentContents()
        if self._redis_too:
            await self._inspect_redis(contents)
        if self._usage is not None:
            contents.counts.receipts = await self._usage.count() if await self._usage.exists() else 0
        return contents

    async def _inspect_redis(self, contents: DeploymentContents) -> None:
        seen: set[bytes] = set()
        async for raw in self._redis.scan_iter(self._locator.pattern, count=_KEYS_PER_SCAN):
            key = raw.decode(errors="replace")
            found = self._locator.find(key)
            if raw in seen:
                continue
            seen.add(raw)
            if found is not None:
                contents.names.append(raw)
                contents.kept += found.kept
                contents.counts.sums += found.kept and found.location.part == "sums"
                contents.counts.budgets += found.location.name.endswith(":budget")
            contents.alive += self._locator.is_heartbeat(key)
        contents.counts.keys = await self._count(self._redis.hlen(self._keys.keyring().terms))
        outboxes = [raw for raw in contents.names if raw.endswith(b":outbox")]
        contents.counts.waiting = sum([await self._redis.xlen(raw) for raw in outboxes])

    @staticmethod
    async def _count(reply: Any) -> int:
        return int(await reply)

    async def clear(self, present: DeploymentContents) -> None:
        """Delete the present keys in Redis. The receipts of the usage database stay.

        Also delete receipts that callers can still request: they would make requests look settled that were in flight
        in the backup.
        """
        if not self._redis_too:
            return
        for batch in _batched(present.names, _KEYS_PER_CALL):
            await self._redis.unlink(*batch)
        receipts: list[bytes] = []
        async for raw in self._redis.scan_iter(self._locator.receipts, count=_KEYS_PER_SCAN):
            receipts.append(raw)
            if len(receipts) == _KEYS_PER_CALL:
                await self._redis.unlink(*receipts)
                receipts.clear()
        if receipts:
            await self._redis.unlink(*receipts)

    async def put(self, records: Iterable[Record], on_progress: Callable[[int], None]) -> None:
        """Write all records that have not expired since the backup.

        Args:
            on_progress: receives the number of written records.
        """
        seconds, _ = await self._redis.time()
        batch: list[Record] = []
        for done, record in enumerate(records, 1):
            if isinstance(record, ReceiptRecords | TableRows | IncompleteSums):
                if self._usage is not None:
                    await put_usage(self._usage, record)
            elif self._redis_too and not _has_expired(record, seconds * 1000):
                batch.append(record)
            if len(batch) == _RECORDS_PER_CALL:
                await self._write(batch)
                batch.clear()
            on_progress(done)
        await self._write(batch)

    async def _write(self, records: Sequence[Record]) -> None:
        if not records:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for record in records:
                self._write_record(pipe, record)
            await pipe.execute()

    def _write_record(self, pipe: Pipeline, record: Record) -> None:
        match record:
            case KeyContents(location, kind, expires, values):
                key = self._locator.key(location)
                _add(pipe, key, kind, values)
                _expire(pipe, key, expires)
            case StreamEntries(location, entries):
                for entry_id, fields in entries:
                    pipe.execute_command("XADD", self._locator.key(location), entry_id, *fields)
            case StreamEnd(location, expires, last, added, deleted) if last != b"0-0":
                # An empty stream has a last id, too: the id of the next entry must be larger.
                key = self._locator.key(location)
                pipe.execute_command("XGROUP", "CREATE", key, _GROUP, "$", "MKSTREAM")
                pipe.execute_command("XGROUP", "DESTROY", key, _GROUP)
                pipe.execute_command("XSETID", key, last, "ENTRIESADDED", added, "MAXDELETEDID", deleted)
                _expire(pipe, key, expires)


def _has_expired(record: Record, now_ms: int) -> bool:
    return isinstance(record, KeyContents) and 0 < record.expires_ms <= now_ms


def _add(pipe: Pipeline, key: str, kind: str, values: Sequence[bytes]) -> None:
    match kind:
        case "string":
            pipe.execute_command("SET", key, *values)
        case "hash":
            pipe.execute_command("HSET", key, *values)
        case "set":
            pipe.execute_command("SADD", key, *values)
        case _:
            scored = [part for i in range(0, len(values), 2) for part in (values[i + 1], values[i])]
            pipe.execute_command("ZADD", key, *scored)


def _expire(pipe: Pipeline, key: str, expires_ms: int) -> None:
    if expires_ms:
        pipe.pexpireat(key, expires_ms)


def _batched(items: Sequence[bytes], size: int) -> Iterable[Sequence[bytes]]:
    return (items[start : start + size] for start in range(0, len(items), size))
