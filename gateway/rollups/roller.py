"""Adds up what is settled: from the tenants' outboxes into rows, each receipt once.

Every process has one, and one of them works at a time. They need no agreement for that: what was read and what is
written hang together by a version (roll.lua), and a lease only spares the others the work.

A round looks at outboxes in turn, at a few entries of each, and then reads on where there is more, in equal parts. So
nobody waits for a tenant that is louder. What it knows of the last round it keeps, and reads anew when somebody else
has written.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import structlog
from redis.exceptions import RedisError

from gateway.ledger.receipt import Receipt
from gateway.rollups.entries import made_ms
from gateway.rollups.rollups import Mark, Sums
from gateway.rollups.state import LedgerState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from redis.asyncio import Redis

    from gateway.redis_client import RedisClient
    from gateway.redis_keys import RedisKeys
    from gateway.rollups.rollups import Rollups

Entries: TypeAlias = "list[tuple[bytes, dict[bytes, bytes]]]"
"""Of an outbox: ids, and fields."""

log = structlog.get_logger()

_EVERY_S = 0.5
# An idle look at very many outboxes may cost no more than this part of the time.
_PART_OF_TIME = 0.1
_LEASE_MS = 3_000
_RECEIPTS_PER_ROUND = 500
_TENANTS_PER_CALL = 250
_CALLS_WHILE_BEHIND = 4
_KNOWN_FOR_S = 5.0
# About a millisecond of the event loop.
_RECEIPTS_AT_ONCE = 64
_ROWS_AT_ONCE = 64


class Roller:
    """Args:
    owner: this process's id.
    state: told what each round did.
    """

    def __init__(
        self,
        client: RedisClient,
        redis: Redis,
        keys: RedisKeys,
        rollups: Rollups,
        owner: str,
        state: LedgerState | None = None,
    ) -> None:
        self._client = client
        self._redis = redis
        self._all_keys = keys
        self._keys = keys.ledger()
        self._rollups = rollups
        self._owner = owner
        self.state = state or LedgerState()
        self._mark: Mark | None = None
        self._tenants: list[str] = []
        self._known_at = 0.0
        self._next = 0
        self._behind: list[str] = []  # tenants that had more than was read of them

    async def run(self) -> None:
        """Add up what comes, for ever."""
        while True:
            await self._client.wait_up()
            more, began = False, time.monotonic()
            try:
                self.state.lead(leads=await self._leads())
                if self.state.leads:
                    await self.roll()
                    more = bool(self._behind)
            except Exception as error:
                self._mark = None
                self.state.stuck()
                self._client.failed(error)
                unexpected = not isinstance(error, RedisError | OSError)
                log.warning("roll_failed", error=type(error).__name__, exc_info=unexpected)
            took_s = time.monotonic() - began
            # While there is more, requests have the loop for a fifth of the time to themselves.
            await asyncio.sleep(took_s / 4 if more else max(_EVERY_S, took_s / _PART_OF_TIME - took_s))

    async def roll(self) -> int:
        """Add up some receipts: how many. 0, too, where another process was faster. Raises RedisError and OSError."""
        mark = await self._marked()
        posted = await self._posted(mark.cursors)
        cursors = {tenant: entries[-1][0].decode() for tenant, entries in posted.items()}
        if not cursors:
            self.state.rolled(0, None)
            return 0
        sums, latest = Sums(), []
        for step, (tenant, (entry, fields)) in enumerate(_each(posted), 1):
            if self._add(sums, tenant, entry, fields):
                latest.append(fields[b"receipt"])
            if step % _RECEIPTS_AT_ONCE == 0:
                await asyncio.sleep(0)
        for step, _ in enumerate(sums.spreading(), 1):
            if step % _ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
        counted = {tenant: len(entries) for tenant, entries in posted.items()}
        # Whoever does not hear that it was done finds another version, and the cursors that belong to it.
        version = await self._rollups.write(mark, sums, cursors, latest, time.time(), counted)
        if version is None:
            self._mark = None
            self._behind = list(cursors)
            return 0
        self._mark = Mark(version, {**mark.cursors, **cursors}, mark.generation)
        oldest_ms = min(made_ms(entries[0][0].decode()) for entries in posted.values())
        self.state.rolled(sum(counted.values()), oldest_ms if self._behind else None)
        return sum(counted.values())

    @staticmethod
    def _add(sums: Sums, tenant: str, entry: bytes, fields: Mapping[bytes, bytes]) -> bool:
        try:
            receipt = Receipt.from_json(fields[b"receipt"])
            instead = Receipt.from_json(fields[b"instead"]) if b"instead" in fields else None
        except (msgspec.MsgspecError, KeyError):
            # Of a version that is newer than this one: it is passed over, and stands in the archive.
            log.error("receipt_unreadable", tenant=tenant, entry=entry.decode())
            return False
        sums.add(receipt)
        if instead is not None:
            sums.add(instead, -1)
        return True

    async def _marked(self) -> Mark:
        """What is known of the last round holds for as long as nobody else has written."""
        if self._mark is None or await self._rollups.version() != self._mark.version:
            self._mark = await self._rollups.mark()
        return self._mark

    async def _posted(self, cursors: Mapping[str, str]) -> dict[str, Entries]:
        """By tenant the next entries of outboxes, in order."""
        await self._know_tenants()
        found: dict[str, Entries] = {}
        behind = self._behind
        room = _RECEIPTS_PER_ROUND
        # Of everybody a little: who was behind is among them in time, and gets its part below at once.
        at_once = min(_TENANTS_PER_CALL, max(1, len(self._tenants)))
        each = max(1, room // 2 // at_once)
        calls = -(-len(self._tenants) // at_once)
        for _ in range(min(calls, _CALLS_WHILE_BEHIND) if behind else calls):
            some = self._tenants[self._next : self._next + at_once]
            self._next = (self._next + at_once) if self._next + at_once < len(self._tenants) else 0
            read = await self._read({tenant: cursors.get(tenant, "0-0") for tenant in some}, each)
            found.update(read)
            behind = [*behind, *(tenant for tenant, entries in read.items() if len(entries) == each)]
            room -= sum(map(len, read.values()))
            if room < _RECEIPTS_PER_ROUND // 2:
                break
        # Who is not served now comes first in the next round.
        waiting = list(dict.fromkeys(behind))
        some = waiting[: max(0, room)]
        self._behind = waiting[len(some) :]
        if some:
            each = max(1, room // len(some))
            more = await self._read(
                {one: found[one][-1][0] if one in found else cursors.get(one, "0-0") for one in some}, each
            )
            for tenant, entries in more.items():
                found.setdefault(tenant, []).extend(entries)
            self._behind += [tenant for tenant, entries in more.items() if len(entries) == each]
        return found

    async def _read(self, after: Mapping[str, str | bytes], each: int) -> dict[str, Entries]:
        names = {self._all_keys.outbox(tenant): tenant for tenant in after}
        read: Any = await self._redis.xread({name: after[names[name]] for name in names}, count=each)
        return {names[name.decode()]: entries for name, entries in read}

    async def _know_tenants(self) -> None:
        """Ask for their names when there is another number of them, or a while has passed."""
        now = time.monotonic()
        count: Any = await self._redis.scard(self._keys.tenants)
        if count != len(self._tenants) or now - self._known_at > _KNOWN_FOR_S:
            named: Any = await self._redis.smembers(self._keys.tenants)
            self._tenants, self._known_at = sorted(raw.decode() for raw in named), now
            self._next = self._next if self._next < len(self._tenants) else 0

    async def _leads(self) -> bool:
        if await self._redis.set(self._keys.lease, self._owner, nx=True, px=_LEASE_MS):
            return True
        held: Any = await self._redis.get(self._keys.lease)
        if held is None or held.decode() != self._owner:
            return False
        return bool(await self._redis.set(self._keys.lease, self._owner, xx=True, px=_LEASE_MS))


def _each(posted: Mapping[str, Entries]) -> Iterator[tuple[str, tuple[bytes, dict[bytes, bytes]]]]:
    for tenant, entries in posted.items():
        for one in entries:
            yield tenant, one
