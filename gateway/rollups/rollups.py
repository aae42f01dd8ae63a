"""What receipts add up to, in Redis: rows by the minute, the hour and the day, and how they are read.

Who adds to them is adder.py. Readers see one generation of rows as a whole: one that is built anew takes the place of
the other in one step, and the other stays for a minute for whoever still reads it.
"""

from __future__ import annotations

import asyncio
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from gateway.rollups.adder import KEPT_LATEST, Adder, Mark, batched
from gateway.rollups.rollup import Dims, Row
from gateway.rollups.sums import ALL_TENANTS, OTHER, SECONDS, Granularity, Period, Retention, StoredRow, Sums, periods

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from redis.asyncio import Redis

    from gateway.redis_keys import LedgerKeys, RedisKeys

__all__ = [
    "KEPT_LATEST",
    "OTHER",
    "SECONDS",
    "Granularity",
    "Mark",
    "Period",
    "Retention",
    "Rollups",
    "Sums",
    "periods",
]

T = TypeVar("T")

_KEYS_PER_CALL = 2_000


class Rollups:
    """Args:
    retention: how long, and how much.
    """

    def __init__(self, redis: Redis, keys: RedisKeys, retention: Retention) -> None:
        self._redis = redis
        self._keys = keys.ledger()
        self._adder = Adder(redis, keys, retention)

    async def rows(self, wanted: Sequence[Period], tenant: str | None = None) -> list[tuple[Period, Dims, Row]]:
        """The rows of these periods, of one tenant or of all. Raises RedisError and OSError."""
        return [(period, where, Row.from_bytes(raw)) for period, where, raw in await self._stored(wanted, tenant)]

    async def totals(self, wanted: Sequence[Period]) -> list[tuple[Period, Row]]:
        """Of each period all tenants together; a period without receipts has an empty row. Raises as `rows`."""
        keys = await self._current()
        found = []
        for some in batched(wanted, _KEYS_PER_CALL):
            held: Any = await self._redis.mget([keys.total(one.granularity, one.start) for one in some])
            found += [
                (period, Row() if raw is None else Row.from_bytes(raw)) for period, raw in zip(some, held, strict=True)
            ]
        return found

    async def marks(self, wanted: Sequence[Period]) -> list[bytes | None]:
        """By what each period is known as it is: whatever is added to it makes another mark, and never an earlier one.

        None: nothing was counted there. For it is that of its total, in which no two receipts, nor one in another's
        place, leave all counts as they were. Raises as `rows`.
        """
        keys = await self._current()
        generation = keys.rows_base.removeprefix(keys.base).encode()
        found: list[bytes | None] = []
        for some in batched(wanted, _KEYS_PER_CALL):
            held: Any = await self._redis.mget([keys.total(one.granularity, one.start) for one in some])
            found += [None if raw is None else blake2b(raw, digest_size=16, key=generation).digest() for raw in held]
        return found

    async def read(
        self, work: Callable[[Iterator[StoredRow]], T], wanted: Sequence[Period], tenant: str | None = None
    ) -> T:
        """Return the result of `work`, which runs in a thread and gets the rows of these periods.

        Raises as `rows`.

        Args:
            tenant: None: all tenants. `ALL_TENANTS`: the totals.
        """
        if tenant == ALL_TENANTS:
            total = Dims(ALL_TENANTS, "", "", "", "", "")
            rows = [StoredRow(period, total, row.to_bytes()) for period, row in await self.totals(wanted)]
        else:
            rows = await self._stored(wanted, tenant)
        return await asyncio.to_thread(work, iter(rows))

    async def _stored(self, wanted: Sequence[Period], tenant: str | None) -> list[StoredRow]:
        keys = await self._current()
        places = [(period, tenant) for period in wanted] if tenant is not None else await self._places(keys, wanted)
        found = []
        for some in batched(places, _KEYS_PER_CALL):
            async with self._redis.pipeline(transaction=False) as pipe:
                for period, whose in some:
                    pipe.hgetall(keys.rows(period.granularity, period.start, whose))
                held = await pipe.execute()
            for (period, whose), fields in zip(some, held, strict=True):
                found += [StoredRow(period, _dims(whose, field), raw) for field, raw in fields.items()]
        return found

    async def latest(self, most: int, tenant: str | None = None) -> list[bytes]:
        """The last receipts that were added up, the newest first, as JSON. Raises as `rows`."""
        found: Any = await self._redis.xrevrange(self._keys.latest, count=KEPT_LATEST if tenant else most)
        raw: dict[str, bytes] = {}  # by id: where rows were made anew, some are added up again
        for _, fields in found:
            whose = msgspec.json.decode(fields[b"receipt"], type=_Whose)
            if tenant is None or whose.tenant == tenant:
                raw.setdefault(whose.id, fields[b"receipt"])
        return list(raw.values())[:most]

    async def mark(self) -> Mark:
        """Up to where all is added up. Raises as `rows`."""
        return await self._adder.mark()

    async def version(self) -> str:
        """What `mark` would name, without the rest. Raises as `rows`."""
        return await self._adder.version()

    async def write(
        self,
        mark: Mark,
        sums: Sums,
        cursors: Mapping[str, str],
        latest: Sequence[bytes],
        now: float,
        counted: Mapping[str, int] | None = None,
    ) -> str | None:
        """Add to what is there (Adder.write)."""
        return await self._adder.write(mark, sums, cursors, latest, now, counted)

    async def _current(self) -> LedgerKeys:
        generation: Any = await self._redis.hget(self._keys.state, "generation")
        return self._keys.of(int(generation or 0))

    async def _places(self, keys: LedgerKeys, wanted: Sequence[Period]) -> list[tuple[Period, str]]:
        places = []
        for some in batched(wanted, _KEYS_PER_CALL):
            async with self._redis.pipeline(transaction=False) as pipe:
                for period in some:
                    pipe.smembers(keys.seen(period.granularity, period.start))
                held = await pipe.execute()
            places += [
                (period, raw.decode()) for period, tenants in zip(some, held, strict=True) for raw in sorted(tenants)
            ]
        return places


class _Whose(msgspec.Struct):
    id: str
    tenant: str


def _dims(tenant: str, field: bytes) -> Dims:
    key, route, mode, teacher, student = msgspec.msgpack.decode(field, type=tuple[str, str, str, str, str])
    return Dims(tenant, key, route, mode, teacher, student)
