"""Read budgets and set raises in Redis.

Reading changes nothing. Only exchange.lua counts spending. It applies a raise from the next request on.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.accounting.periods import period_end, period_id
from gateway.accounting.rings import ring_sum
from gateway.pricing import dollars, picodollars, without_trailing_zeros

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from gateway.accounting.scopes import BudgetTerms, Scope
    from gateway.redis.keys import RedisKeys

KEPT_S = 34_214_400
"""Seconds for which Redis keeps an unused budget: 396 days. exchange.lua has the same constant."""
MAX_RAISE_S = 366 * 86_400
_SHARES = 100  # parts of a rolling budget's period; exchange.lua has the same constant
_FIELDS = ("period", "spent", "reserved", "raise", "raise_until")
_MICRO = 1_000_000


class Account(NamedTuple):
    """A budget of a tenant or of one of its keys. `scope` has a budget."""

    tenant: str
    scope: Scope

    @property
    def terms(self) -> BudgetTerms:
        assert self.scope.budget is not None, "the scope of an account has a budget"
        return self.scope.budget


class Raise(NamedTuple):
    """An amount in addition to a budget, and its end in Unix seconds."""

    usd: Decimal
    until_s: int


@dataclass(frozen=True, slots=True)
class Balance:
    """The state of a budget at `now_s` (Redis TIME, Unix seconds).

    Attributes:
        raised: the current raise.
        ends_s: the end of the period in Unix seconds; None for a rolling budget.
    """

    spent_usd: Decimal
    reserved_usd: Decimal
    max_usd: Decimal
    raised: Raise | None
    ends_s: int | None
    now_s: int

    @property
    def limit_usd(self) -> Decimal:
        """Return the budget including the raise."""
        return self.max_usd + (self.raised.usd if self.raised else 0)

    @property
    def left_usd(self) -> Decimal:
        """Return the unspent and unreserved amount. It is 0 where requests during an outage exceeded the budget."""
        return max(Decimal(0), self.limit_usd - self.spent_usd - self.reserved_usd)


class Budgets:
    """Read and raise budgets. All methods raise RedisError and OSError."""

    def __init__(self, redis: Redis, keys: RedisKeys) -> None:
        self._redis = redis
        self._keys = keys

    async def read(self, accounts: Sequence[Account]) -> list[Balance]:
        """Return the state of each budget, in one round trip."""
        if not accounts:
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for account in accounts:
                # Read reservations first. A settlement in between then counts twice for a moment, but is never missed.
                pipe.hmget(self._key(account), _FIELDS)
                if not account.terms.aligned:
                    pipe.hgetall(f"{self._key(account)}:{account.terms.seconds}")
            (seconds, microseconds), *results = await pipe.execute()
        now_us = seconds * _MICRO + microseconds
        replies = iter(results)
        return [
            _balance(account.terms, next(replies), {} if account.terms.aligned else next(replies), now_us)
            for account in accounts
        ]

    async def put_raise(self, account: Account, raised: Raise | None) -> None:
        """Replace the raise of a budget; None removes it.

        A budget that is spent again sends a new event.
        """
        key = self._key(account)
        async with self._redis.pipeline(transaction=True) as pipe:
            if raised is None:
                pipe.hdel(key, "raise", "raise_until")
            else:
                values: dict[Any, Any] = {"raise": picodollars(raised.usd), "raise_until": raised.until_s}
                pipe.hset(key, mapping=values)
                pipe.expire(key, KEPT_S)
            pipe.hdel(key, "hard_told")
            await pipe.execute()

    def _key(self, account: Account) -> str:
        return self._keys.scope(account.tenant, account.scope.name)[2]


def _balance(terms: BudgetTerms, held: Sequence[bytes | None], ring: dict[bytes, bytes], now_us: int) -> Balance:
    period, spent, reserved, raised, raised_until = held
    now_s = now_us // _MICRO
    if not terms.aligned:
        length_us = terms.seconds * _MICRO // _SHARES
        spent_pico = ring_sum(ring, "usd", now_us=now_us, length_us=length_us, last=_SHARES)
    else:
        present = (period or b"").decode() == period_id(terms.unit, terms.count, now_s)
        spent_pico = int(spent or 0) if present else 0
    is_current = raised is not None and int(raised_until or 0) * _MICRO > now_us
    return Balance(
        spent_usd=_usd(spent_pico),
        reserved_usd=_usd(reserved),
        max_usd=_usd(terms.max),
        raised=Raise(_usd(raised), int(raised_until or 0)) if is_current else None,
        ends_s=period_end(terms.unit, terms.count, now_s) if terms.aligned else None,
        now_s=now_s,
    )


def _usd(pico: bytes | str | int | None) -> Decimal:
    return without_trailing_zeros(dollars(str(int(pico or 0))))
