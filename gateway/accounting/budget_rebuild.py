"""Restore the spend of running budget periods from receipts, after Redis lost it.

Nothing else may change the budgets meanwhile: `budgets rebuild` requires that no gateway runs. A budget is only raised
to the sum of its receipts, since Redis may know of spend whose receipts were deleted.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.accounting.budgets import KEPT_S, SHARES, Account, Budgets, period_id, period_start
from gateway.accounting.slices import parts_of, share
from gateway.pricing import dollars, picodollars, without_trailing_zeros

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from decimal import Decimal

    from redis.asyncio import Redis

    from gateway.accounting.receipt import Receipt
    from gateway.accounting.scopes import BudgetTerms

_MICRO = 1_000_000
_CALENDAR = 0
"""The slot of a calendar period, which has one sum."""


class RebuiltBudget(NamedTuple):
    """A budget, and its spend in the running period before and after the rebuild."""

    account: Account
    before_usd: Decimal
    after_usd: Decimal


class PeriodSpend:
    """The receipts of the running period of each budget, added up. `now_s` is the time by Redis' clock. Pure.

    A request counts in the period in which it ended, as in exchange.lua.
    """

    def __init__(self, now_s: int) -> None:
        self._now_us = now_s * _MICRO
        self._slots: dict[tuple[str, str], dict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._accounts: dict[tuple[str, str], Account] = {}

    def add(self, receipt: Receipt, accounts: Iterable[Account]) -> None:
        """Add the cost of a receipt to the budgets that its request was charged to."""
        pico = int(picodollars(receipt.cost_usd))
        ended_us = min(self._now_us, receipt.created * _MICRO + round(receipt.timings.total_ms * 1000))
        for account in accounts:
            slot = self._slot(account.terms, ended_us)
            if pico and slot is not None:
                name = account.tenant, account.scope.name
                self._accounts[name] = account
                self._slots[name][slot] += pico

    def _slot(self, terms: BudgetTerms, ended_us: int) -> int | None:
        """Return the slot of a rolling budget, or that of a calendar period. None: the period is over."""
        if terms.aligned:
            since_s = period_start(terms.unit, terms.count, self._now_us // _MICRO)
            return _CALENDAR if ended_us >= since_s * _MICRO else None
        slot = ended_us // _slot_us(terms)
        return slot if slot >= _oldest_slot(terms, self._now_us) else None

    def __iter__(self) -> Iterator[tuple[Account, Mapping[int, int]]]:
        """Yield each budget with its spend in picodollars by slot."""
        return ((account, self._slots[name]) for name, account in sorted(self._accounts.items()))


def running_since(terms: BudgetTerms, now_s: int) -> int:
    """Return the start of the budget's running period, in Unix seconds."""
    if terms.aligned:
        return period_start(terms.unit, terms.count, now_s)
    return _oldest_slot(terms, now_s * _MICRO) * _slot_us(terms) // _MICRO


class _Held(NamedTuple):
    """The present spend of a budget by slot, in picodollars. `first`: the first slot of a rolling budget's ring."""

    slots: Mapping[int, int]
    first: int | None = None


class BudgetRebuild:
    """Raise budgets in Redis. Its methods raise RedisError and OSError. `now_s`: see `PeriodSpend`."""

    def __init__(self, redis: Redis, budgets: Budgets, now_s: int) -> None:
        self._redis, self._budgets, self._now_s = redis, budgets, now_s

    async def restore(self, account: Account, spent: Mapping[int, int]) -> RebuiltBudget:
        """Raise the spend of a budget to the sum of its receipts. A repetition changes nothing.

        Each slice of a tenant gets its share of the missing amount.
        """
        parts = [(part, await self._held(part)) for part in account.parts]
        before = sum(sum(held.slots.values()) for _, held in parts)
        left = sum(spent.values()) - before
        missing: dict[int, int] = {}
        # Redis may count a cost in a later slot than its receipt. So the sum decides, and the latest slots come first.
        for slot, pico in sorted(spent.items(), reverse=True):
            lacking = min(left, pico - sum(held.slots.get(slot, 0) for _, held in parts))
            if lacking > 0:
                missing[slot] = lacking
                left -= lacking
        number_of_parts = parts_of(account.scope, account.slices)
        for number, (part, held) in enumerate(parts):
            added = {slot: share(pico, number, number_of_parts) for slot, pico in missing.items()}
            if any(added.values()):
                await self._add(part, held, added)
        return RebuiltBudget(account, _usd(before), _usd(before + sum(missing.values())))

    async def _held(self, account: Account) -> _Held:
        key, terms = self._budgets.key_of(account), account.terms
        if terms.aligned:
            reply: Any = self._redis.hmget(key, ["period", "spent"])
            period, spent = await reply
            is_running = (period or b"").decode() == self._period(terms)
            return _Held({_CALENDAR: int(spent or 0)} if is_running else {})
        reply = self._redis.hgetall(_ring_of(key, terms))
        ring: dict[bytes, bytes] = await reply
        slots = {int(name[1:]): int(pico) for name, pico in ring.items() if name[1:].isdigit()}
        oldest = _oldest_slot(terms, self._now_s * _MICRO)
        current = {slot: pico for slot, pico in slots.items() if slot >= oldest}
        return _Held(current, int(ring[b"from"]) if b"from" in ring else None)

    async def _add(self, account: Account, held: _Held, added: Mapping[int, int]) -> None:
        """Add amounts to a budget. The fields are those of exchange.lua."""
        key, terms = self._budgets.key_of(account), account.terms
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(key, mapping={"rolling_s": str(0 if terms.aligned else terms.seconds)})
            if terms.aligned:
                if not held.slots:
                    pipe.hset(key, mapping={"period": self._period(terms), "spent": "0"})
                    pipe.hdel(key, "soft_told", "hard_told")
                pipe.hincrby(key, "spent", added[_CALENDAR])
            else:
                ring = _ring_of(key, terms)
                for slot, pico in added.items():
                    pipe.hincrby(ring, f"u{slot}", pico)
                pipe.hincrby(ring, "usd", sum(added.values()))
                first = min(added) if held.first is None else min(held.first, *added)
                pipe.hset(ring, mapping={"from": str(first)})
                pipe.pexpire(ring, _slot_us(terms) * (SHARES + 2) // 1000)
            pipe.expire(key, KEPT_S)
            await pipe.execute()

    def _period(self, terms: BudgetTerms) -> str:
        return period_id(terms.unit, terms.count, self._now_s)


def _slot_us(terms: BudgetTerms) -> int:
    return terms.seconds * _MICRO // SHARES


def _oldest_slot(terms: BudgetTerms, now_us: int) -> int:
    return now_us // _slot_us(terms) - SHARES


def _ring_of(key: str, terms: BudgetTerms) -> str:
    return f"{key}:{terms.seconds}"


def _usd(pico: int) -> Decimal:
    return without_trailing_zeros(dollars(pico))
