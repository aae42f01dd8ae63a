"""Uptime of engines in the usage database: a worker copies the bitmaps of the last days from Redis."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from gateway.usage.counters import pico
from gateway.usage.tables import DAY_S, UPTIME
from gateway.usage.uptime import MINUTES_A_DAY

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from redis.asyncio import Redis
    from sqlalchemy import Connection

    from gateway.redis.keys import LedgerKeys

_BYTES = MINUTES_A_DAY // 8


class EngineMinutes(NamedTuple):
    """Bitmaps of an engine and day (since the Unix epoch): minutes in which it was up, and in which it was checked.

    The first minute is the highest bit of the first byte, as in Redis. `hourly_pico` is the price of an hour.
    """

    day: int
    engine: str
    hourly_pico: int
    up: bytes
    seen: bytes


async def minutes_in_redis(redis: Redis, keys: LedgerKeys, starts: Sequence[int]) -> list[EngineMinutes]:
    """Return the bitmaps of the days that begin at these Unix seconds. Raises RedisError and OSError."""
    async with redis.pipeline(transaction=False) as pipe:
        for start in starts:
            pipe.hgetall(keys.rates(start))
        rates = await pipe.execute()
    days = [
        (start, name.decode(), Decimal(rate.decode()))
        for start, day_rates in zip(starts, rates, strict=True)
        for name, rate in day_rates.items()
    ]
    if not days:
        return []
    async with redis.pipeline(transaction=False) as pipe:
        for start, name, _ in days:
            pipe.get(keys.up(name, start))
            pipe.get(keys.seen_up(name, start))
        bitmaps = iter(await pipe.execute())
    return [
        EngineMinutes(start // DAY_S, name, pico(rate), next(bitmaps) or b"", next(bitmaps) or b"")
        for start, name, rate in days
    ]


def add_minutes(connection: Connection, minutes: Iterable[EngineMinutes]) -> None:
    """Merge minutes into the stored minutes, and replace the price. Raises SQLAlchemyError."""
    new = {(engine_day.day, engine_day.engine): engine_day for engine_day in minutes}
    query = select(UPTIME).where(UPTIME.c.day.in_({day for day, _ in new}))
    stored = {(row.day, row.engine): EngineMinutes(*row) for row in connection.execute(query)} if new else {}
    rows: list[dict[str, Any]] = []
    for key, engine_day in new.items():
        old = stored.get(key)
        up, seen = (old.up, old.seen) if old else (b"", b"")
        merged = engine_day._replace(up=_union(engine_day.up, up), seen=_union(engine_day.seen, seen))
        if merged != old:
            rows.append(merged._asdict())
    if rows:
        build = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        statement = build(UPTIME)
        values = {name: statement.excluded[name] for name in ("hourly_pico", "up", "seen")}
        connection.execute(
            statement.on_conflict_do_update(index_elements=[UPTIME.c.day, UPTIME.c.engine], set_=values), rows
        )


def _union(left: bytes, right: bytes) -> bytes:
    pairs = zip(left[:_BYTES].ljust(_BYTES, b"\0"), right[:_BYTES].ljust(_BYTES, b"\0"), strict=True)
    return bytes(a | b for a, b in pairs)
