"""Makes all rows anew from the archive, while receipts go on being added up: each is counted once.

The new rows stand beside those that are read. Of each tenant they count what is archived up to an entry of its outbox
(the cut). Then in one step (rebuild.lua) they are read in the place of the others, and outboxes are added up from the
cut on. What lies beyond it stays in the outbox meanwhile. Where the bound of outboxes makes it go all the same, there
is another pass over what is archived since.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import structlog
from redis.exceptions import RedisError

from gateway.redis_script import Script
from gateway.rollups.adder import Adder, Mark, batched
from gateway.rollups.entries import NOTHING, before, parts
from gateway.rollups.rollups import Sums

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from redis.asyncio import Redis

    from gateway.ledger.receipt import Receipt
    from gateway.redis_keys import RedisKeys
    from gateway.rollups.rollup import Dims
    from gateway.rollups.rollups import Period, Retention

log = structlog.get_logger()

LEASE_S = 60
_MOST_PASSES = 5
_MOST_ROWS = 20_000  # in memory
_ROWS_PER_CALL = 500
_TRIES = 5
_TENANTS_PER_CALL = 500


class RebuildFailed(Exception):
    """Rows were not made anew, and those that are read are as they were."""


@dataclass(frozen=True, slots=True)
class Archived:
    """A receipt as the archive has it.

    Attributes:
        entry: that of the outbox which it came with.
        instead: the abandoned one whose place it took; `instead_entry` is the one which that came with, empty where it
            was not archived.
    """

    tenant: str
    entry: str
    receipt: Receipt
    instead: Receipt | None = None
    instead_entry: str = ""


class Source(Protocol):
    """What receipts are read from."""

    def batches(self, since: Mapping[str, str]) -> AsyncIterator[Sequence[Archived]]:
        """Some at a time, all that came with a later entry than their tenant's in `since`; all of other tenants.

        It may give earlier ones, too. It gives no receipt twice, although one may be replaced meanwhile.
        """


class Rebuild:
    """Args:
    on_progress: told how many receipts were read so far.
    """

    def __init__(
        self,
        redis: Redis,
        keys: RedisKeys,
        retention: Retention,
        source: Source,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._redis = redis
        self._all_keys = keys
        self._keys = keys.ledger()
        self._retention = retention
        self._source = source
        self._on_progress = on_progress
        self._script = Script(redis, "gateway.rollups", "rebuild.lua")
        self._read = 0

    async def run(self) -> int:
        """Do it: how many receipts were read. Raises RebuildFailed, RedisError and OSError."""
        cuts = await self._begin()
        counted = Cuts({}, NOTHING, cuts.generation, cuts.cuts)
        for _ in range(_MOST_PASSES):
            await self._pass(counted, cuts)
            done = await self._switch(cuts)
            if done == 1:
                return self._read
            if done == 0:
                raise RebuildFailed("It took too long between two steps, and was given up. Try again.")
            log.warning("rebuild_again", reason="outboxes were cut for receipts.max_buffered")
            counted, cuts = cuts, await self._again(cuts.generation)
        raise RebuildFailed(
            "Receipts come faster than they can be read from the archive. Try again when fewer come, or with a larger "
            "receipts.max_buffered."
        )

    async def _pass(self, low: Cuts, high: Cuts) -> None:
        """Count what lies between two cuts."""
        adder = Adder(self._redis, self._all_keys, self._retention, build=high.generation)
        sums, now = Sums(), time.time()
        async for batch in self._source.batches(low.by_tenant):
            for one in batch:
                for receipt, times in between(one, low.of(one.tenant), high.of(one.tenant)):
                    if (finest := self._retention.finest(receipt.created, now)) is not None:
                        sums.add(receipt, times, finest)
            self._read += len(batch)
            self._on_progress(self._read)
            if sum(map(len, sums.rows.values())) >= _MOST_ROWS:
                await self._add_all(adder, high.generation, sums)
                sums = Sums()
            elif time.time() - now > LEASE_S / 4:
                await self._renew(high.generation)
                now = time.time()
        await self._add_all(adder, high.generation, sums)

    async def _add_all(self, adder: Adder, generation: int, sums: Sums) -> None:
        """In calls that hold Redis for a moment each; what has its row in common with more goes together."""
        raw = [(period, where, row.to_bytes()) for period, rows in sums.rows.items() for where, row in rows.items()]
        raw.sort(key=lambda one: (one[1], one[0].start))
        for some in batched(raw, _ROWS_PER_CALL):
            await self._renew(generation)
            await self._add(adder, generation, some)

    async def _add(self, adder: Adder, generation: int, raw: Sequence[tuple[Period, Dims, bytes]]) -> None:
        """Add to the new rows, once, although a reply may be lost."""
        version = await adder.version()
        for left in range(_TRIES - 1, -1, -1):
            try:
                fresh = Sums.of_rows(raw).spread()
                await adder.write(Mark(version, {}, generation), fresh, {}, [], time.time())
            except (RedisError, OSError):
                if not left:
                    raise
            # Nobody else writes there: another version says that it was done.
            if await adder.version() != version:
                return
        raise RebuildFailed("Redis did not take what was added up. Try again.")

    async def _begin(self) -> Cuts:
        found = await self._call("begin", str(LEASE_S))
        if found[0] == b"":
            raise RebuildFailed("Rows are being made anew already. Wait for that to end, or a minute where it died.")
        return await self._cuts(found)

    async def _again(self, generation: int) -> Cuts:
        found = await self._call("again", str(generation), str(LEASE_S), generation=generation)
        if found[0] == b"":
            raise RebuildFailed("It took too long between two steps, and was given up. Try again.")
        return await self._cuts(found)

    async def _renew(self, generation: int) -> None:
        if not await self._call("renew", str(generation), str(LEASE_S), generation=generation):
            raise RebuildFailed("It took too long between two steps, and was given up. Try again.")

    async def _switch(self, cuts: Cuts) -> int:
        raw = msgspec.msgpack.encode(dict(cuts.by_tenant))
        words = (str(cuts.generation), cuts.cuts, cuts.others, raw)
        done: int = await self._call("switch", *words, generation=cuts.generation)
        return done

    async def _cuts(self, found: Sequence[Any]) -> Cuts:
        """What is no longer in an outbox comes from the archive or from nowhere: no cut lies before what is there."""
        generation, cuts, now_ms, told = found
        by_tenant = {told[i].decode(): told[i + 1].decode() for i in range(0, len(told), 2)}
        # Whoever has no outbox yet gets one with later entries.
        others = before(f"{now_ms.decode()}-0")
        for some in batched(list(by_tenant), _TENANTS_PER_CALL):
            async with self._redis.pipeline(transaction=False) as pipe:
                for tenant in some:
                    pipe.xrange(self._all_keys.outbox(tenant), count=1)
                firsts = await pipe.execute()
            for tenant, first in zip(some, firsts, strict=True):
                least = before(first[0][0].decode()) if first else others
                by_tenant[tenant] = max(by_tenant[tenant] or NOTHING, least, key=parts)
        return Cuts(by_tenant, others, int(generation), cuts.decode())

    async def _call(self, what: str, *words: str | bytes, generation: int = 0) -> Any:
        of = self._keys
        keys = [of.state, of.cursors, of.archived, of.holds, of.builds, of.counted, of.tenants, of.build(generation)]
        said = [what.encode(), *(word.encode() if isinstance(word, str) else word for word in words)]
        (told,) = await self._script.run([(keys, said)])
        return told


@dataclass(frozen=True, slots=True)
class Cuts:
    """Up to which entry what is archived counts.

    Attributes:
        others: that of tenants without one of their own.
        cuts: how often outboxes were cut when these were read.
    """

    by_tenant: Mapping[str, str]
    others: str
    generation: int
    cuts: str

    def of(self, tenant: str) -> str:
        return self.by_tenant.get(tenant, self.others)


def between(one: Archived, low: str, high: str) -> list[tuple[Receipt, int]]:
    """What a receipt counts for that came after one cut and not after the other, and how often.

    A true receipt stands for the abandoned one from its own entry on; up to there that one counts.
    """
    now, earlier = _counts_at(one, high), _counts_at(one, low)
    if now is earlier:
        return []
    return [(receipt, times) for receipt, times in ((now, 1), (earlier, -1)) if receipt is not None]


def _counts_at(one: Archived, cut: str) -> Receipt | None:
    if parts(one.entry) <= parts(cut):
        return one.receipt
    if one.instead is not None and parts(one.instead_entry or NOTHING) <= parts(cut) != parts(NOTHING):
        return one.instead
    return None
