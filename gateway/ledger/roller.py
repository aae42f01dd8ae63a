"""Adds up what is settled: from the tenants' outboxes into rows, each receipt once.

Every process has one, and one of them works at a time. They need no agreement for that: what was read and what is
written hang together by a version (roll.lua), and a lease only spares the others the work.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import structlog
from redis.exceptions import RedisError

from gateway.ledger.receipt import Receipt
from gateway.ledger.rollups import Sums

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

    from gateway.ledger.rollups import Rollups
    from gateway.redis_client import RedisClient
    from gateway.redis_keys import RedisKeys

Posted: TypeAlias = "tuple[str, list[tuple[str, dict[bytes, bytes]]]]"
"""A tenant, and entries of its outbox by their ids."""

log = structlog.get_logger()

_EVERY_S = 0.5
_LEASE_MS = 3_000
# What one round may hold the event loop for: some milliseconds.
_RECEIPTS_PER_ROUND = 200
_TENANTS_PER_CALL = 500


class Roller:
    """Args:
    owner: this process's id.
    """

    def __init__(self, client: RedisClient, redis: Redis, keys: RedisKeys, rollups: Rollups, owner: str) -> None:
        self._client = client
        self._redis = redis
        self._all_keys = keys
        self._keys = keys.ledger()
        self._rollups = rollups
        self._owner = owner

    async def run(self) -> None:
        """Add up what comes, for ever."""
        while True:
            await self._client.wait_up()
            more = False
            try:
                if await self._leads():
                    more = await self.roll() >= _RECEIPTS_PER_ROUND
            except Exception as error:
                self._client.failed(error)
                unexpected = not isinstance(error, RedisError | OSError)
                log.warning("roll_failed", error=type(error).__name__, exc_info=unexpected)
            await asyncio.sleep(0 if more else _EVERY_S)

    async def roll(self) -> int:
        """Add up some receipts: how many. 0, too, where another process was faster. Raises RedisError and OSError."""
        mark = await self._rollups.mark()
        cursors, latest, sums, count = {}, [], Sums(), 0
        for tenant, entries in await self._posted(mark.cursors):
            for entry, fields in entries:
                cursors[tenant] = entry
                count += 1
                try:
                    sums.add(Receipt.from_json(fields[b"receipt"]))
                    if b"instead" in fields:
                        sums.add(Receipt.from_json(fields[b"instead"]), -1)
                except msgspec.MsgspecError:
                    # Of a version that is newer than this one: it is passed over, and stands in the archive.
                    log.error("receipt_unreadable", tenant=tenant, entry=entry)
                    continue
                latest.append(fields[b"receipt"])
        if not count:
            return 0
        done = await self._rollups.write(mark, sums.spread(), cursors, latest, time.time())
        return count if done else 0

    async def _posted(self, cursors: Mapping[str, str]) -> list[Posted]:
        """By tenant the next entries of outboxes, in order."""
        named: Any = await self._redis.smembers(self._keys.tenants)
        tenants = sorted(raw.decode() for raw in named)
        found: list[Posted] = []
        room = _RECEIPTS_PER_ROUND
        for start in range(0, len(tenants), _TENANTS_PER_CALL):
            some = {self._all_keys.outbox(one): one for one in tenants[start : start + _TENANTS_PER_CALL]}
            if room <= 0:
                break
            read: Any = await self._redis.xread(
                {key: cursors.get(tenant, "0-0") for key, tenant in some.items()}, count=max(1, room // len(some))
            )
            for key, entries in read:
                found.append((some[key.decode()], [(entry.decode(), fields) for entry, fields in entries]))
                room -= len(entries)
        return found

    async def _leads(self) -> bool:
        if await self._redis.set(self._keys.lease, self._owner, nx=True, px=_LEASE_MS):
            return True
        held: Any = await self._redis.get(self._keys.lease)
        if held is None or held.decode() != self._owner:
            return False
        return bool(await self._redis.set(self._keys.lease, self._owner, xx=True, px=_LEASE_MS))
