"""Read receipts from the tenants' outboxes in Redis through one consumer group.

An entry is pending from its delivery until it is acknowledged. A worker acknowledges it after the transaction that
wrote it. Entries of a worker that died stay pending, and another worker claims them. So each entry is written at least
once, and the database keeps it once.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from gateway.quality.comparison import OUTBOX
from gateway.redis.script import RedisScript
from gateway.usage.entries import NOTHING, OutboxEntry, added_ms, before

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from redis.asyncio import Redis

    from gateway.redis.keys import RedisKeys

GROUP = "archive"
"""The group's name is that of earlier versions, so that processes of both versions share entries."""

_TENANTS_PER_CALL = 1_000
_CLAIMS_PER_CALL = 250
_IDS_PER_CALL = 500
_ALL_EVERY_S = 1.0
_ACTIVE_FOR_S = 60.0
_OLD_FOR_S = 60.0


class ComparisonEntry(OutboxEntry):
    """An entry that holds a comparison of answers; `raw` is a Comparison as JSON."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class FeedBatch:
    """Entries to write.

    Attributes:
        trimmed: entries that a worker had taken and that were trimmed before they were acknowledged.
        more: whether there may be more at once.
    """

    entries: list[OutboxEntry]
    trimmed: int = 0
    more: bool = False


@dataclass(frozen=True, slots=True)
class Backlog:
    """Entries that are not acknowledged.

    Attributes:
        waiting: how many there are.
        lag_s: age of the oldest one.
        pending: tenants of which some are delivered.
    """

    waiting: int = 0
    lag_s: float = 0.0
    pending: tuple[str, ...] = ()


class OutboxFeed:
    """Read the outboxes, and acknowledge what is written. Every method raises RedisError and OSError.

    Args:
        consumer: the name of this worker in the consumer group.
        clock: seconds that never go back.
    """

    def __init__(
        self, redis: Redis, keys: RedisKeys, consumer: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._redis = redis
        self._all_keys = keys
        self._keys = keys.ledger()
        self.consumer = consumer
        self._clock = clock
        self._tenants: list[str] = []
        self._all_at = 0.0
        self._active: dict[str, float] = {}
        self._pass: list[str] = []  # tenants that are still to be read in this pass, the last one first
        self._grouped: set[str] = set()
        self._old_until = 0.0
        self._script = RedisScript(redis, "gateway.usage", "outboxes.lua")

    async def read_new(self, most: int, *, all_outboxes: bool = False) -> FeedBatch:
        """Return entries that no worker has taken yet: some of each tenant, then in equal parts of those with more.

        Outboxes that had news in the last minute are read each time, and all outboxes once a second.

        Args:
            all_outboxes: read all outboxes now.
        """
        if all_outboxes:
            self._pass, self._all_at = [], 0.0
        if not self._pass:
            await self._begin_pass()
        found: list[OutboxEntry] = []
        full: list[str] = []  # tenants that may have more
        while self._pass and len(found) < most:
            some = self._pass[: -_TENANTS_PER_CALL - 1 : -1]
            del self._pass[-len(some) :]
            each = max(1, (most - len(found)) // len(some))
            taken = await self._read(some, each)
            found += taken
            full += _full(taken, each)
        room = max(0, most - len(found))
        served, full = full[:room], full[room:]
        for some in _batched(served, _TENANTS_PER_CALL):
            each = max(1, room // len(served))
            taken = await self._read(some, each)
            found += taken
            full += _full(taken, each)
        self._active.update(dict.fromkeys((entry.tenant for entry in found), self._clock()))
        return FeedBatch(found, more=bool(full or self._pass))

    async def read_pending(self, most: int) -> FeedBatch:
        """Return entries that this worker's number has taken and not acknowledged. Call it while the worker holds none.

        There are some where Redis' reply was lost, where Redis forgot an acknowledgement, or where a worker with the
        same number died.
        """
        found: list[OutboxEntry] = []
        for some in _batched(await self._named(), _TENANTS_PER_CALL):
            if len(found) < most:
                found += await self._read(some, max(1, (most - len(found)) // len(some)), after="0")
        return FeedBatch(found, more=bool(found))

    async def claim(self, tenants: Sequence[str], idle_s: float, most: int) -> FeedBatch:
        """Take entries over that were delivered at least `idle_s` ago and are not acknowledged."""
        found: list[OutboxEntry] = []
        trimmed, more = 0, False
        for some in _batched(tenants, _CLAIMS_PER_CALL):
            if len(found) >= most:
                return FeedBatch(found, trimmed, more=True)
            async with self._redis.pipeline(transaction=False) as pipe:
                for tenant in some:
                    name = self._all_keys.outbox(tenant)
                    pipe.xautoclaim(name, GROUP, self.consumer, round(idle_s * 1000), count=most)
                held = await pipe.execute(raise_on_error=False)
            for tenant, told in zip(some, held, strict=True):
                if isinstance(told, Exception):
                    if not _is_gone(told):
                        raise told
                    self._grouped.discard(tenant)  # without a group no entry is pending
                    continue
                following, entries, deleted = told
                found += _entries(tenant, entries)
                trimmed += len(deleted)
                more = more or following != b"0-0"
        return FeedBatch(found, trimmed, more)

    async def acknowledge(self, entries: Iterable[OutboxEntry]) -> None:
        """Acknowledge entries that are written, and trim their outboxes."""
        by_tenant: dict[str, list[str]] = defaultdict(list)
        for entry in entries:
            by_tenant[entry.tenant].append(entry.id)
        parts = [(tenant, some) for tenant, ids in by_tenant.items() for some in _batched(ids, _IDS_PER_CALL)]
        await self._run(parts)

    async def backlog(self) -> Backlog:
        """Return what waits, over all tenants."""
        now, waiting, oldest, pending = time.time(), 0, None, []
        for tenant, first, length, delivered in await self._run([(tenant, []) for tenant in await self._named()]):
            if delivered:
                pending.append(tenant)
            if first:
                waiting += length
                oldest = min(added_ms(first), added_ms(first) if oldest is None else oldest)
        lag_s = max(0.0, now - oldest / 1000) if oldest is not None else 0.0
        return Backlog(waiting, lag_s, tuple(pending))

    async def _run(self, parts: Sequence[tuple[str, list[str]]]) -> list[tuple[str, str, int, int]]:
        """Acknowledge ids by tenant, and return of each outbox with entries the oldest that waits and two counts.

        While a process of an earlier version adds receipts up it must still find them: then this only notes up to where
        they are written, and that process trims.
        """
        trim = not await self._old_process()
        left: list[tuple[str, str, int, int]] = []
        reached: Any = {}
        for some in _calls(parts):
            values = [GROUP.encode(), b"1" if trim else b"0", *(" ".join(ids).encode() for _, ids in some)]
            names = [self._all_keys.outbox(tenant) for tenant, _ in some]
            (found,) = await self._script.run([(names, values)])
            for place, first, delivered, length, pending in found:
                tenant, oldest = some[place - 1][0], first.decode()
                left.append((tenant, oldest, length, pending))
                reached[tenant] = before(oldest) if oldest else delivered.decode()
        if not trim and (known := {tenant: entry for tenant, entry in reached.items() if entry != NOTHING}):
            await self._note(known)
        return left

    async def _note(self, written: dict[str, str]) -> None:
        """Let a process of an earlier version trim outboxes up to these entries, by tenant.

        One without an archive would trim what it has added up. It does not while outboxes are held, as when it makes
        its sums anew (`building`): then they are held already.
        """
        mapping: Any = written
        building: Any = await self._redis.hexists(self._keys.state, "building")
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._keys.archived, mapping=mapping)
            if not building:
                pipe.hset(self._keys.holds, mapping=mapping)
                pipe.hset(self._keys.state, "held_until", str(round(time.time() + _OLD_FOR_S)))
            await pipe.execute()

    async def _old_process(self) -> bool:
        """Return whether a process of an earlier version added receipts up within the last minute."""
        if await self._redis.exists(self._keys.lease):
            self._old_until = self._clock() + _OLD_FOR_S
        return self._clock() < self._old_until

    async def _begin_pass(self) -> None:
        now = self._clock()
        if now >= self._all_at:
            self._tenants = await self._named()
            self._grouped &= set(self._tenants)
            self._active = {one: last for one, last in self._active.items() if last > now - _ACTIVE_FOR_S}
            self._all_at = now + _ALL_EVERY_S
            self._pass = self._tenants[::-1]
        elif len(self._tenants) <= _TENANTS_PER_CALL:
            self._pass = self._tenants[::-1]
        else:
            self._pass = list(self._active)

    async def _read(self, tenants: Sequence[str], each: int, after: str = ">") -> list[OutboxEntry]:
        """Read some entries of each tenant: new ones, or those that this worker has taken (`after` is an entry)."""
        await self._group(tenants)
        names = {self._all_keys.outbox(tenant): tenant for tenant in tenants}
        try:
            read = await self._xreadgroup(names, each, after)
        except ResponseError as error:
            if not _is_gone(error):
                raise
            self._grouped.difference_update(tenants)
            await self._group(tenants)
            read = await self._xreadgroup(names, each, after)
        return [entry for name, entries in read or () for entry in _entries(names[name.decode()], entries)]

    async def _xreadgroup(self, names: dict[str, str], each: int, after: str) -> Any:
        return await self._redis.xreadgroup(GROUP, self.consumer, dict.fromkeys(names, after), count=each)

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

    async def _named(self) -> list[str]:
        named: Any = await self._redis.smembers(self._keys.tenants)
        return [OUTBOX, *sorted(raw.decode() for raw in named)]


def _entries(tenant: str, found: Iterable[tuple[bytes, dict[bytes, bytes] | None]]) -> Iterator[OutboxEntry]:
    for entry, fields in found:
        if not fields:
            continue  # it was trimmed: `claim` counts it
        if b"comparison" in fields:
            yield ComparisonEntry(tenant, entry.decode(), fields[b"comparison"])
        else:
            yield OutboxEntry(tenant, entry.decode(), fields.get(b"receipt", b""))


def _full(taken: Iterable[OutboxEntry], each: int) -> list[str]:
    """Return tenants of which as many entries came as were asked for."""
    return [tenant for tenant, count in Counter(entry.tenant for entry in taken).items() if count >= each]


def _calls(parts: Sequence[tuple[str, list[str]]]) -> Iterator[list[tuple[str, list[str]]]]:
    """Divide parts into calls of the script, none of which blocks Redis for long."""
    some: list[tuple[str, list[str]]] = []
    size = 0
    for part in parts:
        if some and (size + len(part[1]) > _IDS_PER_CALL or len(some) >= _TENANTS_PER_CALL):
            yield some
            some, size = [], 0
        some.append(part)
        size += len(part[1])
    if some:
        yield some


def _is_gone(error: Exception) -> bool:
    """Return whether an error says that there is no such group: Redis lost it, or the outbox was deleted."""
    return isinstance(error, ResponseError) and "NOGROUP" in str(error)


def _batched(items: Sequence[Any], most: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), most):
        yield list(items[start : start + most])
