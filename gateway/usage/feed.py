"""Read receipts from the tenants' outboxes in Redis through one consumer group.

An entry is pending from its delivery until a worker has written and acknowledged it. If a worker dies, another worker
claims its entries. So each entry is written at least once, and the database stores it once.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import RedisError, ResponseError

from gateway.quality.comparison import OUTBOX
from gateway.redis.keys import OUTCOMES
from gateway.redis.script import RedisScript
from gateway.redis.slots import by_slot, is_cluster, is_node_failure
from gateway.usage.entries import OutboxEntry, added_ms, batched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from redis.asyncio import Redis

    from gateway.redis.keys import RedisKeys

GROUP = "usage"
"""The consumer group of all usage workers."""

_CLAIMS_PER_CALL = 250
_ALL_EVERY_S = 1.0
_ACTIVE_FOR_S = 60.0


class ComparisonEntry(OutboxEntry):
    """An entry with a comparison of answers. `raw` is a Comparison as JSON."""

    __slots__ = ()


class OutcomeEntry(OutboxEntry):
    """An entry with the outcome of a request. `raw` is an Outcome as JSON."""

    __slots__ = ()


class FeedBatch(NamedTuple):
    """Entries to write. `trimmed` counts delivered entries that were trimmed before they were acknowledged."""

    entries: list[OutboxEntry]
    trimmed: int = 0
    more: bool = False


class Backlog(NamedTuple):
    """Number of entries that are not acknowledged, age of the oldest, and tenants with delivered ones (`pending`)."""

    waiting: int = 0
    lag_s: float = 0.0
    pending: tuple[str, ...] = ()


class OutboxFeed:
    """Read the outboxes, and acknowledge written entries. Every method raises RedisError and OSError.

    `consumer` is the name of this worker in the consumer group; `clock` returns monotonic seconds.
    `max_tenants` and `max_ids` limit one call of Redis.
    """

    def __init__(
        self,
        redis: Redis,
        keys: RedisKeys,
        consumer: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_tenants: int = 1_000,
        max_ids: int = 500,
    ) -> None:
        self._max_tenants, self._max_ids = max_tenants, max_ids
        self._redis, self._all_keys, self._keys = redis, keys, keys.ledger()
        self.consumer, self._clock = consumer, clock
        self._tenants: list[str] = []
        self._all_at = 0.0
        self._active: dict[str, float] = {}
        self._pass: list[str] = []  # tenants that remain in this pass, in reverse order
        self._grouped: set[str] = set()
        self._script = RedisScript(redis, "gateway.usage", "outboxes.lua")
        self._skipped = False

    def take_skipped(self) -> bool:
        """Return whether, since the last call, outboxes were skipped because their node of a cluster failed.

        Their entries may be pending for this consumer.
        """
        skipped, self._skipped = self._skipped, False
        return skipped

    def _skips(self, reply: object) -> bool:
        """Return whether to skip the outboxes of a reply, since their node failed."""
        failed = is_node_failure(self._redis, reply)
        self._skipped = self._skipped or failed
        return failed

    async def read_new(self, limit: int, *, all_outboxes: bool = False) -> FeedBatch:
        """Return entries that no worker has read yet: first an equal share of each tenant, then of those with more.

        Outboxes with entries in the last minute are read each time, and all outboxes once a second or on request. More
        tenants than `limit` may exceed it by one entry each.
        """
        if all_outboxes:
            self._pass, self._all_at = [], 0.0
        if not self._pass:
            await self._begin_pass()
        entries: list[OutboxEntry] = []
        full: list[str] = []  # tenants that may have more entries
        while self._pass and len(entries) < limit:
            tenants: Sequence[str] = self._pass[: -self._max_tenants - 1 : -1]
            del self._pass[-len(tenants) :]
            each = max(1, (limit - len(entries)) // len(tenants))
            new = await self._read(tenants, each)
            entries += new
            full += _full(new, each)
        free = max(0, limit - len(entries))
        served, full = full[:free], full[free:]
        for tenants in batched(served, self._max_tenants):
            each = max(1, free // len(served))
            new = await self._read(tenants, each)
            entries += new
            full += _full(new, each)
        self._active.update(dict.fromkeys((entry.tenant for entry in entries), self._clock()))
        return FeedBatch(entries, more=bool(full or self._pass))

    async def read_pending(self, limit: int) -> FeedBatch:
        """Return pending entries of this consumer. Call it only if the worker holds no entries.

        They exist if Redis lost a reply or an acknowledgement, or if a worker with the same number died.
        """
        entries: list[OutboxEntry] = []
        for tenants in batched(await self._all_tenants(), self._max_tenants):
            if len(entries) < limit:
                entries += await self._read(tenants, max(1, (limit - len(entries)) // len(tenants)), after="0")
        return FeedBatch(entries, more=bool(entries))

    async def claim(self, tenants: Sequence[str], idle_s: float, limit: int) -> FeedBatch:
        """Claim entries that were delivered at least `idle_s` seconds ago and are not acknowledged."""
        claimed: list[OutboxEntry] = []
        trimmed, more = 0, False
        for batch in batched(tenants, _CLAIMS_PER_CALL):
            if len(claimed) >= limit:
                return FeedBatch(claimed, trimmed, more=True)
            async with self._redis.pipeline(transaction=False) as pipe:
                for tenant in batch:
                    name = self._all_keys.outbox(tenant)
                    pipe.xautoclaim(name, GROUP, self.consumer, round(idle_s * 1000), count=limit)
                replies = await pipe.execute(raise_on_error=False)
            for tenant, reply in zip(batch, replies, strict=True):
                if self._skips(reply):
                    continue
                if isinstance(reply, Exception):
                    if not _is_missing_group(reply):
                        raise reply
                    self._grouped.discard(tenant)  # without a group no entry is pending
                    continue
                cursor, entries, deleted = reply
                claimed += _entries(tenant, entries)
                trimmed += len(deleted)
                more = more or cursor != b"0-0"
        return FeedBatch(claimed, trimmed, more)

    async def acknowledge(self, entries: Iterable[OutboxEntry]) -> None:
        """Acknowledge written entries, and trim their outboxes."""
        by_tenant: dict[str, list[str]] = defaultdict(list)
        for entry in entries:
            by_tenant[entry.tenant].append(entry.id)
        await self._run([(tenant, batch) for tenant, ids in by_tenant.items() for batch in batched(ids, self._max_ids)])

    async def backlog(self) -> Backlog:
        """Return the number and age of waiting entries of all tenants."""
        seconds, _ = await self._redis.time()
        now, waiting, oldest, pending = float(seconds), 0, None, []
        for tenant, first, length, delivered in await self._run([(tenant, []) for tenant in await self._all_tenants()]):
            if delivered:
                pending.append(tenant)
            if first:
                waiting += length
                oldest = min(added_ms(first), added_ms(first) if oldest is None else oldest)
        lag_s = max(0.0, now - oldest / 1000) if oldest is not None else 0.0
        return Backlog(waiting, lag_s, tuple(pending))

    async def _run(self, acks: Sequence[tuple[str, Sequence[str]]]) -> list[tuple[str, str, int, int]]:
        """Acknowledge ids by tenant. Return tenant, oldest waiting id, and counts of entries and of pending entries."""
        waiting: list[tuple[str, str, int, int]] = []
        for batch in _calls(acks, self._max_ids, self._max_tenants):
            groups = by_slot(self._redis, batch, lambda ack: self._all_keys.outbox(ack[0]))
            calls: Any = [
                ([self._all_keys.outbox(tenant) for tenant, _ in group],
                 [GROUP, *(" ".join(ids) for _, ids in group)])
                for group in groups
            ]  # fmt: skip
            for group, outboxes in zip(groups, await self._script.run_each(calls), strict=True):
                if self._skips(outboxes):
                    continue
                if isinstance(outboxes, Exception):
                    raise outboxes
                for index, first, length, pending in outboxes:
                    waiting.append((group[index - 1][0], first.decode(), length, pending))
        return waiting

    async def _begin_pass(self) -> None:
        now = self._clock()
        is_due = now >= self._all_at
        if is_due:
            self._tenants = await self._all_tenants()
            self._grouped &= set(self._tenants)
            self._active = {tenant: last for tenant, last in self._active.items() if last > now - _ACTIVE_FOR_S}
            self._all_at = now + _ALL_EVERY_S
        read_all = is_due or len(self._tenants) <= self._max_tenants
        self._pass = self._tenants[::-1] if read_all else list(self._active)

    async def _read(
        self, tenants: Sequence[str], each: int, after: str = ">", *, retry: bool = True
    ) -> list[OutboxEntry]:
        """Read at most `each` entries of each tenant: new entries, or pending ones if `after` is an id."""
        await self._create_groups(tenants)
        names = {self._all_keys.outbox(tenant): tenant for tenant in tenants}
        found: list[OutboxEntry] = []
        missing: list[str] = []
        for group, reply in await self._read_groups(by_slot(self._redis, list(names), str), after, each):
            if self._skips(reply):
                continue
            if isinstance(reply, Exception):
                if not retry or not _is_missing_group(reply):
                    raise reply
                missing += [names[name] for name in group]
                continue
            found += [entry for name, entries in reply or () for entry in _entries(names[name.decode()], entries)]
        if missing:
            self._grouped.difference_update(missing)
            found += await self._read(missing, each, after, retry=False)
        return found

    async def _read_groups(
        self, groups: Iterable[Sequence[str]], after: str, each: int
    ) -> list[tuple[Sequence[str], Any]]:
        """Read groups of outboxes. Return each group with its reply or error."""
        streams: Any
        if not is_cluster(self._redis):
            (group,) = groups
            streams = dict.fromkeys(group, after)
            try:
                return [(group, await self._redis.xreadgroup(GROUP, self.consumer, streams, count=each))]
            except ResponseError as error:
                return [(group, error)]
        async with self._redis.pipeline(transaction=False) as pipe:
            for group in groups:
                streams = dict.fromkeys(group, after)
                pipe.xreadgroup(GROUP, self.consumer, streams, count=each)
            return list(zip(groups, await pipe.execute(raise_on_error=False), strict=True))

    async def _create_groups(self, tenants: Iterable[str]) -> None:
        new = [tenant for tenant in tenants if tenant not in self._grouped]
        if not new:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for tenant in new:
                pipe.xgroup_create(self._all_keys.outbox(tenant), GROUP, id="0", mkstream=True)
            replies = await pipe.execute(raise_on_error=False)
        for tenant, reply in zip(new, replies, strict=True):
            if self._skips(reply):
                continue
            if isinstance(reply, Exception) and not str(reply).startswith("BUSYGROUP"):
                raise reply
            self._grouped.add(tenant)

    async def _all_tenants(self) -> list[str]:
        try:
            members: Any = await self._redis.smembers(self._keys.tenants)
        except (RedisError, OSError) as error:
            if not self._tenants or not self._skips(error):
                raise
            return self._tenants  # the last known ones, which may be on other nodes
        return [OUTBOX, OUTCOMES, *sorted(raw.decode() for raw in members)]


def _entries(tenant: str, raw_entries: Iterable[tuple[bytes, dict[bytes, bytes] | None]]) -> Iterator[OutboxEntry]:
    for entry_id, fields in raw_entries:
        if not fields:
            continue  # the entry was trimmed: `claim` counts it
        if b"comparison" in fields:
            yield ComparisonEntry(tenant, entry_id.decode(), fields[b"comparison"])
        elif b"outcome" in fields:
            yield OutcomeEntry(tenant, entry_id.decode(), fields[b"outcome"])
        else:
            yield OutboxEntry(tenant, entry_id.decode(), fields.get(b"receipt", b""))


def _full(entries: Iterable[OutboxEntry], each: int) -> list[str]:
    return [tenant for tenant, count in Counter(entry.tenant for entry in entries).items() if count >= each]


def _calls(
    acks: Sequence[tuple[str, Sequence[str]]], max_ids: int, max_tenants: int
) -> Iterator[list[tuple[str, Sequence[str]]]]:
    """Divide acknowledgements into script calls that each block Redis only briefly."""
    batch: list[tuple[str, Sequence[str]]] = []
    size = 0
    for ack in acks:
        if batch and (size + len(ack[1]) > max_ids or len(batch) >= max_tenants):
            yield batch
            batch, size = [], 0
        batch.append(ack)
        size += len(ack[1])
    if batch:
        yield batch


def _is_missing_group(error: Exception) -> bool:
    """Return whether the consumer group is missing: Redis lost the group, or the outbox was deleted."""
    return isinstance(error, ResponseError) and "NOGROUP" in str(error)
