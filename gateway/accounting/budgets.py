"""The budgets in Redis as operators and callers see them: what is left of each, and a raise.

To look changes nothing. What is spent is counted in exchange.lua alone, which honours a raise from the next request on.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.accounting.periods import period_end, period_id
from gateway.accounting.rings import counted
from gateway.pricing import dollars, in_short, picodollars

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from gateway.accounting.scopes import BudgetTerms, Scope
    from gateway.redis.keys import RedisKeys

KEPT_S = 34_214_400
"""How long Redis keeps a budget that nobody uses: 396 days. exchange.lua has the same number."""
LONGEST_RAISE_S = 366 * 86_400
_SHARES = 100  # parts of a rolling budget's time; likewise
_FIELDS = ("period", "spent", "reserved", "raise", "raise_until")
_MICRO = 1_000_000


class Account(NamedTuple):
    """A budget: of a tenant's keys together, or of one of them; the scope says which, and has a budget."""

    tenant: str
    scope: Scope

    @property
    def terms(self) -> BudgetTerms:
        assert self.scope.budget is not None, "an account is a scope with a budget"
        return self.scope.budget


class Raise(NamedTuple):
    """What there is on top of a budget, and until when, in Unix seconds."""

    usd: Decimal
    until_s: int


@dataclass(frozen=True, slots=True)
class Balance:
    """How a budget stood at `now_s` by Redis' clock.

    Attributes:
        raised: the raise that holds.
        ends_s: when the period ends, in Unix seconds; None where it is the time just past.
    """

    spent_usd: Decimal
    reserved_usd: Decimal
    max_usd: Decimal
    raised: Raise | None
    ends_s: int | None
    now_s: int

    @property
    def most_usd(self) -> Decimal:
        """What may be spent, the raise included."""
        return self.max_usd + (self.raised.usd if self.raised else 0)

    @property
    def left_usd(self) -> Decimal:
        """What is neither spent nor reserved. Requests that went on while Redis was away may have passed a budget."""
        return max(Decimal(0), self.most_usd - self.spent_usd - self.reserved_usd)


class Budgets:
    """Its methods await Redis, and raise RedisError and OSError when that cannot be."""

    def __init__(self, redis: Redis, keys: RedisKeys) -> None:
        self._redis = redis
        self._keys = keys

    async def look(self, accounts: Sequence[Account]) -> list[Balance]:
        """How each stands, in one round trip."""
        if not accounts:
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for account in accounts:
                # What is reserved first: what is paid in between counts twice for a moment, and never not at all.
                pipe.hmget(self._key(account), _FIELDS)
                if not account.terms.aligned:
                    pipe.hgetall(f"{self._key(account)}:{account.terms.seconds}")
            (seconds, microseconds), *found = await pipe.execute()
        now_us = seconds * _MICRO + microseconds
        replies = iter(found)
        return [
            _balance(account.terms, next(replies), {} if account.terms.aligned else next(replies), now_us)
            for account in accounts
        ]

    async def put_raise(self, account: Account, raised: Raise | None) -> None:
        """Let a raise hold, in the place of an earlier one; None: end that.

        The budget that is spent once more is told of once more.
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
        spent_pico = counted(ring, "usd", now_us=now_us, length_us=length_us, last=_SHARES)
    else:
        present = (period or b"").decode() == period_id(terms.unit, terms.count, now_s)
        spent_pico = int(spent or 0) if present else 0
    holds = raised is not None and int(raised_until or 0) * _MICRO > now_us
    return Balance(
        spent_usd=_usd(spent_pico),
        reserved_usd=_usd(reserved),
        max_usd=_usd(terms.max),
        raised=Raise(_usd(raised), int(raised_until or 0)) if holds else None,
        ends_s=period_end(terms.unit, terms.count, now_s) if terms.aligned else None,
        now_s=now_s,
    )


def _usd(pico: bytes | str | int | None) -> Decimal:
    return in_short(dollars(str(int(pico or 0))))
