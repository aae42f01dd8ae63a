"""What receipts add up to, in Redis: rows by the minute, the hour and the day, and how they are read and written.

A receipt belongs to the period in which its request came in (`created`), whenever it was settled: so that the same
receipts, read from the archive, make the same rows.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import msgspec

from gateway.ledger.rollup import Dims, Row, dims, row_in
from gateway.ledger.script import Script

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence

    from redis.asyncio import Redis

    from gateway.ledger.receipt import Receipt
    from gateway.redis_keys import RedisKeys

Granularity = Literal["minute", "hour", "day"]
SECONDS: dict[Granularity, int] = {"minute": 60, "hour": 3600, "day": 86_400}
"""How long a period is. All begin with the Unix epoch, so days are UTC's."""

KEPT_LATEST = 1_000
"""About how many of the last receipts of all tenants stay at hand."""

_KEYS_PER_CALL = 2_000
_FIRST_KEYS, _PARTS_PER_PAGE = 10, 1_000
_Item = TypeVar("_Item")
OTHER = "(other)"
"""The key, and the route, of what is beyond the bound of rows. It has brackets, so nothing else is called so."""


class Retention(msgspec.Struct, frozen=True):
    """How long rows are kept after their period, in seconds; and how many for one tenant and period."""

    minute: float
    hour: float
    day: float
    max_rows: int = 1_000

    def of(self, granularity: Granularity) -> float:
        """For how long, in seconds."""
        kept_s: float = getattr(self, granularity)
        return kept_s

    def ends(self, granularity: Granularity, period: int) -> int:
        """When the rows of a period go, in Unix seconds."""
        return round(period + SECONDS[granularity] + self.of(granularity))


