"""Adding sums of receipts to the rows in Redis: read, added to, and written whole, unless somebody else has written.

Rows stand in a generation. Readers and the roller use the current one; another one can be built beside it (rebuild.py),
with a version of its own.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from gateway.redis_script import Script
from gateway.rollups.rollup import Dims, Row, row_in
from gateway.rollups.sums import OTHER, Period, Retention, Sums

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from redis.asyncio import Redis

    from gateway.redis_keys import RedisKeys

KEPT_LATEST = 1_000
"""About how many of the last receipts of all tenants stay at hand."""

# About a millisecond of the event loop.
_ROWS_AT_ONCE = 64
_KEYS_AT_ONCE = 24
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Mark:
    """Up to where outboxes are added up: entry ids by tenant. `version` says what was read, `generation` of what."""

    version: str
    cursors: Mapping[str, str]
    generation: int = 0


class RowsNews(msgspec.Struct, frozen=True):
    """How many rows of one tenant and period follow, and when they go, in Unix seconds."""

    ends: int
    count: int


class SeenNews(msgspec.Struct, frozen=True):
    """Tenants that have rows in a period."""

    ends: int
    tenants: list[str]


class Roll(msgspec.Struct, frozen=True):
    """What one call of the script writes, if nobody has written since `version`. The keys follow in this order.

    Attributes:
        counted: by tenant, how many entries of its outbox this is.
        latest: how many receipts follow.
        totals: for each, when it goes.
    """

    version: str
    cursors: dict[str, str]
    counted: dict[str, int]
    latest: int
    keep_latest: int
    rows: list[RowsNews]
    totals: list[int]
    seen: list[SeenNews]


class Adder:
    """Args:
    retention: how long, and how much.
    build: the generation that it builds; None: it adds to the one that is read.
    """

    def __init__(self, redis: Redis, keys: RedisKeys, retention: Retention, build: int | None = None) -> None:
        self._redis = redis
        self._keys = keys.ledger()
        self._state = self._keys.state if build is None else self._keys.build(build)
        self._retention = retention
        self._script = Script(redis, "gateway.rollups", "roll.lua")

    async def mark(self) -> Mark:
        """Up to where all is added up. Raises RedisError and OSError."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hmget(self._keys.state, "version", "generation")
            pipe.hgetall(self._keys.cursors)
            (version, generation), cursors = await pipe.execute()
        return Mark(
            version.decode() if version is not None else "0",
            {tenant.decode(): one.decode() for tenant, one in cursors.items()},
            int(generation or 0),
        )

    async def version(self) -> str:
        """What `mark` would name, without the rest. Raises as `mark`."""
        told: Any = await self._redis.hget(self._state, "version")
        return told.decode() if told is not None else "0"

    async def write(
        self,
        mark: Mark,
        sums: Sums,
        cursors: Mapping[str, str],
        latest: Sequence[bytes],
        now: float,
        counted: Mapping[str, int] | None = None,
    ) -> str | None:
        """Add these sums, and move the cursors, unless somebody has written since `mark`: the next version, or None.

        Args:
            sums: by the minute, the hour and the day.
            latest: receipts as JSON, the oldest first.
            now: Unix seconds; what would be forgotten at once is not written.
            counted: by tenant, of how many entries these are the sums.

        Raises as `mark`.
        """
        news = await self._added(mark.generation, sums, now)
        return await self._write(mark, news, cursors, latest, counted or {})

    async def _added(self, generation: int, sums: Sums, now: float) -> _News:
        """The rows as they are to be written."""
        news = _News(generation)
        for period, by_dims in sums.rows.items():
            if self._ends(period) > now:
                news.totals[period] = sums.totals[period]
                for where, row in by_dims.items():
                    news.rows[period, where.tenant][where] = row
        full: list[tuple[Period, str]] = []
        for some in batched(news.rows, _KEYS_AT_ONCE):
            held = await self._held(news, some)
            full += [
                at for at, (raws, there) in zip(some, held, strict=True) if self._merged(news.rows[at], raws, there)
            ]
        if news.totals:
            keys = self._keys.of(generation)
            totals: Any = await self._redis.mget([keys.total(one.granularity, one.start) for one in news.totals])
            for period, raw in zip(list(news.totals), totals, strict=True):
                news.totals[period] = _added_to(raw, news.totals[period])
        if full:
            await self._add_others(news, full)
        return news

    async def _held(self, news: _News, places: Sequence[tuple[Period, str]]) -> list[tuple[list[bytes | None], int]]:
        """Of each period and tenant what stands in Redis of its rows, and how many rows do."""
        keys = self._keys.of(news.generation)
        async with self._redis.pipeline(transaction=False) as pipe:
            for period, tenant in places:
                name = keys.rows(period.granularity, period.start, tenant)
                pipe.hmget(name, [field_of(where) for where in news.rows[period, tenant]])
                pipe.hlen(name)
            held = await pipe.execute()
        return list(zip(held[::2], held[1::2], strict=True))

    def _merged(self, rows: dict[Dims, Row], raws: Sequence[bytes | None], there: int) -> bool:
        """Add to what stands in Redis; whether there was no room for all that is new."""
        new = []
        for where, raw in zip(list(rows), raws, strict=True):
            if raw is None and not is_other(where):
                new.append(where)
            rows[where] = _added_to(raw, rows[where])
        beyond = new[max(0, self._retention.max_rows - there) :]
        _put_together(rows, beyond)
        return bool(beyond)

    async def _add_others(self, news: _News, full: Sequence[tuple[Period, str]]) -> None:
        """What goes to the rows of all others is added to what stands there, too."""
        keys = self._keys.of(news.generation)
        async with self._redis.pipeline(transaction=False) as pipe:
            for period, tenant in full:
                others = [where for where in news.rows[period, tenant] if is_other(where)]
                pipe.hmget(keys.rows(period.granularity, period.start, tenant), [field_of(one) for one in others])
            held = await pipe.execute()
        for at, raws in zip(full, held, strict=True):
            rows = news.rows[at]
            for where, raw in zip([one for one in rows if is_other(one)], raws, strict=True):
                rows[where] = _added_to(raw, rows[where])

    async def _write(
        self,
        mark: Mark,
        news: _News,
        cursors: Mapping[str, str],
        latest: Sequence[bytes],
        counted: Mapping[str, int],
    ) -> str | None:
        seen: dict[Period, list[str]] = defaultdict(list)
        for period, tenant in news.rows:
            seen[period].append(tenant)
        roll = Roll(
            version=mark.version,
            cursors=dict(cursors),
            counted=dict(counted),
            latest=len(latest),
            keep_latest=KEPT_LATEST,
            rows=[RowsNews(self._ends(period), len(rows)) for (period, _), rows in news.rows.items()],
            totals=[self._ends(period) for period in news.totals],
            seen=[SeenNews(self._ends(period), seen[period]) for period in news.totals],
        )
        of = self._keys.of(mark.generation)
        keys = [self._state, self._keys.cursors, self._keys.latest, self._keys.counted]
        keys += [of.rows(period.granularity, period.start, tenant) for period, tenant in news.rows]
        keys += [of.total(period.granularity, period.start) for period in news.totals]
        keys += [of.seen(period.granularity, period.start) for period in news.totals]
        # Redis' MessagePack knows text alone, so what is binary stands beside it.
        binary = list(latest)
        for steps, (where, row) in enumerate(one for rows in news.rows.values() for one in rows.items()):
            binary += [field_of(where), row.to_bytes()]
            if steps % _ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
        binary += [total.to_bytes() for total in news.totals.values()]
        (version,) = await self._script.run([(keys, [msgspec.msgpack.encode(roll), *binary])])
        return version.decode() or None

    def _ends(self, period: Period) -> int:
        return self._retention.ends(period.granularity, period.start)


class _News:
    """Rows by period and tenant, and all tenants together by period."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.rows: dict[tuple[Period, str], dict[Dims, Row]] = defaultdict(dict)
        self.totals: dict[Period, Row] = {}


def _added_to(raw: bytes | None, row: Row) -> Row:
    if raw is None:
        return row
    held = Row.from_bytes(raw)
    held.merge(row)  # the smaller one into the larger one
    return held


def _put_together(rows: dict[Dims, Row], beyond: Sequence[Dims]) -> None:
    """Count these with all others of their mode and engines, and no longer by themselves."""
    for where in beyond:
        row_in(rows, where._replace(key=OTHER, route=OTHER)).merge(rows.pop(where))


def is_other(where: Dims) -> bool:
    """Whether it is a row of what is beyond the bound."""
    return where.key == OTHER


def batched(items: Iterable[_Item], most: int) -> Iterator[list[_Item]]:
    """These, some at a time."""
    rest = iter(items)
    while some := list(islice(rest, most)):
        yield some


def field_of(where: Dims) -> bytes:
    """As a row's field in Redis; the tenant stands in the key."""
    return msgspec.msgpack.encode(where[1:])
