"""Post comparisons to the usage database through the outboxes, and keep what comparisons may still cost in Redis."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.pricing import dollars, in_short, picodollars
from gateway.quality.comparison import OUTBOX
from gateway.quality.tally import QualityTally
from gateway.redis.script import RedisScript

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

    from redis.asyncio import Redis

    from gateway.quality.comparison import Comparison
    from gateway.redis.keys import RedisKeys

DAY_S = 86_400
KEPT_DAYS = 35


class ComparisonScope(NamedTuple):
    """What a row is of. No tenant's name holds a slash, and a route's stands last."""

    tenant: str
    compare: str
    length: str
    route: str


class SampleBudget(NamedTuple):
    """What was taken of a route's budget, and from which day's, in Unix seconds of its beginning."""

    tenant: str
    route: str
    day: int
    usd: Decimal


class QualityStore:
    """Its methods await Redis, and raise RedisError and OSError when that cannot be.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, redis: Redis, keys: RedisKeys, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._all_keys = keys
        self._keys = keys.ledger()
        self._clock = clock
        self._take = RedisScript(redis, "gateway.quality", "take.lua")
        self._settle = RedisScript(redis, "gateway.quality", "settle.lua")

    def today(self) -> int:
        """The beginning of this day of UTC, in Unix seconds."""
        return int(self._clock()) // DAY_S * DAY_S

    async def take(self, tenant: str, route: str, usd: Decimal, most: Decimal) -> SampleBudget | None:
        """Take what may be spent from today's budget of a route, which is `most`; None where it has no room.

        What is never given back, since a process died, stays spent.
        """
        taken = SampleBudget(tenant, route, self.today(), usd)
        arguments = (f"{tenant}/{route}", picodollars(usd), picodollars(most), str(2 * DAY_S))
        (room,) = await self._take.run([([self._keys.quality_spent(taken.day)], [one.encode() for one in arguments])])
        return taken if room else None

    async def settle(self, taken: SampleBudget, spent: Decimal) -> None:
        """Give back what was taken and not spent; where more was spent, count that too."""
        unspent = int(picodollars(taken.usd)) - int(picodollars(spent))
        arguments = [f"{taken.tenant}/{taken.route}".encode(), str(unspent).encode()]
        await self._settle.run([([self._keys.quality_spent(taken.day)], arguments)])

    async def add(self, comparison: Comparison) -> None:
        """Post a comparison to the outbox of comparisons. A usage worker writes it to the usage database."""
        fields: Any = {b"comparison": comparison.to_json()}
        await self._redis.xadd(self._all_keys.outbox(OUTBOX), fields)

    async def look(self, days: int) -> dict[ComparisonScope, QualityTally]:
        """Return what an earlier version added in the last days, including today: it kept sums by day in Redis."""
        today = self.today()
        async with self._redis.pipeline(transaction=False) as pipe:
            for back in range(days):
                pipe.hgetall(self._keys.quality(today - back * DAY_S))
            held = await pipe.execute()
        found: dict[ComparisonScope, QualityTally] = {}
        for rows in held:
            for field, sums in rows.items():
                compared = ComparisonScope(*field.decode().split("/", 3))
                found[compared] = found.get(compared, QualityTally()) + QualityTally(*map(int, sums.split()))
        return found

    async def spent_today(self) -> dict[tuple[str, str], Decimal]:
        """USD by tenant and route, with what comparisons under way may come to."""
        held: dict[Any, Any] = await self._redis.hgetall(self._keys.quality_spent(self.today()))
        spent = {}
        for field, pico in held.items():
            tenant, route = field.decode().split("/", 1)
            spent[tenant, route] = in_short(dollars(pico.decode()))
        return spent