@dataclass(frozen=True, slots=True)
class Period:
    """Some time, from `start` in Unix seconds."""

    granularity: Granularity
    start: int

    @classmethod
    def of(cls, granularity: Granularity, moment: float) -> Period:
        """The one in which a moment lies."""
        length = SECONDS[granularity]
        return cls(granularity, int(moment // length * length))


def periods(granularity: Granularity, since: float, until: float) -> Iterator[Period]:
    """All that lie in [since, until), the first and the last with their whole length."""
    one = Period.of(granularity, since)
    while one.start < until:
        yield one
        one = Period(granularity, one.start + SECONDS[granularity])


class Sums:
    """What some receipts add up to, to be added to what is there."""

    def __init__(self) -> None:
        self.rows: dict[Period, dict[Dims, Row]] = defaultdict(dict)

    def add(self, receipt: Receipt, times: int = 1) -> None:
        """Count a receipt, in its minute; `spread` takes it to the hours and days."""
        row_in(self.rows[Period.of("minute", receipt.created)], dims(receipt)).add(receipt, times)

    def spread(self) -> Sums:
        """The same, by the hour and the day as well. Call it once, when all are counted."""
        for period, rows in list(self.rows.items()):
            for granularity in ("hour", "day"):
                wider = self.rows[Period.of(granularity, period.start)]
                for where, row in rows.items():
                    row_in(wider, where).merge(row)
        return self


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
        latest: how many receipts follow.
        totals: for each, when it goes.
    """

    version: str
    cursors: dict[str, str]
    latest: int
    keep_latest: int
    rows: list[RowsNews]
    totals: list[int]
    seen: list[SeenNews]


@dataclass(frozen=True, slots=True)
class Mark:
    """Up to where outboxes are added up: entry ids by tenant. `version` says what was read."""

    version: str
    cursors: Mapping[str, str]


class Page(NamedTuple):
    """The rows of one tenant and period, as they are kept."""

    period: Period
    tenant: str
    fields: Mapping[bytes, bytes]

    def rows(self, only: Mapping[str, str]) -> Iterator[tuple[Dims, Row]]:
        """Those of these dims. Raises msgspec.DecodeError."""
        for field, raw in self.fields.items():
            where = _dims(self.tenant, field)
            if all(getattr(where, name) == wanted for name, wanted in only.items()):
                yield where, Row.from_bytes(raw)


class Rollups:
    """Args:
    retention: how long, and how much.
    """

    def __init__(self, redis: Redis, keys: RedisKeys, retention: Retention) -> None:
        self._redis = redis
        self._keys = keys.ledger()
        self._retention = retention
        self._script = Script(redis, "roll.lua")

    async def rows(self, wanted: Sequence[Period], tenant: str | None = None) -> list[tuple[Period, Dims, Row]]:
        """The rows of these periods, of one tenant or of all. Raises RedisError and OSError."""
        places = [(period, tenant) for period in wanted] if tenant is not None else await self._places(wanted)
        found = []
        for some in _batched(places, _KEYS_PER_CALL):
            async with self._redis.pipeline(transaction=False) as pipe:
                for period, whose in some:
                    pipe.hgetall(self._keys.rows(period.granularity, period.start, whose))
                held = await pipe.execute()
            for (period, whose), fields in zip(some, held, strict=True):
                found += [(period, _dims(whose, field), Row.from_bytes(raw)) for field, raw in fields.items()]
        return found

    async def totals(self, wanted: Sequence[Period]) -> list[tuple[Period, Row]]:
        """Of each period all tenants together; a period without receipts has an empty row. Raises as `rows`."""
        found = []
        for some in _batched(wanted, _KEYS_PER_CALL):
            held: Any = await self._redis.mget([self._keys.total(one.granularity, one.start) for one in some])
            found += [
                (period, Row() if raw is None else Row.from_bytes(raw)) for period, raw in zip(some, held, strict=True)
            ]
        return found

    async def pages(self, wanted: Sequence[Period], tenant: str | None = None) -> AsyncIterator[list[Page]]:
        """The same rows as `rows`, as they are kept and some at a time: whoever reads many decodes them in a thread.

        Raises as `rows`.
        """
        done, most = 0, _FIRST_KEYS
        while some := wanted[done : done + most]:
            places = [(period, tenant) for period in some] if tenant is not None else await self._places(some)
            async for page in self._pages(places):
                yield page
            done += len(some)
            most = _at_once(len(some), len(places))

    async def _pages(self, places: Sequence[tuple[Period, str]]) -> AsyncIterator[list[Page]]:
        done, most = 0, _FIRST_KEYS
        while some := places[done : done + most]:
            async with self._redis.pipeline(transaction=False) as pipe:
                for period, whose in some:
                    pipe.hgetall(self._keys.rows(period.granularity, period.start, whose))
                held = await pipe.execute()
            yield [Page(period, whose, fields) for (period, whose), fields in zip(some, held, strict=True)]
            done += len(some)
            most = _at_once(len(some), sum(map(len, held)))

    async def latest(self, most: int, tenant: str | None = None) -> list[bytes]:
        """The last receipts that were added up, the newest first, as JSON. Raises as `rows`."""
        found: Any = await self._redis.xrevrange(self._keys.latest, count=KEPT_LATEST if tenant else most)
        raw = [fields[b"receipt"] for _, fields in found]
        if tenant is not None:
            raw = [one for one in raw if msgspec.json.decode(one, type=_Whose).tenant == tenant]
        return raw[:most]

    async def mark(self) -> Mark:
        """Up to where all is added up. Raises as `rows`."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hget(self._keys.state, "version")
            pipe.hgetall(self._keys.cursors)
            version, cursors = await pipe.execute()
        return Mark(
            version.decode() if version is not None else "0",
            {tenant.decode(): one.decode() for tenant, one in cursors.items()},
        )

    async def write(
        self, mark: Mark, sums: Sums, cursors: Mapping[str, str], latest: Sequence[bytes], now: float
    ) -> bool:
        """Add these sums, and move the cursors, unless somebody has written since `mark`: whether it was done.

        Args:
            sums: by the minute, the hour and the day.
            latest: receipts as JSON, the oldest first.
            now: Unix seconds; what would be forgotten at once is not written.

        Raises as `rows`.
        """
        alive = {period: rows for period, rows in sums.rows.items() if self._ends(period) > now}
        by_tenant: dict[tuple[Period, str], dict[bytes, Row]] = defaultdict(dict)
        totals: dict[Period, Row] = defaultdict(Row)
        for period, by_dims in alive.items():
            for where, row in by_dims.items():
                by_tenant[period, where.tenant][_field(where)] = row
                totals[period].merge(row)
        async with self._redis.pipeline(transaction=False) as pipe:
            for (period, tenant), rows in by_tenant.items():
                pipe.hmget(self._keys.rows(period.granularity, period.start, tenant), list(rows))
            for period in totals:
                pipe.get(self._keys.total(period.granularity, period.start))
            held = await pipe.execute()
        for rows, raws in zip(by_tenant.values(), held[: len(by_tenant)], strict=True):
            for row, raw in zip(rows.values(), raws, strict=True):
                if raw is not None:
                    row.merge(Row.from_bytes(raw))
        for total, raw in zip(totals.values(), held[len(by_tenant) :], strict=True):
            if raw is not None:
                total.merge(Row.from_bytes(raw))
        return await self._write(mark, by_tenant, totals, cursors, latest)

    async def _write(
        self,
        mark: Mark,
        by_tenant: Mapping[tuple[Period, str], Mapping[bytes, Row]],
        totals: Mapping[Period, Row],
        cursors: Mapping[str, str],
        latest: Sequence[bytes],
    ) -> bool:
        roll = Roll(
            version=mark.version,
            cursors=dict(cursors),
            latest=len(latest),
            keep_latest=KEPT_LATEST,
            rows=[RowsNews(self._ends(period), len(rows)) for (period, _), rows in by_tenant.items()],
            totals=[self._ends(period) for period in totals],
            seen=[
                SeenNews(self._ends(period), [tenant for one, tenant in by_tenant if one == period])
                for period in totals
            ],
        )
        keys = [self._keys.state, self._keys.cursors, self._keys.latest]
        keys += [self._keys.rows(period.granularity, period.start, tenant) for period, tenant in by_tenant]
        keys += [self._keys.total(period.granularity, period.start) for period in totals]
        keys += [self._keys.seen(period.granularity, period.start) for period in totals]
        # Redis' MessagePack knows text alone, so what is binary stands beside it.
        binary = list(latest)
        for rows in by_tenant.values():
            for field, row in rows.items():
                binary += [field, row.to_bytes()]
        binary += [total.to_bytes() for total in totals.values()]
        call = (keys, [msgspec.msgpack.encode(roll), *binary])
        (done,) = await self._script.run([call])
        return bool(done)

    async def _places(self, wanted: Sequence[Period]) -> list[tuple[Period, str]]:
        places = []
        for some in _batched(wanted, _KEYS_PER_CALL):
            async with self._redis.pipeline(transaction=False) as pipe:
                for period in some:
                    pipe.smembers(self._keys.seen(period.granularity, period.start))
                held = await pipe.execute()
            places += [
                (period, raw.decode()) for period, tenants in zip(some, held, strict=True) for raw in sorted(tenants)
            ]
        return places

    def _ends(self, period: Period) -> int:
        return self._retention.ends(period.granularity, period.start)


class _Whose(msgspec.Struct):
    tenant: str


def _field(where: Dims) -> bytes:
    return msgspec.msgpack.encode(where[1:])


def _dims(tenant: str, field: bytes) -> Dims:
    key, route, mode, teacher, student = msgspec.msgpack.decode(field, type=tuple[str, str, str, str, str])
    return Dims(tenant, key, route, mode, teacher, student)


def _at_once(asked: int, came: int) -> int:
    """How many to ask for next: few where each holds many, since what comes at once is parsed on the event loop."""
    return max(1, min(_KEYS_PER_CALL, asked * _PARTS_PER_PAGE // max(1, came)))


def _batched(items: Iterable[_Item], most: int) -> Iterator[list[_Item]]:
    rest = iter(items)
    while some := list(islice(rest, most)):
        yield some
