"""Post comparisons to the usage database through the outbox, and limit their cost per day in Redis."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.pricing import dollars, picodollars, without_trailing_zeros
from gateway.quality.comparison import OUTBOX
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
    """The group of a sum. A tenant name contains no slash, and the route comes last."""

    tenant: str
    compare: str
    length: str
    route: str


class SampleBudget(NamedTuple):
    """An amount reserved from a route's budget, with the start of its UTC day in Unix seconds."""

    tenant: str
    route: str
    day: int
    usd: Decimal


class QualityStore:
    """Post comparisons, and reserve their cost. All methods raise RedisError and OSError. `clock`: Unix seconds."""

    def __init__(self, redis: Redis, keys: RedisKeys, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._all_keys = keys
        self._keys = keys.ledger()
        self._clock = clock
        self._take = RedisScript(redis, "gateway.quality", "take.lua")
        self._settle = RedisScript(redis, "gateway.quality", "settle.lua")

    def today(self) -> int:
        """Return the start of the current UTC day in Unix seconds."""
        return int(self._clock()) // DAY_S * DAY_S

    async def take(self, tenant: str, route: str, usd: Decimal, limit: Decimal) -> SampleBudget | None:
        """Reserve an amount from today's budget of a route, `limit` in USD. Return None where the budget has no room.

        A reservation stays spent where its process dies before `settle`.
        """
        reservation = SampleBudget(tenant, route, self.today(), usd)
        arguments = (f"{tenant}/{route}", picodollars(usd), picodollars(limit), 2 * DAY_S)
        (room,) = await self._take.run([([self._keys.quality_spent(reservation.day)], arguments)])
        return reservation if room else None

    async def settle(self, reservation: SampleBudget, spent: Decimal) -> None:
        """Replace a reservation by the spent amount."""
        unspent = int(picodollars(reservation.usd)) - int(picodollars(spent))
        arguments = (f"{reservation.tenant}/{reservation.route}", unspent)
        await self._settle.run([([self._keys.quality_spent(reservation.day)], arguments)])

    async def add(self, comparison: Comparison) -> None:
        """Post a comparison to the outbox. A usage worker writes it to the usage database."""
        fields: Any = {b"comparison": comparison.to_json()}
        await self._redis.xadd(self._all_keys.outbox(OUTBOX), fields)

    async def spent_today(self) -> dict[tuple[str, str], Decimal]:
        """Return the USD spent or reserved today, by tenant and route."""
        held: dict[Any, Any] = await self._redis.hgetall(self._keys.quality_spent(self.today()))
        spent = {}
        for field, pico in held.items():
            tenant, route = field.decode().split("/", 1)
            spent[tenant, route] = without_trailing_zeros(dollars(pico.decode()))
        return spent
