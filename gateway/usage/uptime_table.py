"""Count the minutes of engines from Redis in the usage database.

A row has the last counted minutes. So a minute counts once, even if several workers count it, or if a worker counts it
again after a crash. The current minute is read again later, because an engine may come up in it.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import case, func, select
from sqlalchemy.dialects import postgresql, sqlite

from gateway.usage.counters import pico
from gateway.usage.tables import UPTIME
from gateway.usage.uptime import MINUTES_A_DAY, SEEN, UP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis
    from sqlalchemy import Connection

    from gateway.redis.keys import LedgerKeys
    from gateway.usage.queries import UsageQueries


class EngineMinute(NamedTuple):
    """A minute (since the Unix epoch) in which an engine was seen. `hourly_pico` is the price of an hour."""

    minute: int
    engine: str
    hourly_pico: int
    is_up: bool


async def minutes_in_redis(redis: Redis, keys: LedgerKeys, minutes: Sequence[int]) -> list[EngineMinute]:
    """Return the engines that were seen in these minutes, in the same order. Raises RedisError and OSError."""
    async with redis.pipeline(transaction=False) as pipe:
        for minute in minutes:
            pipe.hgetall(keys.engine_minute(minute))
        replies = await pipe.execute() if minutes else []
    found = []
    for minute, reply in zip(minutes, replies, strict=True):
        prices = {name.decode(): price.decode() for name, price in reply.items()}
        found += [
            EngineMinute(minute, engine, pico(Decimal(price)), f"{UP}:{engine}" in prices)
            for kind, _, engine, price in ((*name.partition(":"), price) for name, price in prices.items())
            if kind == SEEN
        ]
    return found


def add_minutes(connection: Connection, minutes: Sequence[EngineMinute]) -> None:
    """Add the minutes that are not counted yet, and replace the price of the day. Raises SQLAlchemyError.

    `minutes` are in the order of time.
    """
    c = UPTIME.c
    statement = (postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert)(UPTIME)
    new = statement.excluded
    up, seen = new.last_up > c.last_up, new.last_seen > c.last_seen
    values = {
        "hourly_pico": new.hourly_pico,
        "minutes_up": c.minutes_up + case((up, 1), else_=0),
        "minutes_seen": c.minutes_seen + case((seen, 1), else_=0),
        "last_up": case((up, new.last_up), else_=c.last_up),
        "last_seen": case((seen, new.last_seen), else_=c.last_seen),
    }
    rows = [
        {
            "day": one.minute // MINUTES_A_DAY,
            "engine": one.engine,
            "hourly_pico": one.hourly_pico,
            "minutes_up": int(one.is_up),
            "minutes_seen": 1,
            "last_up": one.minute if one.is_up else 0,
            "last_seen": one.minute,
        }
        for one in minutes
    ]
    connection.execute(statement.on_conflict_do_update(index_elements=[c.day, c.engine], set_=values), rows)


def last_minute(queries: UsageQueries) -> int:
    """Return the last counted minute, or 0 if no minute is counted. Raises SQLAlchemyError."""
    return queries.connection.execute(select(func.max(UPTIME.c.last_seen))).scalar() or 0
