"""Read budgets and the use of limits in Redis, and set raises of budgets.

Reading changes nothing. Only exchange.lua counts. It applies a raise from the next request on.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.accounting.slices import parts_of, share, share_of
from gateway.pricing import dollars, picodollars, without_trailing_zeros
from gateway.redis.keys import slice_name, slice_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from redis.asyncio import Redis

    from gateway.accounting.scopes import BudgetTerms, Scope
    from gateway.redis.keys import RedisKeys

_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
_SHIFT_S = {"h": 0, "d": 0, "w": 3 * 86_400}  # 1970 began on a Thursday, and weeks begin on Monday
KEPT_S = 34_214_400
"""Seconds for which Redis keeps an unused budget: 396 days. exchange.lua has the same constant."""
MAX_RAISE_S = 366 * 86_400
SHARES = 100
"""Parts of a rolling budget's period. exchange.lua has the same constant."""
_KEYS_PER_SCAN = 1_000
_FIELDS = ("period", "spent", "reserved", "raise", "raise_until")
_MICRO = 1_000_000
_SLOT_US = 100_000  # slots of the last minute; exchange.lua has the same constants
_SLOTS = 600


def period_id(unit: str, count: int, now_s: int) -> str:
    """Return the id of the period that contains `now_s` (Unix seconds), as stored in a budget's hash."""
    return f"{unit}{count}:{_units_since_epoch(unit, now_s) // count}"


