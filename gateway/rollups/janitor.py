"""Keeps outboxes short: what is added up and archived goes, and beyond a bound the oldest of whoever has most.

It works where the roller leads. That two of them work does no harm: what each takes away was done with, or is counted
by whoever took it.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import structlog
from redis.exceptions import RedisError

from gateway.redis_script import Script
from gateway.rollups.entries import EVERYTHING, NOTHING, after, parts
from gateway.rollups.generations import Generations
from gateway.rollups.leavers import Leavers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis.asyncio import Redis

    from gateway.redis_client import RedisClient
    from gateway.redis_keys import RedisKeys
    from gateway.rollups.state import LedgerState
    from gateway.rollups.sums import Retention

log = structlog.get_logger()

_EVERY_S = 1.0
_PART_OF_TIME = 0.1
_TENANTS_PER_CALL = 250
_CUT_AT_ONCE = 500


class Janitor:
    """Args:
    state: says whether this process leads, and is told what was found.
    most: about how many receipts all outboxes together may hold.
    archived: whether receipts are archived; else those that are added up may go.
    retention: of the rows.
    """

    def __init__(
        self,
        client: RedisClient,
        redis: Redis,
        keys: RedisKeys,
        state: LedgerState,
        *,
        most: int,
        archived: bool,
        retention: Retention,
    ) -> None:
        self._client = client
        self._redis = redis
        self._all_keys = keys
        self._keys = keys.ledger()
        self._state = state
        self._most = most
        self._archived = archived
        self._trim = Script(redis, "gateway.rollups", "outbox_trim.lua")
        self._oldest = Script(redis, "gateway.rollups", "outbox_oldest.lua")
        self._leavers = Leavers(redis, keys)
        self._generations = Generations(redis, keys, retention)
        self._empty: dict[str, str] = {}  # tenants with nothing in their outbox, and what was added up last
        self._cutting = False  # the bound was passed in the last round, too

    async def run(self) -> None:
        """Look once a second, for ever."""
        while True:
            await self._client.wait_up()
            began = time.monotonic()
            try:
                if self._state.leads:
                    await self.tidy()
            except Exception as error:
                self._client.failed(error)
                unexpected = not isinstance(error, RedisError | OSError)
                log.warning("tidy_failed", error=type(error).__name__, exc_info=unexpected)
            took_s = time.monotonic() - began
            await asyncio.sleep(max(_EVERY_S, took_s / _PART_OF_TIME - took_s))

    async def tidy(self) -> None:
        """One round over all outboxes. Raises RedisError and OSError."""
        named: Any = await self._redis.smembers(self._keys.tenants)
        tenants = sorted(raw.decode() for raw in named)
        lengths: dict[str, int] = {}
        self._empty, waiting = {}, 0
        for start in range(0, len(tenants), _TENANTS_PER_CALL):
            left, unadded = await self._tidied(tenants[start : start + _TENANTS_PER_CALL])
            lengths |= left
            waiting += unadded
        self._state.looked(waiting, sum(lengths.values()))
        await self._cut(lengths)
        now, _ = await self._redis.time()
        if quiet := await self._leavers.begin(self._empty, now):
            log.info("tenants_quiet", count=len(quiet))
        await self._leavers.end(now)
        await self._generations.drop()

    async def _tidied(self, tenants: Sequence[str]) -> tuple[dict[str, int], int]:
        """What is left of these tenants' outboxes, and how many entries are not added up."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.time()
            pipe.hget(self._keys.state, "held_until")
            for name in (self._keys.holds, self._keys.archived, self._keys.cursors, self._keys.counted):
                pipe.hmget(name, list(tenants))
            (now, _), held_until, holds, archived, cursors, counts = await pipe.execute()
        is_held = int(held_until or 0) > now
        async with self._redis.pipeline(transaction=False) as pipe:
            for tenant in tenants:
                pipe.xlen(self._all_keys.outbox(tenant))
            lengths = await pipe.execute()
        calls, asked = [], []
        for place, (tenant, length) in enumerate(zip(tenants, lengths, strict=True)):
            added = _text(cursors[place])
            if not length:
                self._empty[tenant] = added
            else:
                safe = min(
                    added,
                    _text(archived[place]) if self._archived else EVERYTHING,
                    _text(holds[place]) if is_held else EVERYTHING,
                    key=parts,
                )
                calls.append(([self._all_keys.outbox(tenant)], [after(safe).encode()]))
                asked.append((tenant, added, counts[place]))
        left, waiting = {}, 0
        for (tenant, added, count), told in zip(asked, await self._trim.run(calls) if calls else [], strict=True):
            length, ever, first = int(told[0]), int(told[1]), told[2].decode()
            left[tenant] = length
            if first and parts(first) <= parts(added):
                # Some of these are added up. How many is known once they are gone.
                waiting += max(0, ever - int(count)) if count is not None else 0
                continue
            waiting += length
            await self._account(tenant, ever - length, count)
        return left, waiting

    async def _account(self, tenant: str, gone: int, count: bytes | None) -> None:
        """All that is left of an outbox waits to be added up: then what is gone was counted, or was lost."""
        if count is None:
            await self._redis.hsetnx(self._keys.counted, tenant, str(gone))
        elif gone < int(count):
            # An outbox that began anew, after it was empty for long.
            await self._redis.hset(self._keys.counted, tenant, str(gone))
        elif gone > int(count):
            # The bound of the outbox itself cut it: nobody had added up for very long, or far too much came at once.
            await self._redis.hincrby(self._keys.counted, tenant, gone - int(count))
            self._state.lose("sums", gone - int(count))
            log.error("receipts_unkept", tenant=tenant, sums=gone - int(count), archive=None)

    async def _cut(self, lengths: Mapping[str, int]) -> None:
        """Bring all outboxes together under the bound."""
        if sum(lengths.values()) <= self._most:
            self._cutting = False
            return
        most = level(list(lengths.values()), self._most)
        lost = {"sums": 0, "archive": 0}
        for tenant, length in lengths.items():
            cut = length > most
            while cut:
                cut, unadded, unarchived = await self._cut_some(tenant, most)
                lost["sums"] += unadded
                lost["archive"] += unarchived
        self._state.lose("sums", lost["sums"])
        self._state.lose("archive", lost["archive"])
        if not self._cutting:
            log.error("receipts_unkept", most=self._most, **lost)
        self._cutting = True

    async def _cut_some(self, tenant: str, most: int) -> tuple[bool, int, int]:
        """Cut some of the oldest: whether any had to go, how many were not added up, and how many not archived."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hget(self._keys.cursors, tenant)
            pipe.hget(self._keys.archived, tenant)
            pipe.hexists(self._keys.counted, tenant)
            added, archived, is_counted = await pipe.execute()
        done = _text(archived) if self._archived else EVERYTHING
        name = self._all_keys.outbox(tenant)
        ((last, count, unadded, unarchived),) = await self._oldest.run(
            [([name], [str(most).encode(), _text(added).encode(), done.encode(), str(_CUT_AT_ONCE).encode()])]
        )
        if count:
            # Before it is gone: who makes rows anew must not take it for still there.
            await self._redis.hincrby(self._keys.state, "cuts", 1)
            await self._redis.xtrim(name, minid=after(last.decode()), approximate=False)
            await self._redis.hincrby(self._keys.state, "cuts", 1)
            if unadded and is_counted:
                await self._redis.hincrby(self._keys.counted, tenant, unadded)
        return bool(count), int(unadded), int(unarchived)


def level(lengths: Sequence[int], most: int) -> int:
    """The length that the longest are to be cut to, so that all together are at most `most`: nobody shorter gives way.

    It is the largest one with which they are.
    """
    left, ordered = most, sorted(lengths)
    for place, length in enumerate(ordered):
        share = left // (len(ordered) - place)
        if length > share:
            return share
        left -= length
    return max(ordered, default=0)


def _text(raw: bytes | None) -> str:
    return raw.decode() if raw is not None else NOTHING
