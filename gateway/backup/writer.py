"""Restore a backup to Redis and the usage database of a deployment without running gateways."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gateway.backup.records import (
    BackupCounts,
    IncompleteSums,
    KeyContents,
    KeyLocator,
    ReceiptRecords,
    StreamEnd,
    StreamEntries,
    TableRows,
)
from gateway.backup.usage import put_usage
from gateway.usage.entries import batched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from redis.asyncio import Redis
    from redis.asyncio.client import Pipeline

    from gateway.backup.records import Kind, Record
    from gateway.redis.keys import RedisKeys
    from gateway.usage.store import UsageStore

_KEYS_PER_SCAN = 1_000
_KEYS_PER_CALL = 500
_RECORDS_PER_CALL = 100
_GROUP = "restore"
_COMMANDS: dict[Kind, str] = {"string": "SET", "hash": "HSET", "set": "SADD", "zset": "ZADD"}


@dataclass(slots=True)
class DeploymentContents:
    """The contents of a deployment before a restore."""

    counts: BackupCounts = field(default_factory=BackupCounts)  # counts of a backup of these contents
    # All keys in Redis that a restore deletes, with leases and limits per minute, but without the many receipts.
    names: list[bytes] = field(default_factory=list)
    kept: int = 0  # number of these keys that a backup contains
    alive: int = 0  # gateway processes and usage workers that run, or that ended within their lease

    @property
    def is_empty(self) -> bool:
        """Return whether the deployment has nothing to back up."""
        return not self.kept and not self.counts.receipts


class RestoreWriter:
    """Write the records of a backup. Every method raises RedisError, OSError and UsageDatabaseError.

    Without `usage`, receipts are not restored; without `redis_too`, keys in Redis are not.
    """

    def __init__(self, redis: Redis, keys: RedisKeys, usage: UsageStore | None, *, redis_too: bool = True) -> None:
        self._redis_too, self._redis, self._keys = redis_too, redis, keys
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
        keys: Any = self._redis.hlen(self._keys.keyring().terms)
        contents.counts.keys = int(await keys)
        outboxes = [raw for raw in contents.names if raw.endswith(b":outbox")]
        contents.counts.waiting = sum([await self._redis.xlen(raw) for raw in outboxes])

    async def clear(self, present: DeploymentContents) -> None:
        """Delete the present keys in Redis. The receipts of the usage database stay. Also delete receipts that callers
        can still request: they would make requests look settled that were in flight in the backup."""
        if not self._redis_too:
            return
        for batch in batched(present.names, _KEYS_PER_CALL):
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
        """Write all records that have not expired since the backup. `on_progress` receives the number of records."""
        seconds, _ = await self._redis.time()
        batch: list[Record] = []
        for done, record in enumerate(records, 1):
            if isinstance(record, ReceiptRecords | TableRows | IncompleteSums):
                if self._usage is not None:
                    await put_usage(self._usage, record)
            elif self._redis_too and not (isinstance(record, KeyContents) and 0 < record.expires_ms <= seconds * 1000):
                batch.append(record)
            if len(batch) == _RECORDS_PER_CALL:
                await self._write(batch)
                batch.clear()
            on_progress(done)
        await self._write(batch)

    async def _write(self, records: Sequence[Record]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for record in records:
                self._write_record(pipe, record)
            await pipe.execute()

    def _write_record(self, pipe: Pipeline, record: Record) -> None:
        match record:
            case KeyContents(location, kind, expires, values):
                if kind == "zset":  # ZADD reads the score before the member
                    values = [part for i in range(0, len(values), 2) for part in (values[i + 1], values[i])]
                key = self._locator.key(location)
                pipe.execute_command(_COMMANDS[kind], key, *values)
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


def _expire(pipe: Pipeline, key: str, expires_ms: int) -> None:
    if expires_ms:
        pipe.pexpireat(key, expires_ms)