def period_end(unit: str, count: int, now_s: int) -> int:
    """Return the end of the period that contains `now_s`, in Unix seconds."""
    return _start_of_unit(unit, (_units_since_epoch(unit, now_s) // count + 1) * count)


def period_start(unit: str, count: int, now_s: int) -> int:
    """Return the start of the period that contains `now_s`, in Unix seconds."""
    return _start_of_unit(unit, _units_since_epoch(unit, now_s) // count * count)


def _start_of_unit(unit: str, number: int) -> int:
    if unit == "mo":
        return int(datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC).timestamp())
    return number * _SECONDS[unit] - _SHIFT_S[unit]


def _units_since_epoch(unit: str, now_s: int) -> int:
    """Return the number of whole units since 1970."""
    if unit == "mo":
        now = datetime.fromtimestamp(now_s, UTC)
        return now.year * 12 + now.month - 1
    return (now_s + _SHIFT_S[unit]) // _SECONDS[unit]


def ring_sum(held: Mapping[bytes, bytes], name: str, *, now_us: int, length_us: int, last: int) -> int:
    """Return the sum of the slots of `name` that have not expired.

    The hash `held` has a field `<letter><slot>` for each name and slot. An amount counts in its slot and `last` more.
    """
    letter, oldest = name[0].encode(), now_us // length_us - last
    return sum(
        int(amount)
        for field, amount in held.items()
        if field[:1] == letter and field[1:].isdigit() and int(field[1:]) >= oldest
    )


class Account(NamedTuple):
    """A budget of a tenant or of one of its keys. `scope` has a budget."""

    tenant: str
    scope: Scope
    slices: int = 1  # of the tenant

    @property
    def terms(self) -> BudgetTerms:
        assert self.scope.budget is not None, "the scope of an account has a budget"
        return self.scope.budget

    @property
    def parts(self) -> list[Account]:
        """Return the budget of each slice, with the name of the slice as tenant."""
        if self.slices == 1:
            return [self]
        numbers = range(self.slices)
        return [Account(slice_name(self.tenant, one), share_of(self.scope, one, self.slices)) for one in numbers]


class Raise(NamedTuple):
    """An amount in addition to a budget, and its end in Unix seconds."""

    usd: Decimal
    until_s: int


class Balance(NamedTuple):
    """The state of a budget at `now_s` (Redis TIME, Unix seconds)."""

    spent_usd: Decimal
    reserved_usd: Decimal
    max_usd: Decimal
    raised: Raise | None
    ends_s: int | None  # the end of the period in Unix seconds; None for a rolling budget
    now_s: int

    @property
    def limit_usd(self) -> Decimal:
        """Return the budget including the raise."""
        return self.max_usd + (self.raised.usd if self.raised else 0)

    @property
    def left_usd(self) -> Decimal:
        """Return the unspent and unreserved amount. It is 0 where requests during an outage exceeded the budget."""
        return max(Decimal(0), self.limit_usd - self.spent_usd - self.reserved_usd)

    @classmethod
    def total(cls, parts: Sequence[Balance]) -> Balance:
        """Return the state of a budget from those of its slices."""
        if len(parts) == 1:
            return parts[0]
        raises = [part.raised for part in parts if part.raised is not None]
        return parts[0]._replace(
            spent_usd=_sum(part.spent_usd for part in parts),
            reserved_usd=_sum(part.reserved_usd for part in parts),
            max_usd=_sum(part.max_usd for part in parts),
            raised=Raise(_sum(one.usd for one in raises), raises[0].until_s) if raises else None,
        )


class Budgets:
    """Read and raise budgets. All methods raise RedisError and OSError."""

    def __init__(self, redis: Redis, keys: RedisKeys) -> None:
        self._redis = redis
        self._keys = keys

    async def read(self, accounts: Sequence[Account]) -> list[Balance]:
        """Return the state of each budget, in one round trip. Slices are added up."""
        balances = iter(await self._read([part for account in accounts for part in account.parts]))
        return [Balance.total(list(islice(balances, account.slices))) for account in accounts]

    async def _read(self, accounts: Sequence[Account]) -> list[Balance]:
        if not accounts:
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for account in accounts:
                # Read reservations first. A settlement in between then counts twice for a moment, but is never missed.
                pipe.hmget(self.key_of(account), _FIELDS)
                if not account.terms.aligned:
                    pipe.hgetall(f"{self.key_of(account)}:{account.terms.seconds}")
            (seconds, microseconds), *results = await pipe.execute()
        now_us = seconds * _MICRO + microseconds
        replies = iter(results)
        terms = (account.terms for account in accounts)
        return [_balance(one, next(replies), {} if one.aligned else next(replies), now_us) for one in terms]

    async def put_raise(self, account: Account, raised: Raise | None) -> None:
        """Replace the raise of a budget; None removes it. A budget that is spent again sends a new event.

        Each slice gets a part, one after the other.
        """
        parts = parts_of(account.scope, account.slices)
        for number, part in enumerate(account.parts):
            key = self.key_of(part)
            async with self._redis.pipeline(transaction=True) as pipe:
                if raised is None:
                    pipe.hdel(key, "raise", "raise_until")
                else:
                    usd = share(int(picodollars(raised.usd)), number, parts)
                    values: dict[Any, Any] = {"raise": str(usd), "raise_until": raised.until_s}
                    pipe.hset(key, mapping=values)
                    pipe.expire(key, KEPT_S)
                pipe.hdel(key, "hard_told")
                await pipe.execute()
        if account.slices > 1:
            await self._redis.unlink(self._keys.event_sent(account.tenant, account.scope.name, "hard"))

    async def raises(self) -> dict[tuple[str, str], Raise]:
        """Return all current raises, by tenant or slice and by name of the scope. Reads all budgets."""
        found: dict[tuple[str, str], Raise] = {}
        keys: list[bytes] = []
        async for key in self._redis.scan_iter(self._keys.escaped().scope("*", "*")[2], count=_KEYS_PER_SCAN):
            keys.append(key)
            if len(keys) == _KEYS_PER_SCAN:
                found |= await self._raises_of(keys)
                keys.clear()
        return found | await self._raises_of(keys)

    async def _raises_of(self, keys: Iterable[bytes]) -> dict[tuple[str, str], Raise]:
        owners = {
            key: owner for key in keys if (owner := self._keys.budget_of(key.decode(errors="replace"))) is not None
        }
        if not owners:
            return {}
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for key in owners:
                pipe.hmget(key, "raise", "raise_until")
            (now_s, _), *replies = await pipe.execute()
        raises = {
            owner: _raise(usd, until, now_s) for owner, (usd, until) in zip(owners.values(), replies, strict=True)
        }
        return {owner: raised for owner, raised in raises.items() if raised is not None}

    async def claim_event(self, account: Account, kind: str, lasts_s: int) -> bool:
        """Return whether no process has sent this event of a budget with slices in the last `lasts_s` seconds."""
        key = self._keys.event_sent(account.tenant, account.scope.name, kind)
        return bool(await self._redis.set(key, "", nx=True, ex=max(1, lasts_s)))

    def key_of(self, account: Account) -> str:
        """Return the key of a budget."""
        return self._keys.scope(account.tenant, account.scope.name)[2]


def _balance(terms: BudgetTerms, held: Sequence[bytes | None], ring: dict[bytes, bytes], now_us: int) -> Balance:
    period, spent, reserved, raised, raised_until = held
    now_s = now_us // _MICRO
    if not terms.aligned:
        length_us = terms.seconds * _MICRO // SHARES
        spent_pico = ring_sum(ring, "usd", now_us=now_us, length_us=length_us, last=SHARES)
    else:
        present = (period or b"").decode() == period_id(terms.unit, terms.count, now_s)
        spent_pico = int(spent or 0) if present else 0
    return Balance(
        spent_usd=_usd(spent_pico),
        reserved_usd=_usd(reserved),
        max_usd=_usd(terms.max),
        raised=_raise(raised, raised_until, now_s),
        ends_s=period_end(terms.unit, terms.count, now_s) if terms.aligned else None,
        now_s=now_s,
    )


def _raise(pico: bytes | None, until: bytes | None, now_s: int) -> Raise | None:
    """Return a raise from its fields. None: it ended, or is 0 as in a slice without a part."""
    until_s = int(until or 0)
    return Raise(_usd(pico), until_s) if int(pico or 0) and until_s > now_s else None


def _usd(pico: bytes | str | int | None) -> Decimal:
    return without_trailing_zeros(dollars(str(int(pico or 0))))


def _sum(amounts: Iterable[Decimal]) -> Decimal:
    return without_trailing_zeros(sum(amounts, Decimal(0)))


class RecentUsage(NamedTuple):
    """The use of the last 60 seconds, and the requests that run now."""

    requests: int
    tokens: int
    parallel: int


class LimitUsage:
    """Read the use of limits. A process without a heartbeat for `lease_s` seconds holds no parallel slots."""

    def __init__(self, redis: Redis, keys: RedisKeys, lease_s: float) -> None:
        self._redis = redis
        self._keys = keys
        self._lease_us = round(lease_s * _MICRO)

    async def read(self, tenant: str, scopes: Sequence[Scope], slices: int = 1) -> list[RecentUsage]:
        """Return the use of each scope, over all slices, in one round trip. Raises RedisError and OSError."""
        if not scopes:
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for name in slice_names(tenant, slices):
                pipe.zrange(self._keys.owners(name), 0, -1, withscores=True)
                for scope in scopes:
                    window, parallel, _ = self._keys.scope(name, scope.name)
                    pipe.hgetall(window)
                    pipe.hgetall(parallel)
            (seconds, microseconds), *results = await pipe.execute()
        now_us = seconds * _MICRO + microseconds
        size = 1 + 2 * len(scopes)
        parts = [self._usages(results[at : at + size], now_us) for at in range(0, len(results), size)]
        return [RecentUsage(*map(sum, zip(*usages, strict=True))) for usages in zip(*parts, strict=True)]

    def _usages(self, replies: Sequence[Any], now_us: int) -> list[RecentUsage]:
        owners, *results = replies
        living = {process_id for process_id, seen_us in owners if seen_us >= now_us - self._lease_us}
        return [
            RecentUsage(
                requests=_used(window, "requests", now_us),
                tokens=_used(window, "tokens", now_us),
                parallel=sum(int(count) for process_id, count in parallel.items() if process_id in living),
            )
            for window, parallel in zip(results[::2], results[1::2], strict=True)
        ]


def _used(window: dict[bytes, bytes], name: str, now_us: int) -> int:
    return ring_sum(window, name, now_us=now_us, length_us=_SLOT_US, last=_SLOTS)
