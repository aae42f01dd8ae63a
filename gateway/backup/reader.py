"""Read the contents of a backup from Redis while gateways run.

Budgets, requests in flight and outbox of a tenant are read in one transaction. The usage database is read afterwards: a
receipt that leaves an outbox meanwhile is in both, and a restore stores it once. A transaction must name its keys, but
SCAN may return stale keys. So the tenant is read again with the keys that the contents of its keys require.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from gateway.accounting.intent import Intent
from gateway.accounting.scopes import ROLLING
from gateway.backup.records import KeyContents, KeyLocation, KeyLocator, StreamEnd, StreamEntries
from gateway.redis.slots import is_node_failure
from gateway.usage.entries import batched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator

    from redis.asyncio import Redis
    from redis.asyncio.client import Pipeline

    from gateway.backup.records import Kind, Record
    from gateway.redis.keys import RedisKeys

_KEYS_PER_SCAN = 1_000
_KEYS_PER_CALL = 200
_VALUES_PER_RECORD = 2_000
_ENTRIES_PER_CALL = 500
_OWNERS, _OUTBOX, _INTENTS, _TOKEN_BUDGETS = "owners", "outbox", "intents:", "token_budgets"
# All others are hashes.
_KINDS_OF_TENANTS: dict[str, Kind] = {_OWNERS: "zset", _TOKEN_BUDGETS: "zset", _OUTBOX: "stream"}

KeyInventory: TypeAlias = dict[tuple[str, str], dict[KeyLocation, None]]
"""Keys of Redis by part and tenant."""
_Snapshot: TypeAlias = "list[tuple[KeyLocation, Kind, Any, Any]]"
"""Location, kind, expiry and contents of each key. The contents of a stream are the reply of XINFO STREAM."""


class BackupReader:
    """Read the keys of a backup. Every method raises RedisError and OSError."""

    def __init__(self, redis: Redis, keys: RedisKeys) -> None:
        self._redis = redis
        self._locator = KeyLocator(keys)

    async def inventory(self) -> KeyInventory:
        """Return the keys to read."""
        inventory: KeyInventory = defaultdict(dict)
        async for raw in self._redis.scan_iter(self._locator.pattern, count=_KEYS_PER_SCAN):
            found = self._locator.find(raw.decode(errors="replace"))
            if found is not None and found.kept:
                # SCAN may return a key twice.
                inventory[found.location.part, found.location.tenant][found.location] = None
        return inventory

    async def redis(self, inventory: KeyInventory, on_progress: Callable[[int], None]) -> AsyncIterator[Record]:
        """Yield the records of all keys in Redis. `on_progress` receives the number of keys read."""
        done = 0
        for part in ("keys", "sums"):
            for batch in batched(list(inventory.get((part, ""), {})), _KEYS_PER_CALL):
                async for record in self._records(await self._snapshot(batch)):
                    yield record
                done += len(batch)
                on_progress(done)
        for (part, tenant), locations in inventory.items():
            if part == "tenants":
                async for record in self._records(await self._tenant_snapshot(tenant, locations)):
                    yield record
                done += len(locations)
                on_progress(done)

    async def _tenant_snapshot(self, tenant: str, found: Iterable[KeyLocation]) -> _Snapshot:
        """Read the keys of a tenant in one transaction, including keys that SCAN has missed."""
        locations = {*found, *(KeyLocation("tenants", tenant, name) for name in (_OWNERS, _OUTBOX))}
        while True:
            snapshot = await self._snapshot(locations)
            missing = {KeyLocation("tenants", tenant, name) for name in _required_names(snapshot)} - locations
            if not missing:
                return snapshot
            locations |= missing

    async def _snapshot(self, locations: Collection[KeyLocation]) -> _Snapshot:
        kinds = zip(locations, await self._kinds(locations), strict=True)
        existing = [(location, kind) for location, kind in kinds if kind is not None]
        async with self._redis.pipeline(transaction=True) as pipe:
            for location, kind in existing:
                pipe.pexpiretime(self._locator.key(location))
                _read(pipe, self._locator.key(location), kind)
            found = await pipe.execute(raise_on_error=False)
        for reply in found:
            if is_node_failure(self._redis, reply):  # without it, the backup would lack the keys of the node
                raise reply
        replies = iter(found)
        return [(location, kind, next(replies), next(replies)) for location, kind in existing]

    async def _kinds(self, locations: Collection[KeyLocation]) -> list[Kind | None]:
        """Return the kinds of keys of one part. A tenant's keys may appear at any time, so names give their kinds."""
        if all(location.part == "tenants" for location in locations):
            return [_KINDS_OF_TENANTS.get(location.name, "hash") for location in locations]
        async with self._redis.pipeline(transaction=False) as pipe:
            for location in locations:
                pipe.type(self._locator.key(location))
            return [_kind(raw) for raw in await pipe.execute()]

    async def _records(self, snapshot: _Snapshot) -> AsyncIterator[Record]:
        """Yield the records of a snapshot. Entries of streams are read now, up to the last id of the snapshot."""
        for location, kind, expires, value in snapshot:
            if isinstance(value, Exception):
                continue  # the key was deleted or changed its kind
            if kind == "stream":
                async for record in self._stream(location, expires, value):
                    yield record
            else:
                for part in _key_contents(location, kind, expires, value):
                    yield part

    async def _stream(self, location: KeyLocation, expires: int, info: dict[str, Any]) -> AsyncIterator[Record]:
        key, last, after = self._locator.key(location), info["last-generated-id"], b"-"
        while True:
            entries: Any = await self._redis.xrange(key, after, last, count=_ENTRIES_PER_CALL)
            if not entries:
                break
            yield StreamEntries(location, [(entry_id, _flat(fields)) for entry_id, fields in entries])
            after = b"(" + entries[-1][0]
        yield StreamEnd(location, max(0, expires), last, info["entries-added"], info["max-deleted-entry-id"])


