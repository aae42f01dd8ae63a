"""What the archive is fed with: the tenants' outboxes in Redis, by a consumer group of each.

An entry that was taken is pending until it is told that it was archived. Whoever dies in between leaves it pending, and
it is taken anew: so the archive hears of each at least once, and keeps it once.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from gateway.archive.database import Entry
from gateway.archive.tables import entry_parts
from gateway.redis_script import Script

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from redis.asyncio import Redis

    from gateway.redis_keys import RedisKeys

GROUP = "archive"
# One name for all: whoever works is the only one, and of two that believe so each gets other entries.
_CONSUMER = "archiver"
_TENANTS_PER_CALL = 250
_ACKS_PER_CALL = 500


@dataclass(frozen=True, slots=True)
class Taken:
    """Entries to be archived.

    Attributes:
        gone: entries that were taken once and are no longer there: trimmed before they were archived.
        more: whether there may be more at once.
    """

    entries: list[Entry]
    gone: int = 0
    more: bool = False


@dataclass(frozen=True, slots=True)
class Behind:
    """How many entries wait to be archived, and for how long the oldest does."""

    waiting: int = 0
    lag_s: float = 0.0


class ArchiveFeed:
    """Reads what is to be archived, and tells Redis what is. Every method raises RedisError and OSError."""

    def __init__(self, redis: Redis, keys: RedisKeys) -> None:
        self._redis = redis
        self._all_keys = keys
        self._keys = keys.ledger()
        self._grouped: set[str] = set()
        self._next = 0
        self._script = Script(redis, "gateway.archive", "archived.lua")

    async def take(self, most: int) -> Taken:
        """Entries that nobody has taken yet: of everybody some, then of whoever has more, in equal parts."""
        found: list[Entry] = []
        full: list[str] = []  # tenants that may have more
        tenants = await self._tenants()
        self._grouped &= set(tenants)
        # Who was not looked at for want of room comes first the next time.
        start = self._next % len(tenants) if tenants else 0
        looked = 0
        for some in _batched([*tenants[start:], *tenants[:start]], _TENANTS_PER_CALL):
            if len(found) >= most:
                break
            each = max(1, (most - len(found)) // len(some))
            taken = await self._take(some, each)
            found += taken
            full += _full(taken, each)
            looked += len(some)
        self._next = start + looked
        unseen = len(tenants) - looked
        room = max(0, most - len(found))
        served, full = full[:room], full[room:]
        for some in _batched(served, _TENANTS_PER_CALL):
            each = max(1, room // len(served))
            taken = await self._take(some, each)
            found += taken
            full += _full(taken, each)
        return Taken(found, more=bool(full or unseen))

    async def claim(self, idle_s: float, most: int) -> Taken:
        """Entries that were taken so long ago, and nobody told that they are archived: who took them has died."""
        found: list[Entry] = []
        gone, more = 0, False
        for some in _batched(await self._tenants(), _TENANTS_PER_CALL):
            if len(found) >= most:
                return Taken(found, gone, more=True)
            await self._group(some)
            async with self._redis.pipeline(transaction=False) as pipe:
                for tenant in some:
                    pipe.xautoclaim(self._all_keys.outbox(tenant), GROUP, _CONSUMER, round(idle_s * 1000), count=most)
                held = await pipe.execute(raise_on_error=False)
            for tenant, told in zip(some, held, strict=True):
                if isinstance(told, Exception):
                    if not _is_gone(told):
                        raise told
                    self._grouped.discard(tenant)  # and nothing of it is pending
                    continue
                following, entries, deleted = told
                found += _entries(tenant, entries)
                gone += len(deleted)
                more = more or following != b"0-0"
        return Taken(found, gone, more)

    async def told(self, entries: Iterable[Entry]) -> None:
        """These are archived."""
        by_tenant: dict[str, list[str]] = {}
        for entry in entries:
            by_tenant.setdefault(entry.tenant, []).append(entry.id)
        calls: list[tuple[str, list[str]]] = []
        for tenant, ids in by_tenant.items():
            calls += [(tenant, some) for some in _batched(ids, _ACKS_PER_CALL)]
        await self._look(calls)

    async def behind(self) -> Behind:
        """What waits, over all tenants."""
        now, waiting, oldest = time.time(), 0, None
        tenants = await self._tenants()
        for some in _batched(tenants, _TENANTS_PER_CALL):
            await self._group(some)
            for waits, since in await self._look([(tenant, []) for tenant in some]):
                waiting += waits
                if since is not None:
                    oldest = since if oldest is None else min(oldest, since)
        return Behind(waiting, max(0.0, now - oldest) if oldest is not None else 0.0)

    async def archived(self) -> dict[str, str]:
        """By tenant the entry up to which all is archived."""
        held: Any = await self._redis.hgetall(self._keys.archived)
        return {tenant.decode(): entry.decode() for tenant, entry in held.items()}

    async def _look(self, calls: Sequence[tuple[str, list[str]]]) -> list[tuple[int, float | None]]:
        """For each how many entries wait, and since when; what is archived of each is noted."""
        if not calls:
            return []
        told = await self._script.run(
            [
                ([self._all_keys.outbox(tenant)], [GROUP.encode(), *(one.encode() for one in ids)])
                for tenant, ids in calls
            ]
        )
        # An entry id: who trims the outbox keeps all that came later.
        reached: Any = {tenant: before for (tenant, _), (before, _, _) in zip(calls, told, strict=True) if before}
        if reached:
            noted: Any = self._redis.hset(self._keys.archived, mapping=reached)
            await noted
        return [(int(waits), entry_parts(oldest.decode())[0] / 1000 if oldest else None) for _, waits, oldest in told]

    async def _take(self, tenants: Sequence[str], each: int) -> list[Entry]:
        await self._group(tenants)
        names = {self._all_keys.outbox(tenant): tenant for tenant in tenants}
        try:
            read = await self._read(names, each)
        except ResponseError as error:
            if not _is_gone(error):
                raise
            self._grouped.difference_update(tenants)
            await self._group(tenants)
            read = await self._read(names, each)
        return [entry for name, entries in read or () for entry in _entries(names[name.decode()], entries)]

    async def _read(self, names: dict[str, str], each: int) -> Any:
        return await self._redis.xreadgroup(GROUP, _CONSUMER, dict.fromkeys(names, ">"), count=each)

    async def _group(self, tenants: Iterable[str]) -> None:
        new = [tenant for tenant in tenants if tenant not in self._grouped]
        if not new:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for tenant in new:
                pipe.xgroup_create(self._all_keys.outbox(tenant), GROUP, id="0", mkstream=True)
            for made in await pipe.execute(raise_on_error=False):
                if isinstance(made, Exception) and not str(made).startswith("BUSYGROUP"):
                    raise made
        self._grouped.update(new)

    async def _tenants(self) -> list[str]:
        named: Any = await self._redis.smembers(self._keys.tenants)
        return sorted(raw.decode() for raw in named)


def _entries(tenant: str, found: Iterable[tuple[bytes, dict[bytes, bytes] | None]]) -> Iterator[Entry]:
    for entry, fields in found:
        yield Entry(tenant, entry.decode(), (fields or {}).get(b"receipt", b""))


def _full(taken: Iterable[Entry], each: int) -> list[str]:
    """Tenants of which as many came as were asked for."""
    return [tenant for tenant, count in Counter(entry.tenant for entry in taken).items() if count >= each]


def _is_gone(error: Exception) -> bool:
    """Whether it says that there is no such group: Redis forgot, or an outbox was deleted."""
    return isinstance(error, ResponseError) and "NOGROUP" in str(error)


def _batched(items: Sequence[Any], most: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while some := list(islice(rest, most)):
        yield some
