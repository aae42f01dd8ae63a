"""Write what a backup holds to Redis and the usage database, where no gateway runs."""

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
        counts: as a backup would count them.
        names: all keys in Redis that a restore deletes, leases and limits by the minute included, but not receipts,
            which may be very many.
        kept: how many of them a backup would hold.
        alive: gateway processes and usage workers that run, or ended within their lease.
    """

    counts: BackupCounts = field(default_factory=BackupCounts)
    names: list[bytes] = field(default_factory=list)
    kept: int = 0
    alive: int = 0

    @property
    def nothing(self) -> bool:
        return not self.kept and not self.counts.receipts


class RestoreWriter:
    """Args:
    usage: None: receipts are not restored.
    redis_too: whether anything is written to Redis.

    Every method raises RedisError, OSError and UsageDatabaseError.
    """

    def __init__(self, redis: Redis, keys: RedisKeys, usage: UsageStore | None, *, redis_too: bool = True) -> None:
        self._redis_too = redis_too
        self._redis = redis
        self._keys = keys
        self._places = KeyLocator(keys)
        self._usage = usage

    async def inspect(self) -> DeploymentContents:
        """Return what is there where something is to be written. A usage database that is missing is not created."""
        found = DeploymentContents()
        if self._redis_too:
            await self._look_at_redis(found)
        if self._usage is not None:
            found.counts.receipts = await self._usage.count() if await self._usage.exists() else 0
        return found

    async def _look_at_redis(self, found: DeploymentContents) -> None:
        seen: set[bytes] = set()
        async for raw in self._redis.scan_iter(self._places.pattern, count=_KEYS_PER_SCAN):
            key = raw.decode(errors="replace")
            one = self._places.find(key)
            if raw in seen:
                continue
            seen.add(raw)
            if one is not None:
                found.names.append(raw)
                found.kept += one.kept
                found.counts.sums += one.kept and one.place.part == "sums"
                found.counts.budgets += one.place.name.endswith(":budget")
            found.alive += self._places.is_heartbeat(key)
        found.counts.keys = await self._count(self._redis.hlen(self._keys.keyring().terms))
        found.counts.waiting = sum([await self._redis.xlen(raw) for raw in found.names if raw.endswith(b":outbox")])

    @staticmethod
    async def _count(told: Any) -> int:
        return int(await told)

    async def clear(self, present: DeploymentContents) -> None:
        """Delete what is there in Redis. The receipts of the usage database stay.

        Receipts that callers can still request are deleted too: with them, requests that were under way in the backup
        would pass for settled.
        """
        if not self._redis_too:
            return
        for some in _batched(present.names, _KEYS_PER_CALL):
            await self._redis.unlink(*some)
        receipts: list[bytes] = []
        async for raw in self._redis.scan_iter(self._places.receipts, count=_KEYS_PER_SCAN):
            receipts.append(raw)
            if len(receipts) == _KEYS_PER_CALL:
                await self._redis.unlink(*receipts)
                receipts.clear()
        if receipts:
            await self._redis.unlink(*receipts)

    async def put(self, records: Iterable[Record], on_progress: Callable[[int], None]) -> None:
        """Write all records but those that have expired since they were read.

        Args:
            on_progress: gets the number of records that are written.
        """
        seconds, _ = await self._redis.time()
        some: list[Record] = []
        for done, record in enumerate(records, 1):
            if isinstance(record, ReceiptRecords | TableRows | IncompleteSums):
                if self._usage is not None:
                    await put_usage(self._usage, record)
            elif self._redis_too and not _is_over(record, seconds * 1000):
                some.append(record)
            if len(some) == _RECORDS_PER_CALL:
                await self._write(some)
                some.clear()
            on_progress(done)
        await self._write(some)

    async def _write(self, some: Sequence[Record]) -> None:
        if not some:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for record in some:
                self._one(pipe, record)
            await pipe.execute()

    def _one(self, pipe: Pipeline, record: Record) -> None:
        match record:
            case KeyContents(place, kind, expires, values):
                key = self._places.key(place)
                _add(pipe, key, kind, values)
                _expire(pipe, key, expires)
            case StreamEntries(place, entries):
                for one, fields in entries:
                    pipe.execute_command("XADD", self._places.key(place), one, *fields)
            case StreamEnd(place, expires, last, ever, deleted) if last != b"0-0":
                # An empty stream still has its last id: the next entry must come after it.
                key = self._places.key(place)
                pipe.execute_command("XGROUP", "CREATE", key, _GROUP, "$", "MKSTREAM")
                pipe.execute_command("XGROUP", "DESTROY", key, _GROUP)
                pipe.execute_command("XSETID", key, last, "ENTRIESADDED", ever, "MAXDELETEDID", deleted)
                _expire(pipe, key, expires)


def _is_over(record: Record, now_ms: int) -> bool:
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
            scored = [part for at in range(0, len(values), 2) for part in (values[at + 1], values[at])]
            pipe.execute_command("ZADD", key, *scored)


def _expire(pipe: Pipeline, key: str, expires_ms: int) -> None:
    if expires_ms:
        pipe.pexpireat(key, expires_ms)


def _batched(items: Sequence[bytes], most: int) -> Iterable[Sequence[bytes]]:
    return (items[start : start + most] for start in range(0, len(items), most))