def _required_names(snapshot: _Snapshot) -> Iterator[str]:
    """Yield the names of keys that a tenant must have: intents of processes, and budgets with reservations."""
    for location, _, _, value in snapshot:
        if isinstance(value, Exception):
            continue
        if location.name == _OWNERS:
            yield from (_INTENTS + member.decode() for member, _ in value)
        elif location.name.startswith(_INTENTS):
            for raw in value.values():
                yield from _budgets_of(raw.partition(b"\n")[2])  # the time of admission precedes the JSON


def _budgets_of(raw: bytes) -> Iterator[str]:
    try:
        charges = Intent.from_json(raw).charges
    except msgspec.MsgspecError:
        return  # an intent of another version
    for charge in charges:
        if charge.budget:
            yield f"{charge.scope}:budget"
            if charge.unit == ROLLING:
                yield f"{charge.scope}:budget:{charge.count}"


def _kind(raw: bytes) -> Kind | None:
    kind: Any = raw.decode()
    return kind if kind in {"string", "hash", "set", "zset", "stream"} else None


def _read(pipe: Pipeline, key: str, kind: Kind) -> None:
    if kind == "zset":
        pipe.zrange(key, 0, -1, withscores=True)
    elif kind == "stream":
        pipe.xinfo_stream(key)
    else:
        {"string": pipe.get, "hash": pipe.hgetall, "set": pipe.smembers}[kind](key)


def _key_contents(location: KeyLocation, kind: Kind, expires: Any, value: Any) -> Iterator[KeyContents]:
    """Yield the contents of a key in parts; nothing if the key was deleted."""
    if not value:
        return
    if kind == "string":
        flat = [value]
    elif kind == "hash":
        flat = _flat(value)
    elif kind == "set":
        flat = list(value)
    else:
        flat = [part for member, score in value for part in (member, repr(score).encode())]
    for batch in batched(flat, _VALUES_PER_RECORD):
        yield KeyContents(location, kind, max(0, expires), list(batch))


def _flat(fields: dict[bytes, bytes]) -> list[bytes]:
    return [part for pair in fields.items() for part in pair]
